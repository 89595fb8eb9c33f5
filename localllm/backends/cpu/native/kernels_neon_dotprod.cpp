#define LOCALLLM_NEON 1
#define LOCALLLM_DOTPROD 1
#define KERNEL_SET neon_dotprod_kernels
#define KERNEL_SET_NAME "neon_dotprod"
#include "kernels_all.h"
