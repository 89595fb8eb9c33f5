#define DELTA_SET portable_delta_kernels
#include "delta_loops.h"
