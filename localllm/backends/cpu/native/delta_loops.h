// What delta_kernels.h promises, over the lanes of an instruction set. Everything but the table has internal linkage.
#pragma once
#include <cmath>

#include "delta_kernels.h"
#include "lanes.h"

namespace localllm {
namespace {

// N registers of columns; rows are summed in CHAINS, so that additions need not wait for each other.
template <class L, int N, int CHAINS>
struct DeltaColumns {
    using F = typename L::F;

    // The chains' sums into the first, half by half.
    template <int HALF_CHAINS = CHAINS / 2>
    static INLINE void add_up(F (&sums)[CHAINS][N]) {
        if constexpr (HALF_CHAINS > 0) {
            UNROLL for (int c = 0; c < HALF_CHAINS; c++)
                UNROLL for (int i = 0; i < N; i++) sums[c][i] = sums[c][i] + sums[c + HALF_CHAINS][i];
            add_up<HALF_CHAINS / 2>(sums);
        }
    }

    static INLINE void read(const float* state, size_t ld, int rows, const float* key, F (&sums)[CHAINS][N]) {
        UNROLL for (int c = 0; c < CHAINS; c++)
            UNROLL for (int i = 0; i < N; i++) sums[c][i] = L::every(0.0f);
        int row = 0;
        for (; row + CHAINS <= rows; row += CHAINS)
            UNROLL for (int c = 0; c < CHAINS; c++) {
                F at = L::every(key[row + c]);
                const float* from = state + static_cast<size_t>(row + c) * ld;
                UNROLL for (int i = 0; i < N; i++) sums[c][i] = fma(at, L::read(from + i * L::COUNT), sums[c][i]);
            }
        for (; row < rows; row++)
            UNROLL for (int i = 0; i < N; i++) {
                const float* from = state + static_cast<size_t>(row) * ld + i * L::COUNT;
                sums[0][i] = fma(L::every(key[row]), L::read(from), sums[0][i]);
            }
        add_up(sums);
    }

    static INLINE void change(float* from, F kept, F key, F query, const F (&correction)[N], F (&sums)[N]) {
        UNROLL for (int i = 0; i < N; i++) {
            F next = fma(key, correction[i], L::read(from + i * L::COUNT) * kept);
            store(from + i * L::COUNT, next);
            sums[i] = fma(query, next, sums[i]);
        }
    }

    static void token(const DeltaTask& task, size_t t) {
        size_t own = t * static_cast<size_t>(task.key_dim);
        const float *key = task.keys + own, *query = task.queries + own;
        F sums[CHAINS][N], correction[N];
        read(task.state, task.ld, task.key_dim, key, sums);
        F kept = L::every(task.kept[t]), strength = L::every(task.strength[t]);
        UNROLL for (int i = 0; i < N; i++)
            correction[i] = (L::read(task.values + t * task.values_ld + i * L::COUNT) - sums[0][i] * kept) * strength;
        UNROLL for (int c = 0; c < CHAINS; c++)
            UNROLL for (int i = 0; i < N; i++) sums[c][i] = L::every(0.0f);
        int row = 0;
        for (; row + CHAINS <= task.key_dim; row += CHAINS)
            UNROLL for (int c = 0; c < CHAINS; c++) {
                float* at = task.state + static_cast<size_t>(row + c) * task.ld;
                change(at, kept, L::every(key[row + c]), L::every(query[row + c]), correction, sums[c]);
            }
        for (; row < task.key_dim; row++) {
            float* at = task.state + static_cast<size_t>(row) * task.ld;
            change(at, kept, L::every(key[row]), L::every(query[row]), correction, sums[0]);
        }
        add_up(sums);
        UNROLL for (int i = 0; i < N; i++) store(task.out + t * task.out_ld + i * L::COUNT, sums[0][i]);
    }

    static void run(const DeltaTask& task) {
        for (int t = 0; t < task.num_tokens; t++) token(task, static_cast<size_t>(t));
    }
};

// One column where no register fits.
void delta_column(const DeltaTask& task) {
    for (size_t t = 0; t < static_cast<size_t>(task.num_tokens); t++) {
        size_t own = t * static_cast<size_t>(task.key_dim);
        const float *key = task.keys + own, *query = task.queries + own;
        float said = 0.0f, out = 0.0f;
        for (int row = 0; row < task.key_dim; row++) said += key[row] * task.state[static_cast<size_t>(row) * task.ld];
        float correction = (task.values[t * task.values_ld] - said * task.kept[t]) * task.strength[t];
        for (int row = 0; row < task.key_dim; row++) {
            float& at = task.state[static_cast<size_t>(row) * task.ld];
            at = at * task.kept[t] + key[row] * correction;
            out += query[row] * at;
        }
        task.out[t * task.out_ld] = out;
    }
}

// The next columns of a task.
INLINE void move_on(DeltaTask& task, int columns) {
    task.state += columns;
    task.values += columns;
    task.out += columns;
    task.columns -= columns;
}

void delta_run(const DeltaTask& whole) {
    constexpr int N = DELTA_COLUMNS / Widest::COUNT;
    DeltaTask task = whole;
    for (; task.columns >= DELTA_COLUMNS; move_on(task, DELTA_COLUMNS)) DeltaColumns<Widest, N, 8 / N>::run(task);
    for (; task.columns >= Eight::COUNT; move_on(task, Eight::COUNT)) DeltaColumns<Eight, 1, 8>::run(task);
    for (; task.columns; move_on(task, 1)) delta_column(task);
}

void delta_unit(const float* x, int width, float eps, float scale, float* out) {
    F8 sums = all(0.0f);
    int i = 0;
    for (; i + 8 <= width; i += 8) sums = fma(load(x + i), load(x + i), sums);
    float squares = total(sums);
    for (; i < width; i++) squares += x[i] * x[i];
    float factor = scale / std::sqrt(squares + eps);
    for (i = 0; i + 8 <= width; i += 8) store(out + i, load(x + i) * all(factor));
    for (; i < width; i++) out[i] = x[i] * factor;
}

void delta_gate(const float* x, const float* gate, int width, float* out) {
    int i = 0;
    for (; i + 8 <= width; i += 8) store(out + i, load(x + i) * sigmoid8(load(gate + i)));
    if (i == width) return;
    float rest[8] = {}, opened[8];
    for (int c = 0; i + c < width; c++) rest[c] = gate[i + c];
    store(opened, sigmoid8(load(rest)));
    for (int c = 0; i + c < width; c++) out[i + c] = x[i + c] * opened[c];
}

}  // namespace

const DeltaKernels& DELTA_SET() {
    static const DeltaKernels table = {delta_run, delta_unit, delta_gate};
    return table;
}

}  // namespace localllm
