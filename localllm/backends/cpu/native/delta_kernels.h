// The inner loops of gated delta nets, compiled once per instruction set as those of kernels.h are.
//
// Columns of a matrix are worked on apart and tokens in their order, so a result depends neither on how a prompt was cut
// nor on the number of threads.
#pragma once
#include <cstddef>

namespace localllm {

constexpr int DELTA_COLUMNS = 32;  // of a matrix that a member works on at once: with 128 rows they stay in its cache

// Some columns of one head's matrix, over tokens of one row. Per token: S *= kept; S += k (x) ((v - k S) * strength);
// out = q S.
struct DeltaTask {
    float* state;          // (key_dim, ld), from the first of the columns on
    size_t ld;
    int key_dim, columns, num_tokens;
    const float *queries, *keys;    // (num_tokens, key_dim)
    const float *kept, *strength;   // (num_tokens,)
    const float* values;   // rows `values_ld` apart, from the first of the columns on; out, too
    size_t values_ld;
    float* out;
    size_t out_ld;
};

struct DeltaKernels {
    void (*run)(const DeltaTask&);
    // out = x * scale / |x|; eps is added to the squared length.
    void (*unit)(const float* x, int width, float eps, float scale, float* out);
    // out = x * sigmoid(gate)
    void (*gate)(const float* x, const float* gate, int width, float* out);
};

// Of the set of this name (see kernels.h).
const DeltaKernels& find_delta_kernels(const char* name);
const DeltaKernels& portable_delta_kernels();
const DeltaKernels& avx2_delta_kernels();
const DeltaKernels& avx512_delta_kernels();
const DeltaKernels& neon_delta_kernels();

}  // namespace localllm
