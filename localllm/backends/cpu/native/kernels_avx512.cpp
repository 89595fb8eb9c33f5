#define LOCALLLM_AVX2 1
#define LOCALLLM_AVX512 1
#define KERNEL_SET avx512_kernels
#define KERNEL_SET_NAME "avx512"
#include "kernels_all.h"
