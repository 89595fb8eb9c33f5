#define LOCALLLM_NEON 1
#define KERNEL_SET neon_kernels
#define KERNEL_SET_NAME "neon"
#include "kernels_all.h"
