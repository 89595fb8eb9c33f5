#define LOCALLLM_NEON 1
#define DELTA_SET neon_delta_kernels
#include "delta_loops.h"
