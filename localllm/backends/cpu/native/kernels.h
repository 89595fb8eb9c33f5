// What an instruction set offers: the inner loops as one table of functions over plain arguments.
//
// Every set keeps the same promise: a result depends on its own row only. Each (weight row, token) has one float sum
// that takes blocks in their order, attention goes by splits of fixed length merged in order, activations are quantized
// token by token. So batch, chunking and the number of threads never change a bit. Sets may differ from each other.
#pragma once
#include <cstddef>
#include <cstdint>

namespace localllm {

constexpr int LANES = 8;        // weight rows that are interleaved: a group
constexpr int TILE = 4;         // tokens of quantized activations that lie together
constexpr int BLOCK = 32;       // columns of activations that lie together, and of most weights that share a scale
constexpr int HALF = 16;        // columns of activations that share a scale
constexpr int SPLIT = 128;      // positions of one attention split
constexpr int PARTIAL_HEAD = 8; // floats before the values of a partial: maximum, sum, padding

// GGUF's numbers.
enum class Type : int {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    Q1_0 = 41
};

// How many columns share a block, and its bytes; both are zero for a type that is none of ours.
struct BlockShape {
    int values, bytes;
};

namespace {  // internal linkage: this header is compiled with different instruction sets

constexpr BlockShape shape_of(Type type) {
    switch (type) {
        case Type::F32: return {1, 4};
        case Type::F16: return {1, 2};
        case Type::BF16: return {1, 2};
        case Type::Q4_0: return {32, 18};
        case Type::Q4_1: return {32, 20};
        case Type::Q5_0: return {32, 22};
        case Type::Q5_1: return {32, 24};
        case Type::Q8_0: return {32, 34};
        case Type::Q2_K: return {256, 84};
        case Type::Q3_K: return {256, 110};
        case Type::Q4_K: return {256, 144};
        case Type::Q5_K: return {256, 176};
        case Type::Q6_K: return {256, 210};
        case Type::IQ4_NL: return {32, 18};
        case Type::IQ4_XS: return {256, 136};
        case Type::MXFP4: return {32, 17};
        case Type::IQ1_S: return {256, 50};
        case Type::IQ1_M: return {256, 56};
        case Type::IQ2_XXS: return {256, 66};
        case Type::IQ2_XS: return {256, 74};
        case Type::IQ2_S: return {256, 82};
        case Type::IQ3_XXS: return {256, 98};
        case Type::IQ3_S: return {256, 110};
        case Type::TQ1_0: return {256, 54};
        case Type::TQ2_0: return {256, 66};
        case Type::Q1_0: return {128, 18};
    }
    return {0, 0};
}

// These take quantized activations, the others floats.
constexpr bool is_quantized(Type type) { return shape_of(type).values > 1; }

// Interleaving moves the bytes of a row's blocks and adds none.
inline size_t group_bytes(Type type, int columns) {
    BlockShape shape = shape_of(type);
    return static_cast<size_t>(columns / shape.values) * static_cast<size_t>(shape.bytes) * LANES;
}

}  // namespace

// How pages store keys and values. q8_0: 8 bits, and a half as the scale of up to 32 dimensions of a position's head.
enum class KvType : int { f16, f32, q8_0 };

namespace {

// Bytes of one head's keys or values in a page: numbers, keys as (dims, page_size), values as (page_size, dims); then,
// for q8_0, scales (ceil(dims / 32), page_size), from an even offset on.
constexpr size_t number_bytes(KvType type, size_t dims, size_t page_size) {
    size_t count = dims * page_size;
    return type == KvType::f32 ? 4 * count : type == KvType::f16 ? 2 * count : count + count % 2;
}
constexpr size_t room_bytes(KvType type, size_t dims, size_t page_size) {
    size_t scales = type == KvType::q8_0 ? 2 * page_size * ((dims + BLOCK - 1) / BLOCK) : 0;
    return number_bytes(type, dims, page_size) + scales;
}

}  // namespace

enum class Activation : int { silu, gelu, gelu_tanh, relu, relu2, swiglu_oai };

// Four tokens' activations of 32 columns: value = scale * ratio[half] * q; sum is that of the 32 values.
//
// Each half has its own scale, as a whole multiple of a common one: halves are joined as integers and cost no float step
// of their own. 12 bits are all that sums of 8-bit products leave free. (The AVX-512 set keeps the bits of a float in
// `ratio`, a half's own scale, and -128 times its plain sum in `sums`.)
struct ActBlock {
    float scale[TILE];
    float sum[TILE];
    int32_t ratio[BLOCK / HALF][TILE];  // 1..RATIO_MOST, and the same again in the upper 16 bits
    int32_t sums[BLOCK / HALF][TILE];   // of a half's q, times its ratio
    int8_t q[TILE][BLOCK];
};
constexpr int RATIO_MOST = 4095;
inline int32_t twice(int ratio) { return ratio * 0x10001; }
inline int once(int32_t ratio) { return ratio & 0xffff; }

// `count` tokens as floats (row-major, `ld` apart) or as tiles of quantized blocks; kernels read the one they need.
struct Inputs {
    const float* values = nullptr;
    size_t ld = 0;
    const ActBlock* blocks = nullptr;
    int count = 0;
};

// Consecutive groups of a packed matrix: the part of one thread.
struct Slice {
    const uint8_t* data = nullptr;
    int first_group = 0;
    int num_groups = 0;
};

// y = (product + bias), or residual + (product + bias) * scale. Rows of y are padded to whole groups.
struct LinearOut {
    float* y;
    size_t ld;
    const float* bias;
    const float* residual;
    size_t residual_ld;
    float scale;
};

// activation(gate) * up as floats, or quantized where `blocks` is set.
struct GatedOut {
    Activation activation;
    const float* gate_bias;
    const float* up_bias;
    float* values;
    size_t ld;
    ActBlock* blocks;
    int blocks_per_token;
};

// Logits: scaled, softcapped, their largest kept per lane, stored where somebody wants them.
struct HeadOut {
    float scale;
    float softcap;
    int num_rows;         // of the matrix; lanes beyond do not count
    float* logits;        // (count, ld)
    size_t ld;
    const bool* stored;   // (count,)
    float* best;          // (count, LANES), this thread's own: goes on from what is there
    int32_t* best_group;  // (count, LANES); of equal logits the first group's
};

// The positions that a query sees: [first, last).
struct Visible {
    int first, last;
};

// Queries against one KV head of one layer: the query heads that share it, of one token or of several of a sequence.
struct AttentionTask {
    const float* q;  // (head_dim, q_ld), scaled already; a column is a query
    int q_ld;
    int num_queries, queries_per_token, head_dim, value_dim;
    const Visible* visible;  // per token
    float softcap;
    KvType kv_type;
    int page_size;
    const uint8_t* keys;    // of page 0, laid out as number_bytes says
    const uint8_t* values;
    size_t page_bytes;      // between pages of the pool
    const int32_t* table;
};

struct Kernels {
    const char* name;

    void (*linear)(const Slice&, Type, int columns, const Inputs&, const LinearOut&);
    // Slice of units: up to four gate groups, then as many up groups; `groups` of gate in the whole matrix.
    void (*gated)(const Slice&, Type gate, Type up, int columns, int groups, const Inputs&, const GatedOut&);
    void (*head)(const Slice&, Type, int columns, const Inputs&, const HeadOut&);
    // One row of a packed group to floats.
    void (*unpack_row)(const uint8_t* group, Type, int columns, int lane, float scale, float* out);

    // `width` values of token `token` into its blocks from `first_block` on; tiles have `blocks_per_token` blocks.
    void (*quantize)(const float* x, int width, ActBlock* tiles, int blocks_per_token, int first_block, int token);
    // Over runs of `length` values, `width` in all.
    void (*rms_norm)(const float* x, int width, int length, const float* weight, float eps, float* out);
    void (*layer_norm)(const float* x, int width, const float* weight, const float* bias, float eps, float* out);
    void (*activate)(const float* x, int width, Activation, float* out);
    void (*gate_mul)(const float* gate, const float* up, int width, Activation, float* out);
    void (*add_scaled)(const float* x, const float* y, float scale, int width, float* out);
    void (*scale)(const float* x, float factor, int width, float* out);
    void (*softcap)(const float* x, float cap, int width, float* out);
    // One head in halves; values past `dims` are copied. out may be x. All are multiplied by `scale`.
    void (*rope)(const float* x, int head_dim, int dims, const float* cos, const float* sin, float scale, float* out);

    // Token slot `slot` of one head's room in a page.
    void (*write_keys)(const float* k, int head_dim, int page_size, int slot, KvType, uint8_t* room);
    void (*write_values)(const float* v, int value_dim, int page_size, int slot, KvType, uint8_t* room);
    // Partial of one split: value_stride(value_dim) floats per query; those of a query that sees nothing of it are void.
    void (*attend)(const AttentionTask&, int split, float* partial);
    // state = state merged with partial, both as above.
    void (*merge)(float* state, const float* partial, int num_queries, int value_dim);
    // out (num_queries, value_dim) = values / sum; `sinks` (num_queries,) may be null.
    void (*finish)(const float* state, int num_queries, int value_dim, const float* sinks, float* out);
};

// The named set, or the best this machine runs for "auto"; null for a set that it does not run.
const Kernels* find_kernels(const char* name);
const Kernels& portable_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& neon_kernels();
const Kernels& neon_dotprod_kernels();

inline int value_stride(int value_dim) { return PARTIAL_HEAD + (value_dim + LANES - 1) / LANES * LANES; }

constexpr int PANEL_TOKENS = 128;           // that share weights unpacked into a panel, where a set has panels
constexpr int UNIT_GROUPS = BLOCK / LANES;  // groups of gate, and of up, that make one block of hidden values

}  // namespace localllm
