// Attention over pages of keys and values, a fixed split of positions at a time.
//
// S is the type of a stored number: float, the 16 bits of a half, or 8 bits with scales (room_bytes in kernels.h). Keys
// lie (head_dim, page_size): neighbouring positions are one load. Values lie (page_size, value_dim).
//
// Queries of several tokens and heads go through a tile together, which reads and converts a number once for all of
// them. Each score and each dimension of an output has one sum, in the order of dimensions or of positions, so neither
// the tile nor the width of a register changes a bit of it.
#pragma once
#include "kernels.h"
#include "lanes.h"

namespace localllm {
namespace {

template <class L>
INLINE auto read_stored(const uint16_t* p) { return L::read_half(p); }
template <class L>
INLINE auto read_stored(const float* p) { return L::read(p); }
template <class L>
INLINE auto read_stored(const int8_t* p) { return L::read_bytes(p); }
INLINE float number(uint16_t stored) { return from_half(stored); }
INLINE float number(float stored) { return stored; }
INLINE float number(int8_t stored) { return static_cast<float>(stored); }

// body(a number of the stored type)
template <class Body>
INLINE void with_stored(KvType type, Body body) {
    if (type == KvType::f32)
        body(0.0f);
    else if (type == KvType::f16)
        body(uint16_t{0});
    else
        body(int8_t{0});
}

template <class S>
constexpr bool HAS_SCALES = sizeof(S) == 1;

// The scales of a room: (blocks, page_size) halves.
INLINE const uint16_t* scales_of(const int8_t* room, int dims, int page_size) {
    size_t skipped = number_bytes(KvType::q8_0, static_cast<size_t>(dims), static_cast<size_t>(page_size));
    return reinterpret_cast<const uint16_t*>(room + skipped);
}

// ---- writing

// `count` values, at most a block, to 8 bits; returns the bits of the scale. The scale is rounded up, so that nothing is
// cut. What is no number makes the scale one that is none, and with it every result, as it would in halves.
INLINE uint16_t to_bytes(const float* x, int count, int8_t* out) {
    constexpr float LARGEST = 127.0f * 65504.0f;
    float most = 0.0f;
    bool fits = true;
    for (int i = 0; i < count; i++) {
        float size = std::fabs(x[i]);
        fits = fits && size <= LARGEST;
        most = size > most ? size : most;
    }
    float wanted = fits ? most / 127.0f : NAN;
    uint16_t bits = to_half(wanted);
    if (from_half(bits) < wanted) bits++;
    float inverse = fits && most > 0.0f ? 1.0f / from_half(bits) : 0.0f;
    for (int i = 0; i < count; i++) out[i] = fits ? static_cast<int8_t>(std::nearbyintf(x[i] * inverse)) : int8_t{0};
    return bits;
}

// put(first, count, numbers, scale's bits) for each block of up to 32 dimensions
template <class Put>
INLINE void each_block(const float* x, int dims, Put put) {
    for (int first = 0; first < dims; first += BLOCK) {
        int8_t numbers[BLOCK];
        int count = dims - first < BLOCK ? dims - first : BLOCK;
        uint16_t scale = to_bytes(x + first, count, numbers);
        put(first, count, numbers, scale);
    }
}

INLINE void put_number(uint16_t* p, float x) { *p = to_half(x); }
INLINE void put_number(float* p, float x) { *p = x; }
INLINE void put_eight(uint16_t* p, F8 x) { store_half(p, x); }
INLINE void put_eight(float* p, F8 x) { store(p, x); }

template <class S>
INLINE void write_keys_as(const float* k, int head_dim, int page_size, int slot, S* room) {
    if constexpr (HAS_SCALES<S>) {
        auto* scales = const_cast<uint16_t*>(scales_of(room, head_dim, page_size));
        each_block(k, head_dim, [&](int first, int count, const int8_t* numbers, uint16_t scale) {
            for (int i = 0; i < count; i++) room[(first + i) * page_size + slot] = numbers[i];
            scales[first / BLOCK * page_size + slot] = scale;
        });
    } else {
        int d = 0;
        for (; d + LANES <= head_dim; d += LANES) {
            S numbers[LANES];
            put_eight(numbers, load(k + d));
            for (int i = 0; i < LANES; i++) room[(d + i) * page_size + slot] = numbers[i];
        }
        for (; d < head_dim; d++) put_number(room + d * page_size + slot, k[d]);
    }
}

template <class S>
INLINE void write_values_as(const float* v, int value_dim, int page_size, int slot, S* room) {
    S* row = room + slot * value_dim;
    if constexpr (HAS_SCALES<S>) {
        auto* scales = const_cast<uint16_t*>(scales_of(room, value_dim, page_size));
        each_block(v, value_dim, [&](int first, int count, const int8_t* numbers, uint16_t scale) {
            std::memcpy(row + first, numbers, static_cast<size_t>(count));
            scales[first / BLOCK * page_size + slot] = scale;
        });
    } else {
        int d = 0;
        for (; d + LANES <= value_dim; d += LANES) put_eight(row + d, load(v + d));
        for (; d < value_dim; d++) put_number(row + d, v[d]);
    }
}

void write_keys(const float* k, int head_dim, int page_size, int slot, KvType type, uint8_t* room) {
    with_stored(type, [&](auto stored) {
        write_keys_as(k, head_dim, page_size, slot, reinterpret_cast<decltype(stored)*>(room));
    });
}

void write_values(const float* v, int value_dim, int page_size, int slot, KvType type, uint8_t* room) {
    with_stored(type, [&](auto stored) {
        write_values_as(v, value_dim, page_size, slot, reinterpret_cast<decltype(stored)*>(room));
    });
}

// ---- scores

// The room that holds a position.
template <class S>
INLINE const S* room_at(const uint8_t* base, const AttentionTask& task, int position) {
    size_t page = static_cast<size_t>(task.table[position / task.page_size]);
    return reinterpret_cast<const S*>(base + page * task.page_bytes);
}

// Dimensions whose products make one sum: a block where those have scales, else all.
template <class S>
INLINE int sum_length(int dims) { return HAS_SCALES<S> && dims > BLOCK ? BLOCK : dims; }

// scores[r][0 ..] of R queries with V registers of positions from `position` on; none leaves its page.
template <class L, int R, int V, class S>
INLINE void score_run(const AttentionTask& task, const float* q, int position, float* scores) {
    using F = typename L::F;
    constexpr int READ_BYTES = L::COUNT * static_cast<int>(sizeof(S));
    constexpr int STEP = READ_BYTES >= 64 ? 1 : READ_BYTES == 32 ? 2 : 4;  // dimensions in a line of a page's keys
    const int page_size = task.page_size, length = sum_length<S>(task.head_dim), q_ld = task.q_ld;
    const S* keys[V];
    const uint16_t* scales[V];
    const char* coming[V];  // the values of these positions: fetched while their keys are multiplied
    UNROLL for (int v = 0; v < V; v++) {
        int at = position + v * L::COUNT, offset = at % page_size;
        const S* room = room_at<S>(task.keys, task, at);
        keys[v] = room + offset;
        coming[v] = reinterpret_cast<const char*>(room_at<S>(task.values, task, at) + offset * task.value_dim);
        if constexpr (HAS_SCALES<S>) scales[v] = scales_of(room, task.head_dim, page_size) + offset;
    }
    for (int first = 0; first < task.head_dim; first += length) {
        const int end = first + length < task.head_dim ? first + length : task.head_dim;
        F sum[R][V];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) sum[r][v] = L::every(0.0f);
        auto add = [&](int d) __attribute__((always_inline)) {
            const float* x = q + d * q_ld;
            if constexpr (R < V) {  // whichever are fewer stay in registers
                F every[R];
                UNROLL for (int r = 0; r < R; r++) every[r] = L::every(x[r]);
                UNROLL for (int v = 0; v < V; v++) {
                    F k = read_stored<L>(keys[v] + d * page_size);
                    UNROLL for (int r = 0; r < R; r++) sum[r][v] = fma(k, every[r], sum[r][v]);
                }
            } else {
                F k[V];
                UNROLL for (int v = 0; v < V; v++) k[v] = read_stored<L>(keys[v] + d * page_size);
                UNROLL for (int r = 0; r < R; r++)
                    UNROLL for (int v = 0; v < V; v++) sum[r][v] = fma(k[v], L::every(x[r]), sum[r][v]);
            }
#ifdef LOCALLLM_AVX2
            asm volatile("" ::: "memory");  // otherwise all loads move up and the sums spill
#endif
        };
        int d = first;
        for (; d + STEP <= end; d += STEP) {
            UNROLL for (int v = 0; v < V; v++) prefetch(coming[v] + d * READ_BYTES);
            UNROLL for (int i = 0; i < STEP; i++) add(d + i);
        }
        for (; d < end; d++) add(d);
        UNROLL for (int v = 0; v < V; v++)
            UNROLL for (int r = 0; r < R; r++) {
                float* out = scores + r * SPLIT + v * L::COUNT;
                if constexpr (HAS_SCALES<S>) {
                    F scale = L::read_half(scales[v] + first / BLOCK * page_size);
                    store(out, first ? fma(sum[r][v], scale, L::read(out)) : sum[r][v] * scale);
                } else {
                    store(out, sum[r][v]);
                }
            }
    }
}

// Pages that hold no whole register of positions: one position after another.
template <class S>
INLINE void score_one(const AttentionTask& task, int num_queries, const float* q, int position, float* scores) {
    const int page_size = task.page_size, offset = position % page_size, length = sum_length<S>(task.head_dim);
    const S* room = room_at<S>(task.keys, task, position);
    for (int r = 0; r < num_queries; r++) {
        float score = 0.0f;
        for (int first = 0; first < task.head_dim; first += length) {
            float sum = 0.0f;
            for (int d = first; d < task.head_dim && d < first + length; d++)
                sum += number(room[d * page_size + offset]) * q[d * task.q_ld + r];
            if constexpr (HAS_SCALES<S>)
                score += sum * from_half(scales_of(room, task.head_dim, page_size)[first / BLOCK * page_size + offset]);
            else
                score += sum;
        }
        scores[r * SPLIT] = score;
    }
}

// The positions [low, high) of the split and what fills up its first and last register, V registers at a time.
template <class L, int R, int V, class S>
INLINE void score_runs(const AttentionTask& task, const float* q, int start, int low, int high, float* scores) {
    int i = low / L::COUNT * L::COUNT;
    for (; i + (V - 1) * L::COUNT < high; i += V * L::COUNT) score_run<L, R, V, S>(task, q, start + i, scores + i);
    if constexpr (V > 2)
        for (; i + L::COUNT < high; i += 2 * L::COUNT) score_run<L, R, 2, S>(task, q, start + i, scores + i);
    for (; i < high; i += L::COUNT) score_run<L, R, 1, S>(task, q, start + i, scores + i);
}

template <int R, class S>
INLINE void score_all(const AttentionTask& task, const float* q, int start, int low, int high, float* scores) {
    constexpr int V = R > 4 ? 2 : R == 4 && Widest::COUNT == 8 ? 2 : 4;
    if (task.page_size % Widest::COUNT == 0)
        score_runs<Widest, R, V, S>(task, q, start, low, high, scores);
    else if (task.page_size % Eight::COUNT == 0)
        score_runs<Eight, R, 1, S>(task, q, start, low, high, scores);
    else
        for (int i = low; i < high; i++) score_one<S>(task, R, q, start + i, scores + i);
}

// ---- chances

// Softmax in place of the scores [low, high); the others of [begin, end), whole registers, become 0. Returns the
// maximum, stores the sum.
template <class L>
INLINE float soften(float* scores, int begin, int end, int low, int high, float softcap, float* sum) {
    using F = typename L::F;
    // what lies outside may be stale, even NaN
    for (int i = begin; i < low; i++) scores[i] = -INFINITY;
    for (int i = high; i < end; i++) scores[i] = -INFINITY;
    if (softcap != 0.0f) {
        for (int i = begin; i < end; i += L::COUNT)
            store(scores + i, tanh_of<L>(L::read(scores + i) / L::every(softcap)) * L::every(softcap));
        for (int i = begin; i < low; i++) scores[i] = -INFINITY;
        for (int i = high; i < end; i++) scores[i] = -INFINITY;
    }
    F most = L::read(scores + begin);
    for (int i = begin + L::COUNT; i < end; i += L::COUNT) most = max(most, L::read(scores + i));
    float maximum = largest(most);
    F sums = L::every(0.0f), offset = L::every(maximum);
    for (int i = begin; i < end; i += L::COUNT) {
        F power = exp_of<L>(L::read(scores + i) - offset);
        sums = sums + power;
        store(scores + i, power);
    }
    *sum = total(sums);
    return maximum;
}

// ---- values

// The keys of the next split, a page's worth per page of values; harmless addresses where there is none.
INLINE const char* coming_keys(const AttentionTask& task, int position, int last) {
    int coming = position + SPLIT < last ? position + SPLIT : position;
    return reinterpret_cast<const char*>(room_at<char>(task.keys, task, coming));
}

// What a tile weighs: chances[r][i] for the positions [low, high) of the split at `start`. `last`: of the context.
struct Weighing {
    int start, low, high, last;
    const float* chances;
    float* out;
    int out_stride;
};

// out[r][first ..] = chances . values, W registers of the value at a time.
template <class L, int R, int W, class S>
INLINE void weigh(const AttentionTask& task, const Weighing& work, int first) {
    using F = typename L::F;
    const int value_dim = task.value_dim, page_size = task.page_size;
    // the first pass over the values fetches for all
    const int key_bytes = first ? 0 : task.head_dim * static_cast<int>(sizeof(S));
    F sum[R][W];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int w = 0; w < W; w++) sum[r][w] = L::every(0.0f);
    for (int i = work.low; i < work.high;) {
        int offset = (work.start + i) % page_size, run = page_size - offset;
        if (run > work.high - i) run = work.high - i;
        const S* values = room_at<S>(task.values, task, work.start + i) + offset * value_dim + first;
        const char* coming = coming_keys(task, work.start + i, first ? 0 : work.last) + offset * key_bytes;
        const float* chances = work.chances + i;
        for (const float* end = chances + run; chances < end; chances++, values += value_dim, coming += key_bytes) {
            for (int line = 0; line < key_bytes; line += 64) prefetch(coming + line);
            if constexpr (R < W) {
                F chance[R];
                UNROLL for (int r = 0; r < R; r++) chance[r] = L::every(chances[r * SPLIT]);
                UNROLL for (int w = 0; w < W; w++) {
                    F v = read_stored<L>(values + w * L::COUNT);
                    UNROLL for (int r = 0; r < R; r++) sum[r][w] = fma(chance[r], v, sum[r][w]);
                }
            } else {
                F v[W];
                UNROLL for (int w = 0; w < W; w++) v[w] = read_stored<L>(values + w * L::COUNT);
                UNROLL for (int r = 0; r < R; r++) {
                    F chance = L::every(chances[r * SPLIT]);
                    UNROLL for (int w = 0; w < W; w++) sum[r][w] = fma(chance, v[w], sum[r][w]);
                }
            }
#ifdef LOCALLLM_AVX2
            asm volatile("" ::: "memory");  // as above
#endif
        }
        i += run;
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int w = 0; w < W; w++) store(work.out + r * work.out_stride + first + w * L::COUNT, sum[r][w]);
}

// The last few numbers, which a whole load would run over.
template <int R, class S>
INLINE void weigh_rest(const AttentionTask& task, const Weighing& work, int first, int end) {
    for (int d = first; d < end; d++)
        for (int r = 0; r < R; r++) {
            float sum = 0.0f;
            for (int i = work.low; i < work.high; i++) {
                const S* room = room_at<S>(task.values, task, work.start + i);
                const S* row = room + (work.start + i) % task.page_size * task.value_dim;
                sum += work.chances[r * SPLIT + i] * number(row[d]);
            }
            work.out[r * work.out_stride + d] = sum;
        }
}

// Dimensions [first, end) of the values.
template <int R, class S>
INLINE void weigh_span(const AttentionTask& task, const Weighing& work, int first, int end) {
    constexpr bool FEW = Widest::COUNT == 8;  // registers
    constexpr int W = R > 6 || (FEW && R > 3) ? 2 : FEW && R == 1 ? 8 : 4;
    constexpr int COUNT = Widest::COUNT;
    int d = first;
    for (; d + W * COUNT <= end; d += W * COUNT) weigh<Widest, R, W, S>(task, work, d);
    if constexpr (W > 2)
        for (; d + 2 * COUNT <= end; d += 2 * COUNT) weigh<Widest, R, 2, S>(task, work, d);
    for (; d + COUNT <= end; d += COUNT) weigh<Widest, R, 1, S>(task, work, d);
    if constexpr (COUNT > Eight::COUNT)
        for (; d + Eight::COUNT <= end; d += Eight::COUNT) weigh<Eight, R, 1, S>(task, work, d);
    if (d < end) weigh_rest<R, S>(task, work, d, end);
}

// scaled[r][i] = chances[r][i] * the scale of block `block` of position i
template <int R>
INLINE void scale_chances(const AttentionTask& task, const Weighing& work, int block, float* scaled) {
    const int page_size = task.page_size;
    for (int i = work.low; i < work.high;) {
        int offset = (work.start + i) % page_size, run = page_size - offset;
        if (run > work.high - i) run = work.high - i;
        const int8_t* room = room_at<int8_t>(task.values, task, work.start + i);
        const uint16_t* scales = scales_of(room, task.value_dim, page_size) + block * page_size + offset;
        int n = 0;
        for (; n + LANES <= run; n += LANES) {
            F8 scale = load_half(scales + n);
            UNROLL for (int r = 0; r < R; r++) {
                int at = r * SPLIT + i + n;
                store(scaled + at, load(work.chances + at) * scale);
            }
        }
        for (; n < run; n++)
            for (int r = 0; r < R; r++) {
                int at = r * SPLIT + i + n;
                scaled[at] = work.chances[at] * from_half(scales[n]);
            }
        i += run;
    }
}

template <int R, class S>
INLINE void weigh_all(const AttentionTask& task, const Weighing& work) {
    if constexpr (HAS_SCALES<S>) {
        alignas(64) float scaled[R * SPLIT];
        Weighing part = work;
        part.chances = scaled;
        for (int first = 0; first < task.value_dim; first += BLOCK) {
            scale_chances<R>(task, work, first / BLOCK, scaled);
            int end = first + BLOCK < task.value_dim ? first + BLOCK : task.value_dim;
            weigh_span<R, S>(task, part, first, end);
        }
    } else {
        weigh_span<R, S>(task, work, 0, task.value_dim);
    }
}

// ---- a tile of queries against a split

template <class S, int R>
void attend_tile(const AttentionTask& task, int split, int row, float* partial) {
    alignas(64) float scores[R * SPLIT];
    const int start = split * SPLIT, stride = value_stride(task.value_dim);
    Visible seen[R];
    for (int r = 0; r < R; r++) seen[r] = task.visible[(row + r) / task.queries_per_token];
    int first = seen[0].first, last = seen[0].last;
    for (int r = 1; r < R; r++) {
        first = seen[r].first < first ? seen[r].first : first;
        last = seen[r].last > last ? seen[r].last : last;
    }
    const int low = first > start ? first - start : 0, high = last - start < SPLIT ? last - start : SPLIT;
    if (low >= high) return;
    score_all<R, S>(task, task.q + row, start, low, high, scores);

    constexpr int COUNT = Widest::COUNT;
    const int begin = low / COUNT * COUNT, end = (high + COUNT - 1) / COUNT * COUNT;
    for (int r = 0; r < R; r++) {
        int from = seen[r].first > start + low ? seen[r].first - start : low;
        int to = seen[r].last < start + high ? seen[r].last - start : high;
        float* own = scores + r * SPLIT;
        if (from < to)
            partial[r * stride] = soften<Widest>(own, begin, end, from, to, task.softcap, partial + r * stride + 1);
        else
            for (int i = begin; i < end; i++) own[i] = 0.0f;
    }
    weigh_all<R, S>(task, {start, low, high, last, scores, partial + PARTIAL_HEAD, stride});
}

// Queries of the largest tile: as many as there are registers for their sums.
#if defined(LOCALLLM_AVX512)
constexpr int LARGEST_TILE = 12;
#elif defined(LOCALLLM_AVX2) || defined(LOCALLLM_NEON)
constexpr int LARGEST_TILE = 6;
#else
constexpr int LARGEST_TILE = 4;
#endif

// How many of the queries that are left go through a tile together; none shall stay alone.
INLINE int next_tile(int left) {
    if (LARGEST_TILE >= 12 && left >= 12) return 12;
    if (LARGEST_TILE >= 6 && left >= 6 && left != 7 && left != 8) return 6;  // these go as fours
    if (left == 5) return 3;
    return left < 4 ? left : 4;
}

template <class S>
void attend_stored(const AttentionTask& task, int split, float* partial) {
    const int stride = value_stride(task.value_dim);
    for (int row = 0, count; row < task.num_queries; row += count) {
        float* out = partial + row * stride;
        count = next_tile(task.num_queries - row);
        switch (count) {
            case 1: attend_tile<S, 1>(task, split, row, out); break;
            case 2: attend_tile<S, 2>(task, split, row, out); break;
            case 3: attend_tile<S, 3>(task, split, row, out); break;
            case 4: attend_tile<S, 4>(task, split, row, out); break;
            case 6:
                if constexpr (LARGEST_TILE >= 6) attend_tile<S, 6>(task, split, row, out);
                break;
            case 12:
                if constexpr (LARGEST_TILE >= 12) attend_tile<S, 12>(task, split, row, out);
                break;
        }
    }
}

void attend(const AttentionTask& task, int split, float* partial) {
    with_stored(task.kv_type, [&](auto stored) { attend_stored<decltype(stored)>(task, split, partial); });
}

void merge(float* state, const float* partial, int num_queries, int value_dim) {
    int stride = value_stride(value_dim);
    for (int r = 0; r < num_queries; r++, state += stride, partial += stride) {
        float most = state[0] > partial[0] ? state[0] : partial[0];
        float old_share = exp1(state[0] - most), new_share = exp1(partial[0] - most);
        state[0] = most;
        state[1] = state[1] * old_share + partial[1] * new_share;
        for (int d = PARTIAL_HEAD; d < stride; d += LANES)
            store(state + d, fma(load(partial + d), all(new_share), load(state + d) * all(old_share)));
    }
}

void finish(const float* state, int num_queries, int value_dim, const float* sinks, float* out) {
    int stride = value_stride(value_dim);
    for (int r = 0; r < num_queries; r++, state += stride, out += value_dim) {
        float factor = 1.0f, sum = state[1];
        if (sinks) {
            float most = state[0] > sinks[r] ? state[0] : sinks[r];
            factor = exp1(state[0] - most);
            sum = sum * factor + exp1(sinks[r] - most);
        }
        factor /= sum;
        int d = 0;
        for (; d + LANES <= value_dim; d += LANES) store(out + d, load(state + PARTIAL_HEAD + d) * all(factor));
        for (; d < value_dim; d++) out[d] = state[PARTIAL_HEAD + d] * factor;
    }
}

}  // namespace
}  // namespace localllm
