#define ENCODE_SET portable
#define ENCODE_LANES 4
#include "encode_blocks.h"
