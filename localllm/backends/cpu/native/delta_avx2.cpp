#define LOCALLLM_AVX2 1
#define DELTA_SET avx2_delta_kernels
#include "delta_loops.h"
