#define ENCODE_SET avx512
#define ENCODE_LANES 16
#include "encode_blocks.h"
