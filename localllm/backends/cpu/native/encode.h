// Float rows to blocks: one job over all rows of a matrix, in pieces that threads take.
#pragma once
#include <cstddef>
#include <cstdint>

namespace localllm {

enum class Floats { f32, f16, bf16 };

// The numbers GGUF files give to block types.
enum BlockKind { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13,
                 Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23, MXFP4 = 39 };

struct EncodeJob {
    int kind;                 // a BlockKind
    Floats source;
    const uint8_t* values;    // rows one after another
    size_t num_blocks;        // of all rows
    size_t blocks_per_row;
    const float* importance;  // of the columns of a row; null: none is known
    float limit;              // the largest size that the type holds
    uint8_t* out;
};

// What one piece works in; a thread has its own.
struct EncodeRoom {
    alignas(64) float values[16 * 256];
    alignas(64) float weights[16 * 256];
};

// Blocks [first, last) of the job; the first block with a value that is not held, or -1. `room` is scratch.
using EncodeBlocks = ptrdiff_t (*)(const EncodeJob& job, size_t first, size_t last, EncodeRoom& room);

namespace portable { ptrdiff_t encode_blocks(const EncodeJob&, size_t, size_t, EncodeRoom&); }
namespace avx2 { ptrdiff_t encode_blocks(const EncodeJob&, size_t, size_t, EncodeRoom&); }
namespace avx512 { ptrdiff_t encode_blocks(const EncodeJob&, size_t, size_t, EncodeRoom&); }

size_t values_per_block(int kind);
size_t bytes_per_block(int kind);  // 0: there is no encoder

}  // namespace localllm
