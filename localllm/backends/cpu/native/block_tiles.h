// Products of packed rows in any of the blocks of blocks.h with T tokens.
//
// Few tokens unpack words of quants as they need them. More tokens share a panel: a piece of two groups, unpacked into the
// first-level cache. Both do the same float operations per (row, token), run by run.
#pragma once
#include "blocks.h"
#include "tiles.h"

namespace localllm {
namespace {

// ---- the products of half a run of R groups with T tokens, times the ratio of the activations

#ifdef LOCALLLM_AVX2

// Words of quants, and their products with four activations as pairs added up in 16 bits.
struct SmallWord {
    Words quants;
    INLINE void keep() { KEEP(quants); }
    INLINE Words pairs(Words x) const { return _mm256_maddubs_epi16(quants, x); }
};
struct SignedWord {
    Words quants, sizes;
    INLINE void keep() { KEEP_BOTH(quants, sizes); }
    INLINE Words pairs(Words x) const { return _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(x, quants)); }
};
// size * ~x is less than size * -x by its size, whatever the token: `surplus` of a panel has that.
struct SplitWord {
    Words sizes, signs;
    INLINE void keep() { KEEP_BOTH(sizes, signs); }
    INLINE Words pairs(Words x) const { return _mm256_maddubs_epi16(sizes, _mm256_xor_si256(x, signs)); }
};

// 16 bits hold the sums of a half's four words of products, or of two words, or of one where quants are large.
template <class Form>
constexpr int WORDS_THAT_FIT = 8 * Form::MOST * 128 < (1 << 15) ? 4 : 4 * Form::MOST * 128 < (1 << 15) ? 2 : 1;

template <class Form, int R, int T, class Run>
INLINE void half_products(const Run& run, const ActBlock& a, int half, Ints (*out)[R]) {
    constexpr int FIT = WORDS_THAT_FIT<Form>, STEP = FIT > 1 && !Form::IS_SIGNED ? 2 : 1;
    __m256i sums[T][R];
    UNROLL for (int first = 0; first < 4; first += STEP) {
        decltype(run.word(0, 0)) words[STEP][R];
        UNROLL for (int i = 0; i < STEP; i++)
            UNROLL for (int r = 0; r < R; r++) {
                words[i][r] = run.word(r, half * 4 + first + i);
                words[i][r].keep();
            }
        UNROLL for (int t = 0; t < T; t++) {
            UNROLL for (int i = 0; i < STEP; i++) {
                __m256i x = FourBit<true>::four(a.q[t] + half * HALF + 4 * (first + i));
                UNROLL for (int r = 0; r < R; r++) {
                    __m256i pairs = words[i][r].pairs(x);
                    sums[t][r] = (first + i) % FIT ? _mm256_add_epi16(sums[t][r], pairs) : pairs;
                }
            }
            UNROLL for (int r = 0; r < R; r++) {
                if (FIT > 1) KEEP(sums[t][r]);
                if ((first + STEP) % FIT) continue;
                __m256i scaled = FourBit<true>::scaled(sums[t][r], a, half, t);
                out[t][r] = first >= FIT ? add(out[t][r], scaled) : scaled;
                KEEP(out[t][r]);
            }
        }
    }
}

#else
template <class Form, int R, int T, class Run>
INLINE void half_products(const Run& run, const ActBlock& a, int half, Ints (*out)[R]) {
    UNROLL for (int r = 0; r < R; r++) {
        Words v[4];
        UNROLL for (int j = 0; j < 4; j++) v[j] = run.word(r, half * 4 + j);
        UNROLL for (int t = 0; t < T; t++)
            out[t][r] = times(dots<Form::MOST>(v, a.q[t] + half * HALF), once(a.ratio[half][t]));
        UNROLL for (int t = 0; t < T; t++) pin(out[t][r]);
    }
}

#endif

// ---- whole runs; `run` has word(r, j), scale(r, part), floor(r, part), sum(r, t) and keep(r, t, sum)

// The sum of 16 activations, the same in all lanes.
INLINE F8 sum_of_half(const ActBlock& a, int half, int t) {
    return floats(all_ints(&a.sums[half][t])) * all_at(a.scale + t);
}

// Adds products of a run, or of its half `part`, to the sums.
template <class Form, int R, int T, class Run>
INLINE void add_products(Ints (*products)[R], Run& run, const ActBlock& a, int part) {
    constexpr int OFFSET = OffsetOf<Form>::VALUE;
    UNROLL for (int t = 0; t < T; t++) {
        // all before a store, for what the compiler knows a store may change the activations
        F8 scale = all_at(a.scale + t), total{};
        if constexpr (Form::HAS_FLOOR) total = Form::PER_HALF ? sum_of_half(a, part, t) : all_at(a.sum + t);
        Ints excess{};
        if constexpr (OFFSET) {
            excess = all_ints(&a.sums[part][t]);
            if constexpr (!Form::PER_HALF) excess = add(excess, all_ints(&a.sums[1][t]));
            excess = times(excess, OFFSET);
        }
        UNROLL for (int r = 0; r < R; r++) {
            Ints exact = run.complete(r, products[t][r], a, part, t);
            if constexpr (OFFSET) exact = subtract(exact, excess);
            F8 sum = fma(floats(exact), run.scale(r, part) * scale, run.sum(r, t));
            if constexpr (Form::HAS_FLOOR) sum = fma(run.floor(r, part), total, sum);
            run.keep(r, t, sum);
        }
    }
}

template <class Form, int R, int T, class Run>
INLINE void add_run(Run run, const ActBlock& a) {
    Ints left[T][R], right[T][R];
    half_products<Form, R, T>(run, a, 0, left);
    if constexpr (Form::PER_HALF) add_products<Form, R, T>(left, run, a, 0);
    half_products<Form, R, T>(run, a, 1, right);
    if constexpr (Form::PER_HALF) {
        add_products<Form, R, T>(right, run, a, 1);
    } else {
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int r = 0; r < R; r++) left[t][r] = add(left[t][r], right[t][r]);
        add_products<Form, R, T>(left, run, a, 0);
    }
}

// A run as it lies in its block.
template <class Form>
struct PackedRun {
    const uint8_t* block;
    int run;
    Scales by;
    F8* sums;
#ifdef LOCALLLM_AVX2
    INLINE auto word(int, int j) const {
        Words v = Form::quants(block, run, j);
        if constexpr (Form::IS_SIGNED)
            return SignedWord{v, _mm256_abs_epi8(v)};
        else
            return SmallWord{v};
    }
#else
    INLINE Words word(int, int j) const { return Form::quants(block, run, j); }
#endif
    INLINE Ints complete(int, Ints exact, const ActBlock&, int, int) const { return exact; }
    INLINE F8 scale(int, int part) const { return by.scale[part]; }
    INLINE F8 floor(int, int part) const { return by.floor[part]; }
    INLINE F8 sum(int, int t) const { return sums[t]; }
    INLINE void keep(int, int t, F8 sum) { sums[t] = sum; }
};

#ifdef LOCALLLM_AVX2

// A run of a panel. Signed quants are taken apart: their sizes, and all bits of a byte for the sign.
template <class Form, int R>
struct OpenRun {
    static constexpr int PARTS = Form::PER_HALF ? 2 : 1;
    alignas(32) uint8_t quants[BLOCK / 4][R][4 * LANES];
    uint8_t signs[Form::IS_SIGNED ? BLOCK / 4 : 0][R][4 * LANES];
    int16_t surplus[Form::IS_SIGNED ? R : 0][LANES][BLOCK / HALF];  // sizes of negative quants, added up
    float scales[PARTS][R][LANES];
    float floors[Form::HAS_FLOOR ? PARTS : 0][R][LANES];

    INLINE void put(int r, const uint8_t* block, int run, const Scales& by) {
        for (int part = 0; part < PARTS; part++) {
            store(scales[part][r], by.scale[part]);
            if constexpr (Form::HAS_FLOOR) store(floors[part][r], by.floor[part]);
        }
        __m256i negative[BLOCK / HALF];
        UNROLL for (int j = 0; j < BLOCK / 4; j++) {
            __m256i v = Form::quants(block, run, j);
            if constexpr (Form::IS_SIGNED) {
                __m256i sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), v);
                v = _mm256_abs_epi8(v);
                store_words(signs[j][r], sign);
                __m256i pairs = _mm256_maddubs_epi16(_mm256_and_si256(v, sign), _mm256_set1_epi8(1));
                negative[j / 4] = j % 4 ? _mm256_add_epi16(negative[j / 4], pairs) : pairs;
            }
            store_words(quants[j][r], v);
        }
        if constexpr (Form::IS_SIGNED) put_surplus(r, negative);
    }
    // Neighbours are added up, then the halves of a row lie side by side.
    INLINE void put_surplus(int r, const __m256i* negative) {
        __m256i left = _mm256_madd_epi16(negative[0], _mm256_set1_epi16(1));
        __m256i right = _mm256_madd_epi16(negative[1], _mm256_set1_epi16(1));
        store_words(reinterpret_cast<uint8_t*>(surplus[r]), _mm256_or_si256(left, _mm256_slli_epi32(right, 16)));
    }
};

template <class Form, int R>
struct PanelRun {
    const OpenRun<Form, R>& open;
    float* sums;  // (T, R, LANES)
    INLINE auto word(int r, int j) const {
        if constexpr (Form::IS_SIGNED)
            return SplitWord{load_words(open.quants[j][r]), load_words(open.signs[j][r])};
        else
            return SmallWord{load_words(open.quants[j][r])};
    }
    INLINE Ints complete(int r, Ints exact, const ActBlock& a, int part, int t) const {
        if constexpr (Form::IS_SIGNED) {
            __m256i left = all_ints(&a.ratio[0][t]), right = all_ints(&a.ratio[1][t]);
            if (Form::PER_HALF) (part ? left : right) = _mm256_setzero_si256();
            __m256i surplus = load_words(reinterpret_cast<const uint8_t*>(open.surplus[r]));
            exact = add(exact, _mm256_madd_epi16(surplus, _mm256_blend_epi16(left, right, 0xaa)));
        }
        return exact;
    }
    INLINE F8 scale(int r, int part) const { return load(open.scales[part][r]); }
    INLINE F8 floor(int r, int part) const { return load(open.floors[part][r]); }
    INLINE F8 sum(int r, int t) const { return load(sums + (t * R + r) * LANES); }
    INLINE void keep(int r, int t, F8 sum) { store(sums + (t * R + r) * LANES, sum); }
};

#endif

template <class Form>
struct Blocks {
    static constexpr BlockShape SHAPE = shape_of(Form::TYPE);
    static constexpr int VALUES = SHAPE.values, BYTES = LANES * SHAPE.bytes;
    static constexpr int RUNS = VALUES / BLOCK;
#ifdef LOCALLLM_AVX2
    static constexpr bool PAIRED = false, HAS_PANELS = true, HAS_STRIPS = true;
    static constexpr int PANEL_GROUPS = 2;
    static constexpr int PANEL_FROM = Form::MOST > 63 ? 9 : 5;  // tokens; fewer unpack as they go
    static constexpr int PIECE = 16 / RUNS;  // blocks of a panel: what the first-level cache holds beside activations
#else
    static constexpr bool PAIRED = false, HAS_PANELS = false, HAS_STRIPS = true;
#endif

    INLINE static void ahead(const uint8_t* w, int run) {
        for (int at = 0; at < BYTES / RUNS; at += 64) fetch_weights(w + run * (BYTES / RUNS) + at);
    }

    // The sums of T tokens go on with the blocks of `columns` more.
    // not inlined: three products would otherwise hold a copy each of every type
    template <int T>
    static __attribute__((noinline)) void rows(const uint8_t* w, int columns, Tokens tokens, float* sums, int sums_stride) {
        const ActBlock* a = tokens.first;
        F8 sum[T];
        UNROLL for (int t = 0; t < T; t++) sum[t] = load(sums + t * sums_stride);
        for (int b = 0; b < columns / VALUES; b++, w += BYTES, a += RUNS) {
            Unit unit = Form::unit(w);
            UNROLL for (int run = 0; run < RUNS; run++) {
                ahead(w, run);
                add_run<Form, 1, T>(PackedRun<Form>{w, run, Form::scales(w, unit, run), sum}, a[run]);
            }
        }
        UNROLL for (int t = 0; t < T; t++) store(sums + t * sums_stride, sum[t]);
    }

#ifdef LOCALLLM_AVX2
    // Two groups with tokens first..last; sums (last - first, 2, LANES).
    template <int G>
    static __attribute__((noinline)) void panels(const uint8_t* w, size_t stride, int columns, const Inputs& in, int first,
                                                 int last, float* sums) {
        OpenRun<Form, 2> open[PIECE * RUNS];
        const int num_blocks = columns / SHAPE.values;
        std::memset(sums, 0, static_cast<size_t>(last - first) * 2 * LANES * sizeof(float));
        for (int b = 0; b < num_blocks; b += PIECE) {
            int size = num_blocks - b < PIECE ? num_blocks - b : PIECE;
            for (int r = 0; r < 2; r++) open_piece(w + static_cast<size_t>(r) * stride + b * BYTES, size, r, open);
            for (int token = first; token < last; token += TILE)
                tokens(open, size * RUNS, tile_of(in, token, columns) + b * RUNS, last - token,
                       sums + (token - first) * 2 * LANES);
        }
    }

    INLINE static void open_piece(const uint8_t* w, int num_blocks, int r, OpenRun<Form, 2>* open) {
        for (int b = 0; b < num_blocks; b++, w += BYTES) {
            Unit unit = Form::unit(w);
            UNROLL for (int run = 0; run < RUNS; run++, open++) {
                ahead(w, run);
                open->put(r, w, run, Form::scales(w, unit, run));
            }
        }
    }

    INLINE static void tokens(const OpenRun<Form, 2>* open, int runs, const ActBlock* a, int count, float* sums) {
        switch (count) {
            case 1: return some_tokens<1>(open, runs, a, sums);
            case 2: return some_tokens<2>(open, runs, a, sums);
            case 3: return some_tokens<3>(open, runs, a, sums);
            default: return some_tokens<4>(open, runs, a, sums);
        }
    }
    template <int T>
    static __attribute__((noinline)) void some_tokens(const OpenRun<Form, 2>* open, int runs, const ActBlock* a,
                                                      float* sums) {
        for (int run = 0; run < runs; run++) add_run<Form, 2, T>(PanelRun<Form, 2>{open[run], sums}, a[run]);
    }

#endif

    static void unpack(const uint8_t* w, int columns, int lane, float* out) {
        for (int b = 0; b < columns / SHAPE.values; b++, w += BYTES) {
            Unit unit = Form::unit(w);
            for (int run = 0; run < RUNS; run++, out += BLOCK) unpack_run(w, unit, run, lane, out);
        }
    }
    static void unpack_run(const uint8_t* w, const Unit& unit, int run, int lane, float* out) {
        constexpr int OFFSET = OffsetOf<Form>::VALUE;
        Scales by = Form::scales(w, unit, run);
        for (int j = 0; j < BLOCK / 4; j++) {
            int part = Form::PER_HALF ? j / 4 : 0;
            float scale[LANES], floor[LANES] = {};
            int8_t quants[4 * LANES];
            Words v = Form::quants(w, run, j);
            store(scale, by.scale[part]);
            if (Form::HAS_FLOOR) store(floor, by.floor[part]);
            std::memcpy(quants, &v, sizeof quants);
            for (int i = 0; i < 4; i++)
                out[4 * j + i] = scale[lane] * static_cast<float>(quants[4 * lane + i] - OFFSET) + floor[lane];
        }
    }
};

}  // namespace
}  // namespace localllm
