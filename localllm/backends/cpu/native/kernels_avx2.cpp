#define LOCALLLM_AVX2 1
#define KERNEL_SET avx2_kernels
#define KERNEL_SET_NAME "avx2"
#include "kernels_all.h"
