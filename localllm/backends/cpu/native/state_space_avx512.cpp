#define LOCALLLM_AVX2 1
#define LOCALLLM_AVX512 1
#define STATE_SPACE_SET avx512_state_space_kernels
#include "state_space_loops.h"
