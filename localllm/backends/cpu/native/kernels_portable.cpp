#define KERNEL_SET portable_kernels
#define KERNEL_SET_NAME "portable"
#include "kernels_all.h"
