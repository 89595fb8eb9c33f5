#define LOCALLLM_AVX2 1
#define LOCALLLM_AVX512 1
#define DELTA_SET avx512_delta_kernels
#include "delta_loops.h"
