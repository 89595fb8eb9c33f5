// What state_space_kernels.h promises, over the lanes of an instruction set. Everything but the table has internal linkage.
#pragma once
#include "lanes.h"
#include "state_space_kernels.h"

namespace localllm {
namespace {

// N registers of columns, T tokens in one pass over the matrix: its rows are loaded and stored once for all of them.
template <class L, int N, int T>
struct StateSpaceColumns {
    using F = typename L::F;

    static void tokens(const StateSpaceTask& task, size_t first) {
        F brought[T][N], sums[T][N], kept[T];
        const float *written[T], *read[T];
        UNROLL for (int t = 0; t < T; t++) {
            size_t token = first + static_cast<size_t>(t);
            kept[t] = L::every(task.kept[token]);
            written[t] = task.written + token * task.x_ld;
            read[t] = task.read + token * task.x_ld;
            F step = L::every(task.steps[token]);
            UNROLL for (int i = 0; i < N; i++) {
                brought[t][i] = L::read(task.values + token * task.x_ld + i * L::COUNT) * step;
                sums[t][i] = L::every(0.0f);
            }
        }
        for (int row = 0; row < task.state_dim; row++) {
            float* at = task.state + static_cast<size_t>(row) * task.ld;
            F state[N];
            UNROLL for (int i = 0; i < N; i++) state[i] = L::read(at + i * L::COUNT);
            UNROLL for (int t = 0; t < T; t++) {
                F in = L::every(written[t][row]), out = L::every(read[t][row]);
                UNROLL for (int i = 0; i < N; i++) {
                    state[i] = fma(in, brought[t][i], state[i] * kept[t]);
                    sums[t][i] = fma(out, state[i], sums[t][i]);
                }
            }
            UNROLL for (int i = 0; i < N; i++) store(at + i * L::COUNT, state[i]);
        }
        F skip = L::every(task.skip);
        UNROLL for (int t = 0; t < T; t++) {
            size_t token = first + static_cast<size_t>(t);
            UNROLL for (int i = 0; i < N; i++)
                store(task.out + token * task.out_ld + i * L::COUNT,
                      fma(skip, L::read(task.values + token * task.x_ld + i * L::COUNT), sums[t][i]));
        }
    }

    static void run(const StateSpaceTask& task) {
        size_t t = 0, count = static_cast<size_t>(task.num_tokens);
        for (; t + T <= count; t += T) tokens(task, t);
        for (; t < count; t++) StateSpaceColumns<L, N, 1>::tokens(task, t);
    }
};

// One column where no register fits.
void state_space_column(const StateSpaceTask& task) {
    for (size_t t = 0; t < static_cast<size_t>(task.num_tokens); t++) {
        const float *written = task.written + t * task.x_ld, *read = task.read + t * task.x_ld;
        float value = task.values[t * task.x_ld], brought = value * task.steps[t], sum = 0.0f;
        for (int row = 0; row < task.state_dim; row++) {
            float& at = task.state[static_cast<size_t>(row) * task.ld];
            at = at * task.kept[t] + written[row] * brought;
            sum += read[row] * at;
        }
        task.out[t * task.out_ld] = sum + task.skip * value;
    }
}

INLINE void move_on(StateSpaceTask& task, int columns) {
    task.state += columns;
    task.values += columns;
    task.out += columns;
    task.columns -= columns;
}

void state_space_run(const StateSpaceTask& whole) {
    // as many sums and products of values with steps as there are registers for
    constexpr int TOKENS = Widest::COUNT == 16 ? 4 : 2;
    StateSpaceTask task = whole;
    for (; task.columns >= 2 * Widest::COUNT; move_on(task, 2 * Widest::COUNT)) StateSpaceColumns<Widest, 2, TOKENS>::run(task);
    for (; task.columns >= Eight::COUNT; move_on(task, Eight::COUNT)) StateSpaceColumns<Eight, 1, TOKENS>::run(task);
    for (; task.columns; move_on(task, 1)) state_space_column(task);
}

}  // namespace

const StateSpaceKernels& STATE_SPACE_SET() {
    static const StateSpaceKernels table = {state_space_run};
    return table;
}

}  // namespace localllm
