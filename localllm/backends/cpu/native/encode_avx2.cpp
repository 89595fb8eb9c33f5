#define ENCODE_SET avx2
#define ENCODE_LANES 8
#include "encode_blocks.h"
