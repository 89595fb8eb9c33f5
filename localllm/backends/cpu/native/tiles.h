// Products of R groups of packed rows with T tokens. Sums go through memory, so a tile may use every register.
//
// All tiles of a type compute the same float operations per (row, token): block by block, both halves joined as integers,
// d * a first, then the offset.
#pragma once
#include "kernels.h"
#include "lanes.h"
#include "words.h"

namespace localllm {
namespace {

// How far ahead weights are asked for. What the machine foresees by itself ends with a page of 4 kB, so that two threads
// that share a busy memory need more: two pages.
#ifdef LOCALLLM_AVX2
constexpr int PREFETCH_BYTES = 8192;
#else
constexpr int PREFETCH_BYTES = 3072;  // nothing else was measured there
#endif
INLINE void fetch_weights(const uint8_t* w) { prefetch(w + PREFETCH_BYTES); }

INLINE const ActBlock* tile_of(const Inputs& in, int token, int columns) {
    return in.blocks + static_cast<size_t>(token / TILE) * static_cast<size_t>(columns / BLOCK);
}

// Activations: tiles of TILE tokens lie `tile_stride` apart.
struct Tokens {
    const ActBlock* first;
    size_t tile_stride;
    INLINE const ActBlock& of(int t) const { return first[static_cast<size_t>(t / TILE) * tile_stride]; }
};
INLINE Tokens tokens_of(const Inputs& in, int token, int columns) {
    return {tile_of(in, token, columns), static_cast<size_t>(columns / BLOCK)};
}

// Activations of so many columns stay in the first-level cache beside the weights that stream through it: 10 to 14 kB.
constexpr int STRIP_COLUMNS = 2048;

// Groups with T tokens, strip by strip of columns; sums of token t and group g at t * token_stride + g * LANES.
template <class W, int T>
INLINE void strips(const uint8_t* w, size_t stride, int groups, int columns, Tokens a, float* sums, int token_stride) {
    constexpr int STRIP = T > TILE ? STRIP_COLUMNS / 2 : STRIP_COLUMNS;
    for (int t = 0; t < T; t++)
        for (int g = 0; g < groups; g++) store(sums + t * token_stride + g * LANES, all(0.0f));
    for (int c = 0; c < columns; c += STRIP, a.first += STRIP / BLOCK)
        for (int g = 0; g < groups; g++)
            W::template rows<T>(w + static_cast<size_t>(g) * stride + static_cast<size_t>(c / W::VALUES) * W::BYTES,
                                columns - c < STRIP ? columns - c : STRIP, a, sums + g * LANES, token_stride);
}

// ---- 4 bits: half d[8], with an offset half m[8], then 4 x 32 bytes (lane, 4 bytes): low nibbles hold columns 4j..4j+3,
// ---- high nibbles columns 16+4j..

template <bool HAS_MIN>
struct FourBit {
    static constexpr int VALUES = BLOCK, BYTES = HAS_MIN ? 160 : 144;
    static constexpr int QUANTS = HAS_MIN ? 32 : 16;
    static constexpr bool PAIRED = true, HAS_PANELS = false, HAS_STRIPS = true;

    INLINE static void scales(const uint8_t* w, F8& d, F8& m) {
        d = load_half(w);
        if constexpr (HAS_MIN)
            m = load_half(w + 16);
        else
            m = d * all(-8.0f);
    }

    INLINE static void ahead(const uint8_t* w, int block) {
        fetch_weights(w);
        fetch_weights(w + 64);
        if (block & 1) fetch_weights(w + 128);
    }

#ifdef LOCALLLM_AVX2
    INLINE static __m256i low(const uint8_t* w, int j) {
        const __m256i* q = reinterpret_cast<const __m256i*>(w + QUANTS);
        return _mm256_and_si256(_mm256_loadu_si256(q + j), _mm256_set1_epi8(15));
    }
    INLINE static __m256i high(const uint8_t* w, int j) {
        const __m256i* q = reinterpret_cast<const __m256i*>(w + QUANTS);
        return _mm256_and_si256(_mm256_srli_epi16(_mm256_loadu_si256(q + j), 4), _mm256_set1_epi8(15));
    }
    INLINE static __m256i four(const int8_t* q) {
        int32_t word;
        std::memcpy(&word, q, 4);
        return _mm256_set1_epi32(word);
    }
    // 8 products of 15 * 127 fit in the 16 bits of a half's sums: 15240
    INLINE static __m256i scaled(__m256i sums16, const ActBlock& a, int half, int t) {
        return _mm256_madd_epi16(sums16, _mm256_set1_epi32(a.ratio[half][t]));
    }
    INLINE static F8 finish(__m256i left, __m256i right, F8 d, F8 m, F8 a_scale, F8 a_sum, F8 sum) {
        F8 exact = _mm256_cvtepi32_ps(_mm256_add_epi32(left, right));
        return fma(m, a_sum, fma(exact, d * a_scale, sum));
    }

    // The sums of T tokens go on with the blocks of `columns` more.
    template <int T>
    static __attribute__((noinline)) void rows(const uint8_t* w, int columns, Tokens tokens, float* sums, int sums_stride) {
        const ActBlock* a = tokens.first;
        F8 sum[T];
        UNROLL for (int t = 0; t < T; t++) sum[t] = load(sums + t * sums_stride);
        for (int b = 0; b < columns / BLOCK; b++, w += BYTES, a++) {
            ahead(w, b);
            __m256i left[T], right[T];
            {
                __m256i w0 = low(w, 0), w1 = low(w, 1), w2 = low(w, 2), w3 = low(w, 3);
                KEEP_ALL(w0, w1, w2, w3);
                UNROLL for (int t = 0; t < T; t++) left[t] = scaled(dots(w0, w1, w2, w3, a->q[t]), *a, 0, t);
            }
            {
                __m256i w0 = high(w, 0), w1 = high(w, 1), w2 = high(w, 2), w3 = high(w, 3);
                KEEP_ALL(w0, w1, w2, w3);
                UNROLL for (int t = 0; t < T; t++)
                    right[t] = scaled(dots(w0, w1, w2, w3, a->q[t] + HALF), *a, 1, t);
            }
            F8 d, m;
            scales(w, d, m);
            UNROLL for (int t = 0; t < T; t++) sum[t] = finish(left[t], right[t], d, m, all_at(a->scale + t), all_at(a->sum + t), sum[t]);
        }
        UNROLL for (int t = 0; t < T; t++) store(sums + t * sums_stride, sum[t]);
    }
    INLINE static __m256i dots(__m256i w0, __m256i w1, __m256i w2, __m256i w3, const int8_t* q) {
        __m256i left = _mm256_add_epi16(_mm256_maddubs_epi16(w0, four(q)), _mm256_maddubs_epi16(w1, four(q + 4)));
        __m256i right = _mm256_add_epi16(_mm256_maddubs_epi16(w2, four(q + 8)), _mm256_maddubs_epi16(w3, four(q + 12)));
        return _mm256_add_epi16(left, right);
    }

    // Two groups by quarter blocks: every broadcast of activations feeds both, and 4 weights + 2T sums fit 16 registers.
    template <int T, bool AHEAD>
    static __attribute__((noinline)) void two_groups(const uint8_t* w, size_t stride, int num_blocks,
                                                     const ActBlock* a, float* out) {
        for (int t = 0; t < 2 * T; t++) store(out + t * LANES, all(0.0f));
        for (int b = 0; b < num_blocks; b++, w += BYTES, a++) {
            if (AHEAD) {
                ahead(w, b);
                ahead(w + stride, b);
            }
            const uint8_t* v = w + stride;
            __m256i s[T], u[T], s_left[T], u_left[T];
#define QUARTER(FIRST, PART, J, OFFSET)                                                           \
    {                                                                                             \
        __m256i w0 = PART(w, J), w1 = PART(w, J + 1), v0 = PART(v, J), v1 = PART(v, J + 1);       \
        KEEP_ALL(w0, w1, v0, v1);                                                                 \
        UNROLL for (int t = 0; t < T; t++) {                                                      \
            __m256i x = four(a->q[t] + OFFSET);                                                   \
            __m256i p = _mm256_maddubs_epi16(w0, x), o = _mm256_maddubs_epi16(v0, x);             \
            s[t] = FIRST ? p : _mm256_add_epi16(s[t], p);                                         \
            u[t] = FIRST ? o : _mm256_add_epi16(u[t], o);                                         \
            x = four(a->q[t] + OFFSET + 4);                                                       \
            s[t] = _mm256_add_epi16(s[t], _mm256_maddubs_epi16(w1, x));                           \
            u[t] = _mm256_add_epi16(u[t], _mm256_maddubs_epi16(v1, x));                           \
            KEEP_BOTH(s[t], u[t]);                                                                \
        }                                                                                         \
    }
            QUARTER(true, low, 0, 0)
            QUARTER(false, low, 2, 8)
            UNROLL for (int t = 0; t < T; t++) {
                s_left[t] = scaled(s[t], *a, 0, t);
                u_left[t] = scaled(u[t], *a, 0, t);
            }
            QUARTER(true, high, 0, 16)
            QUARTER(false, high, 2, 24)
#undef QUARTER
            F8 d, m, e, n;
            scales(w, d, m);
            scales(v, e, n);
            UNROLL for (int t = 0; t < T; t++) {
                // both before a store, for what the compiler knows a store may change the activations
                F8 scale = all_at(a->scale + t), total = all_at(a->sum + t);
                __m256i s_right = scaled(s[t], *a, 1, t), u_right = scaled(u[t], *a, 1, t);
                float *first = out + t * LANES, *second = out + (T + t) * LANES;
                F8 one = finish(s_left[t], s_right, d, m, scale, total, load(first));
                F8 two = finish(u_left[t], u_right, e, n, scale, total, load(second));
                store(first, one);
                store(second, two);
            }
        }
    }
#else
    // half of a block, times the ratio of the activations
    template <int T>
    INLINE static void half(const uint8_t* w, int upper, const ActBlock& a, Ints* out) {
        Words v[4];
        UNROLL for (int j = 0; j < 4; j++) v[j] = bits(load_words(w + QUANTS + 4 * LANES * j), 4 * upper, 15);
        UNROLL for (int t = 0; t < T; t++)
            out[t] = times(dots<15>(v, a.q[t] + upper * HALF), once(a.ratio[upper][t]));
    }
    template <int T>
    static __attribute__((noinline)) void rows(const uint8_t* w, int columns, Tokens tokens, float* sums, int sums_stride) {
        const ActBlock* a = tokens.first;
        F8 sum[T];
        UNROLL for (int t = 0; t < T; t++) sum[t] = load(sums + t * sums_stride);
        for (int b = 0; b < columns / BLOCK; b++, w += BYTES, a++) {
            ahead(w, b);
            Ints left[T], right[T];
            half<T>(w, 0, *a, left);
            UNROLL for (int t = 0; t < T; t++) pin(left[t]);
            half<T>(w, 1, *a, right);
            F8 d, m;
            scales(w, d, m);
            UNROLL for (int t = 0; t < T; t++) {
                sum[t] = fma(floats(add(left[t], right[t])), d * all_at(a->scale + t), sum[t]);
                sum[t] = fma(m, all_at(a->sum + t), sum[t]);
            }
        }
        UNROLL for (int t = 0; t < T; t++) store(sums + t * sums_stride, sum[t]);
    }
    template <int T, bool AHEAD>
    static void two_groups(const uint8_t* w, size_t stride, int num_blocks, const ActBlock* a, float* out) {
        for (int t = 0; t < 2 * T; t++) store(out + t * LANES, all(0.0f));
        for (int r = 0; r < 2; r++)
            rows<T>(w + static_cast<size_t>(r) * stride, num_blocks * BLOCK, {a, 0}, out + r * T * LANES, LANES);
    }
#endif

    template <int R, int T, bool AHEAD>
    INLINE static void tile(const uint8_t* w, size_t stride, int columns, const Inputs& in, int token, float* out) {
        static_assert(R == 2, "a group alone goes by strips");
        two_groups<T, AHEAD>(w, stride, columns / BLOCK, tile_of(in, token, columns), out);
    }

    static void unpack(const uint8_t* w, int columns, int lane, float* out) {
        for (int b = 0; b < columns / BLOCK; b++, w += BYTES, out += BLOCK) {
            uint16_t bits[2];
            std::memcpy(&bits[0], w + 2 * lane, 2);
            std::memcpy(&bits[1], w + (HAS_MIN ? 16 : 0) + 2 * lane, 2);
            float d = from_half(bits[0]), m = HAS_MIN ? from_half(bits[1]) : d * -8.0f;
            for (int i = 0; i < 16; i++) {
                uint8_t byte = w[QUANTS + i / 4 * 32 + lane * 4 + i % 4];
                out[i] = d * static_cast<float>(byte & 15) + m;
                out[i + 16] = d * static_cast<float>(byte >> 4) + m;
            }
        }
    }
};

// ---- floats: per column the 8 rows' values; even and odd columns have a sum each

struct PlainF32 {
    static constexpr int VALUE_BYTES = 4;
    INLINE static F8 values(const uint8_t* w) { return load(reinterpret_cast<const float*>(w)); }
};
struct PlainF16 {
    static constexpr int VALUE_BYTES = 2;
    INLINE static F8 values(const uint8_t* w) { return load_half(w); }
};
struct PlainBF16 {
    static constexpr int VALUE_BYTES = 2;
    INLINE static F8 values(const uint8_t* w) { return load_bfloat(w); }
};

template <class Plain>
struct Floats {
    static constexpr size_t COLUMN_BYTES = LANES * Plain::VALUE_BYTES;
    static constexpr bool PAIRED = false, HAS_PANELS = false, HAS_STRIPS = false;

    template <int R, int T, bool AHEAD>
    // not inlined: in a larger function the compiler keeps sums in memory
    static __attribute__((noinline)) void tile(const uint8_t* w, size_t, int columns, const Inputs& in, int token, float* out) {
        static_assert(R == 1, "float rows go one group at a time");
        const float* x = in.values + static_cast<size_t>(token) * in.ld;
        F8 even[T], odd[T];
        UNROLL for (int t = 0; t < T; t++) even[t] = odd[t] = all(0.0f);
        int c = 0;
        for (; c + 1 < columns; c += 2, w += 2 * COLUMN_BYTES) {
            if (AHEAD && c % 4 == 0) fetch_weights(w);
            F8 w0 = Plain::values(w), w1 = Plain::values(w + COLUMN_BYTES);
            UNROLL for (int t = 0; t < T; t++) {
                even[t] = fma(w0, all_at(x + t * in.ld + c), even[t]);
                odd[t] = fma(w1, all_at(x + t * in.ld + c + 1), odd[t]);
            }
        }
        if (c < columns)
            UNROLL for (int t = 0; t < T; t++) even[t] = fma(Plain::values(w), all_at(x + t * in.ld + c), even[t]);
        UNROLL for (int t = 0; t < T; t++) store(out + t * LANES, even[t] + odd[t]);
    }

    static void unpack(const uint8_t* w, int columns, int lane, float* out) {
        for (int c = 0; c < columns; c++, w += COLUMN_BYTES) {
            float lanes[LANES];
            store(lanes, Plain::values(w));
            out[c] = lanes[lane];
        }
    }
};

}  // namespace
}  // namespace localllm
