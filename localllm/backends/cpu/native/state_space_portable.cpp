#define STATE_SPACE_SET portable_state_space_kernels
#include "state_space_loops.h"
