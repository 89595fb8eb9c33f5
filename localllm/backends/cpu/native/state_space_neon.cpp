#define LOCALLLM_NEON 1
#define STATE_SPACE_SET neon_state_space_kernels
#include "state_space_loops.h"
