// The inner loops of state spaces, compiled once per instruction set as those of kernels.h are.
//
// Columns of a matrix are worked on apart and tokens in their order, each with the same steps whether alone or beside
// others, so a result depends neither on how a prompt was cut nor on the number of threads.
#pragma once
#include <cstddef>

namespace localllm {

constexpr int STATE_SPACE_COLUMNS = 32;  // of a matrix that a member works on at once: they stay in its cache

// Some columns of one head's matrix, over tokens of one row. Per token: S *= kept; S += written (x) (v * step);
// out = read S + v * skip.
struct StateSpaceTask {
    float* state;  // (state_dim, ld), from the first of the columns on
    size_t ld;
    int state_dim, columns, num_tokens;
    const float *written, *read;  // of each token state_dim values, x_ld apart; values, too
    const float* values;          // from the first of the columns on; out, too
    size_t x_ld;
    const float *kept, *steps;    // (num_tokens,)
    float skip;
    float* out;
    size_t out_ld;
};

struct StateSpaceKernels {
    void (*run)(const StateSpaceTask&);
};

// Of the set of this name (see kernels.h).
const StateSpaceKernels& find_state_space_kernels(const char* name);
const StateSpaceKernels& portable_state_space_kernels();
const StateSpaceKernels& avx2_state_space_kernels();
const StateSpaceKernels& avx512_state_space_kernels();
const StateSpaceKernels& neon_state_space_kernels();

}  // namespace localllm
