// Attention over pages of keys and values, a fixed split of positions at a time.
//
// Pages hold halves or floats: S is the type of a stored number, a half being its 16 bits. Keys lie (head_dim,
// page_size): eight positions are one load. Values lie (page_size, value_dim).
#pragma once
#include "kernels.h"
#include "lanes.h"

namespace localllm {
namespace {

template <int N>
struct Index {
    static constexpr int value = N;
};

INLINE F8 load_stored(const uint16_t* p) { return load_half(p); }
INLINE F8 load_stored(const float* p) { return load(p); }
INLINE void store_stored(uint16_t* p, F8 x) { store_half(p, x); }
INLINE void store_stored(float* p, F8 x) { store(p, x); }
INLINE float number(uint16_t stored) { return from_half(stored); }
INLINE float number(float stored) { return stored; }
INLINE void put(uint16_t* p, float x) { *p = to_half(x); }
INLINE void put(float* p, float x) { *p = x; }

// body(a number of the stored type)
template <class Body>
INLINE void with_stored(KvType type, Body body) {
    if (type == KvType::f32)
        body(0.0f);
    else
        body(uint16_t{0});
}

template <class S>
INLINE void write_keys_as(const float* k, int head_dim, int page_size, S* keys) {
    int d = 0;
    for (; d + LANES <= head_dim; d += LANES) {
        S numbers[LANES];
        store_stored(numbers, load(k + d));
        for (int i = 0; i < LANES; i++) keys[(d + i) * page_size] = numbers[i];
    }
    for (; d < head_dim; d++) put(keys + d * page_size, k[d]);
}

template <class S>
INLINE void write_values_as(const float* v, int value_dim, S* values) {
    int d = 0;
    for (; d + LANES <= value_dim; d += LANES) store_stored(values + d, load(v + d));
    for (; d < value_dim; d++) put(values + d, v[d]);
}

void write_keys(const float* k, int head_dim, int page_size, int slot, KvType type, uint8_t* page) {
    with_stored(type, [&](auto stored) {
        write_keys_as(k, head_dim, page_size, reinterpret_cast<decltype(stored)*>(page) + slot);
    });
}

void write_values(const float* v, int value_dim, int slot, KvType type, uint8_t* page) {
    with_stored(type, [&](auto stored) {
        write_values_as(v, value_dim, reinterpret_cast<decltype(stored)*>(page) + slot * value_dim);
    });
}

template <class S>
INLINE const S* page_at(const uint8_t* base, const AttentionTask& task, int position) {
    size_t page = static_cast<size_t>(task.table[position / task.page_size]);
    return reinterpret_cast<const S*>(base + page * task.page_bytes);
}

// scores[h][0..8V) = q[h] . keys of 8V positions in one page. CHAINS sums per score hide the latency of the adds.
template <int H, int V, int CHAINS, class S>
INLINE void score_run(const AttentionTask& task, const float* q, const S* keys, const char* coming, float* scores) {
    constexpr int READ_BYTES = V * LANES * static_cast<int>(sizeof(S));
    const int head_dim = task.head_dim, page_size = task.page_size;
    F8 sum[CHAINS][H][V];
    UNROLL for (int c = 0; c < CHAINS; c++)
        UNROLL for (int h = 0; h < H; h++)
            UNROLL for (int v = 0; v < V; v++) sum[c][h][v] = all(0.0f);
    auto add = [&](int d, auto chain) __attribute__((always_inline)) {
        constexpr int c = decltype(chain)::value;
        F8 k[V];
        UNROLL for (int v = 0; v < V; v++) k[v] = load_stored(keys + d * page_size + v * LANES);
        UNROLL for (int h = 0; h < H; h++) {
            F8 x = all_at(q + h * head_dim + d);
            UNROLL for (int v = 0; v < V; v++) sum[c][h][v] = fma(k[v], x, sum[c][h][v]);
        }
#ifdef LOCALLLM_AVX2
        asm volatile("" ::: "memory");  // otherwise all loads move up and the sums spill
#endif
    };
    int d = 0;
    for (; d + CHAINS <= head_dim; d += CHAINS) {
        prefetch(coming + d * READ_BYTES);
        add(d, Index<0>{});
        if constexpr (CHAINS > 1) add(d + 1, Index<1>{});
        if constexpr (CHAINS > 2) add(d + 2, Index<2>{});
        if constexpr (CHAINS > 2) add(d + 3, Index<3>{});
    }
    for (; d < head_dim; d++) add(d, Index<0>{});
    UNROLL for (int h = 0; h < H; h++)
        UNROLL for (int v = 0; v < V; v++) {
            F8 score = sum[0][h][v];
            UNROLL for (int c = 1; c < CHAINS; c++) score = score + sum[c][h][v];
            store(scores + h * SPLIT + v * LANES, score);
        }
}

// Pages that hold no whole lane of positions: one position after another.
template <class S>
INLINE void score_one(const AttentionTask& task, int num_heads, const float* q, int position, float* scores) {
    const S* keys = page_at<S>(task.keys, task, position) + position % task.page_size;
    for (int h = 0; h < num_heads; h++) {
        float sum = 0.0f;
        for (int d = 0; d < task.head_dim; d++) sum += number(keys[d * task.page_size]) * q[h * task.head_dim + d];
        scores[h * SPLIT] = sum;
    }
}

// Softmax of the visible scores in place; entries outside [low, high) become 0. Returns the maximum, stores the sum.
INLINE float soften(float* scores, int low, int high, int padded, float softcap, float* sum) {
    if (softcap != 0.0f)
        for (int i = low / LANES * LANES; i < padded; i += LANES)
            store(scores + i, tanh8(load(scores + i) / all(softcap)) * all(softcap));
    // what lies outside may be stale, even NaN
    for (int i = low / LANES * LANES; i < low; i++) scores[i] = -INFINITY;
    for (int i = high; i < padded; i++) scores[i] = -INFINITY;
    F8 most = load(scores + low / LANES * LANES);
    for (int i = low / LANES * LANES; i < padded; i += LANES) most = max(most, load(scores + i));
    float maximum = largest(most);
    F8 sums = all(0.0f), offset = all(maximum);
    for (int i = low / LANES * LANES; i < padded; i += LANES) {
        F8 power = exp8(load(scores + i) - offset);
        sums = sums + power;
        store(scores + i, power);
    }
    *sum = total(sums);
    return maximum;
}

// The keys of the next split, a page's worth per page of values; harmless addresses where there is none.
INLINE const char* coming_keys(const AttentionTask& task, int position, int first) {
    int coming = position + SPLIT < task.last && !first ? position + SPLIT : position;
    return reinterpret_cast<const char*>(page_at<char>(task.keys, task, coming));
}

// out[h][8 * first ...] = chances . values over [low, high) of the split, W vectors of the value at a time.
template <class S, int H, int W>
INLINE void weigh(const AttentionTask& task, int start, int low, int high, int first, const float* scores, float* out,
                  int out_stride) {
    const int value_dim = task.value_dim, page_size = task.page_size;
    // the first pass over the values fetches for all
    const int key_bytes = first ? 0 : task.head_dim * static_cast<int>(sizeof(S));
    F8 sum[H][W];
    UNROLL for (int h = 0; h < H; h++)
        UNROLL for (int w = 0; w < W; w++) sum[h][w] = all(0.0f);
    for (int i = low; i < high;) {
        int offset = (start + i) % page_size, run = page_size - offset;
        if (run > high - i) run = high - i;
        const S* values = page_at<S>(task.values, task, start + i) + offset * value_dim + first * LANES;
        const char* coming = coming_keys(task, start + i, first) + offset * key_bytes;
        const float* chances = scores + i;
        for (const float* end = chances + run; chances < end; chances++, values += value_dim, coming += key_bytes) {
            if (key_bytes) prefetch(coming);
            if (key_bytes > 64) prefetch(coming + 64);
            for (int line = 128; line < key_bytes; line += 64) prefetch(coming + line);
            UNROLL for (int w = 0; w < W; w++) {
                F8 v = load_stored(values + w * LANES);
#ifdef LOCALLLM_AVX2
                KEEP(v);
#endif
                UNROLL for (int h = 0; h < H; h++) sum[h][w] = fma(all_at(chances + h * SPLIT), v, sum[h][w]);
            }
        }
        i += run;
    }
    UNROLL for (int h = 0; h < H; h++)
        UNROLL for (int w = 0; w < W; w++) store(out + h * out_stride + (first + w) * LANES, sum[h][w]);
}

// The last value_dim % 8 numbers, which a whole load would run over.
template <class S>
INLINE void weigh_rest(const AttentionTask& task, int num_heads, int start, int low, int high, const float* scores,
                       float* out, int out_stride) {
    for (int d = task.value_dim / LANES * LANES; d < task.value_dim; d++)
        for (int h = 0; h < num_heads; h++) {
            float sum = 0.0f;
            for (int i = low; i < high; i++) {
                const S* page = page_at<S>(task.values, task, start + i);
                sum += scores[h * SPLIT + i] * number(page[(start + i) % task.page_size * task.value_dim + d]);
            }
            out[h * out_stride + d] = sum;
        }
}

template <class S, int H>
INLINE void attend_heads(const AttentionTask& task, int split, const float* q, float* partial) {
    constexpr int CHAINS = H == 1 ? 4 : H == 4 ? 1 : 2;
    constexpr int WIDE = H == 1 ? 8 : H == 4 ? 2 : 4;
    alignas(64) float scores[H * SPLIT];
    int start = split * SPLIT, stride = value_stride(task.value_dim);
    int low = task.first > start ? task.first - start : 0;
    int high = task.last - start < SPLIT ? task.last - start : SPLIT;
    int padded = (high + LANES - 1) / LANES * LANES;

    if (task.page_size % (2 * LANES) == 0) {
        for (int i = low / (2 * LANES) * (2 * LANES); i < high; i += 2 * LANES) {
            int offset = (start + i) % task.page_size;
            const S* values = page_at<S>(task.values, task, start + i) + offset * task.value_dim;
            const S* keys = page_at<S>(task.keys, task, start + i) + offset;
            score_run<H, 2, CHAINS>(task, q, keys, reinterpret_cast<const char*>(values), scores + i);
        }
    } else if (task.page_size == LANES) {
        for (int i = low / LANES * LANES; i < high; i += LANES) {
            const S* keys = page_at<S>(task.keys, task, start + i);
            score_run<H, 1, CHAINS>(task, q, keys, reinterpret_cast<const char*>(keys), scores + i);
        }
    } else {
        for (int i = low; i < high; i++) score_one<S>(task, H, q, start + i, scores + i);
        for (int h = 0; h < H; h++)
            for (int i = high; i < padded; i++) scores[h * SPLIT + i] = 0.0f;
        for (int h = 0; h < H; h++)
            for (int i = low / LANES * LANES; i < low; i++) scores[h * SPLIT + i] = 0.0f;
    }
    for (int h = 0; h < H; h++)
        partial[h * stride] = soften(scores + h * SPLIT, low, high, padded, task.softcap, partial + h * stride + 1);
    float* out = partial + PARTIAL_HEAD;
    int vectors = task.value_dim / LANES, w = 0;
    for (; w + WIDE <= vectors; w += WIDE) weigh<S, H, WIDE>(task, start, low, high, w, scores, out, stride);
    for (; w < vectors; w++) weigh<S, H, 1>(task, start, low, high, w, scores, out, stride);
    if (task.value_dim % LANES) weigh_rest<S>(task, H, start, low, high, scores, out, stride);
}

template <class S>
void attend_stored(const AttentionTask& task, int split, float* partial) {
    int stride = value_stride(task.value_dim);
    for (int h = 0; h < task.num_shared;) {
        const float* q = task.q + h * task.head_dim;
        float* out = partial + h * stride;
        int left = task.num_shared - h;
        if (left >= 4 && left != 5 && left != 6) {  // 5 and 6 go as threes
            attend_heads<S, 4>(task, split, q, out);
            h += 4;
        } else if (left >= 3) {
            attend_heads<S, 3>(task, split, q, out);
            h += 3;
        } else if (left == 2) {
            attend_heads<S, 2>(task, split, q, out);
            h += 2;
        } else {
            attend_heads<S, 1>(task, split, q, out);
            h += 1;
        }
    }
}

void attend(const AttentionTask& task, int split, float* partial) {
    with_stored(task.kv_type, [&](auto stored) { attend_stored<decltype(stored)>(task, split, partial); });
}

void merge(float* state, const float* partial, int num_shared, int value_dim) {
    int stride = value_stride(value_dim);
    for (int h = 0; h < num_shared; h++, state += stride, partial += stride) {
        float most = state[0] > partial[0] ? state[0] : partial[0];
        float old_share = exp1(state[0] - most), new_share = exp1(partial[0] - most);
        state[0] = most;
        state[1] = state[1] * old_share + partial[1] * new_share;
        for (int d = PARTIAL_HEAD; d < stride; d += LANES)
            store(state + d, fma(load(partial + d), all(new_share), load(state + d) * all(old_share)));
    }
}

void finish(const float* state, int num_shared, int value_dim, const float* sinks, float* out) {
    int stride = value_stride(value_dim);
    for (int h = 0; h < num_shared; h++, state += stride, out += value_dim) {
        float factor = 1.0f, sum = state[1];
        if (sinks) {
            float most = state[0] > sinks[h] ? state[0] : sinks[h];
            factor = exp1(state[0] - most);
            sum = sum * factor + exp1(sinks[h] - most);
        }
        factor /= sum;
        int d = 0;
        for (; d + LANES <= value_dim; d += LANES) store(out + d, load(state + PARTIAL_HEAD + d) * all(factor));
        for (; d < value_dim; d++) out[d] = state[PARTIAL_HEAD + d] * factor;
    }
}

}  // namespace
}  // namespace localllm
