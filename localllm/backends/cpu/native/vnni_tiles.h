// Products of packed rows by 8-bit dot products (VNNI): four columns of 8 rows, or of two groups of 8, an instruction.
//
// Quants become unsigned by adding a bias, which floors take back; activations stay signed. Here an activation's half has a
// scale and a sum of its own as floats, in the places of `ratio` and `sums`: halves are joined by a multiply-add.
// All tiles of a type compute the same float operations per (row, token), in the order of blocks.
#pragma once
#include "block_tiles.h"

namespace localllm {
namespace {

// Registers for R groups: 8 or 16 rows.
template <int R>
struct Rows;

template <>
struct Rows<1> {
    using I = __m256i;
    using F = __m256;
    INLINE static I zero() { return _mm256_setzero_si256(); }
    INLINE static I dots(I sum, I quants, const int8_t* q) { return _mm256_dpbusd_epi32(sum, quants, _mm256_set1_epi32(word(q))); }
    INLINE static F floats(I v) { return _mm256_cvtepi32_ps(v); }
    INLINE static F every(float x) { return _mm256_set1_ps(x); }
    INLINE static F every_bits(int32_t x) { return _mm256_castsi256_ps(_mm256_set1_epi32(x)); }
    INLINE static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    INLINE static void put(float* out, int, F x) { _mm256_storeu_ps(out, x); }
    template <class Get>
    INLINE static auto of_each(const uint8_t* w, size_t, Get get) { return get(w); }

    INLINE static int32_t word(const int8_t* q) {
        int32_t four;
        std::memcpy(&four, q, 4);
        return four;
    }
};

template <>
struct Rows<2> {
    using I = __m512i;
    using F = __m512;
    INLINE static I zero() { return _mm512_setzero_si512(); }
    INLINE static I dots(I sum, I quants, const int8_t* q) {
        return _mm512_dpbusd_epi32(sum, quants, _mm512_set1_epi32(Rows<1>::word(q)));
    }
    INLINE static F floats(I v) { return _mm512_cvtepi32_ps(v); }
    INLINE static F every(float x) { return _mm512_set1_ps(x); }
    INLINE static F every_bits(int32_t x) { return _mm512_castsi512_ps(_mm512_set1_epi32(x)); }
    INLINE static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    INLINE static void put(float* out, int stride, F x) {
        _mm256_storeu_ps(out, _mm512_castps512_ps256(x));
        _mm256_storeu_ps(out + stride, _mm512_extractf32x8_ps(x, 1));
    }
    // What both groups have, side by side.
    template <class Get>
    INLINE static auto of_each(const uint8_t* w, size_t stride, Get get) {
        return joined(get(w), get(w + stride));
    }
    INLINE static I joined(__m256i a, __m256i b) { return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1); }
    INLINE static F joined(F8 a, F8 b) { return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1); }
};

// ---- the types that blocks.h does not have

struct Q4_0 {
    static constexpr Type TYPE = Type::Q4_0;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 8;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {}}; }
    INLINE static Words quants(const uint8_t* w, int, int j) { return minus(nibbles(word(w, 2, j % 4), j / 4), 8); }
};
struct Q4_1 {
    static constexpr Type TYPE = Type::Q4_1;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = true, PER_HALF = false;
    static constexpr int MOST = 15;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), half(w, 2)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {unit.floor}}; }
    INLINE static Words quants(const uint8_t* w, int, int j) { return nibbles(word(w, 4, j % 4), j / 4); }
};
struct Q8_0 {
    static constexpr Type TYPE = Type::Q8_0;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 128;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {}}; }
    INLINE static Words quants(const uint8_t* w, int, int j) { return word(w, 2, j); }
};

template <class Form>
struct Vnni {
    static constexpr BlockShape SHAPE = shape_of(Form::TYPE);
    static constexpr int BYTES = LANES * SHAPE.bytes;
    static constexpr int RUNS = SHAPE.values / BLOCK;
    static constexpr int RUN_BYTES = BYTES / RUNS;
    static constexpr int TOKENS = 8;
    static constexpr bool PAIRED = true, ALWAYS_AHEAD = true;
    // quants and bias together are 0..255
    static constexpr int BIAS = !Form::IS_SIGNED ? 0 : Form::MOST < 128 - 1 ? Form::MOST : 128;
    static constexpr bool HAS_FLOOR = BIAS || Form::HAS_FLOOR;

    INLINE static Words quants(const uint8_t* w, int run, int j) {
        Words v = Form::quants(w, run, j);
        return BIAS ? _mm256_add_epi8(v, _mm256_set1_epi8(static_cast<char>(BIAS))) : v;
    }
    INLINE static Scales scales(const uint8_t* w, int run) {
        Scales by = Form::scales(w, Form::unit(w), run);
        for (int half = 0; half < 1 + Form::PER_HALF; half++)
            if (BIAS) by.floor[half] = by.scale[half] * all(-static_cast<float>(BIAS));
        return by;
    }

    // Activations of token `t`: tiles of TILE tokens lie `tile_stride` apart.
    struct Tokens {
        const ActBlock* first;
        size_t tile_stride;
        INLINE const ActBlock& of(int t) const { return first[static_cast<size_t>(t / TILE) * tile_stride]; }
    };

    template <int R, int T>
    INLINE static void half_run(const uint8_t* w, size_t stride, int run, int half, const Tokens& a, typename Rows<R>::I* sum) {
        UNROLL for (int t = 0; t < T; t++) sum[t] = Rows<R>::zero();
        UNROLL for (int j = 0; j < 4; j++) {
            auto v = Rows<R>::of_each(w, stride, [&](const uint8_t* group) __attribute__((always_inline)) { return quants(group, run, half * 4 + j); });
            asm volatile("" : "+v"(v));  // unpacked once, not once a token
            UNROLL for (int t = 0; t < T; t++) sum[t] = Rows<R>::dots(sum[t], v, a.of(t).q[t % TILE] + half * HALF + 4 * j);
        }
    }

    template <int R, int T>
    INLINE static void one_run(const uint8_t* w, size_t stride, int run, const Tokens& a, typename Rows<R>::F* sum) {
        using V = Rows<R>;
        typename V::F part[T];
        UNROLL for (int half = 0; half < BLOCK / HALF; half++) {
            typename V::I exact[T];
            half_run<R, T>(w, stride, run, half, a, exact);
            UNROLL for (int t = 0; t < T; t++) {
                auto x = V::floats(exact[t]), scale = V::every_bits(a.of(t).ratio[half][t % TILE]);
                part[t] = Form::PER_HALF || !half ? x * scale : V::fma(x, scale, part[t]);
            }
            if constexpr (Form::PER_HALF) add_scaled_part<R, T>(w, stride, run, half, a, part, sum);
        }
        if constexpr (!Form::PER_HALF) add_scaled_part<R, T>(w, stride, run, 0, a, part, sum);
    }

    template <int R, int T>
    INLINE static void add_scaled_part(const uint8_t* w, size_t stride, int run, int half, const Tokens& a,
                                       const typename Rows<R>::F* part, typename Rows<R>::F* sum) {
        using V = Rows<R>;
        auto scale = V::of_each(w, stride, [&](const uint8_t* group) __attribute__((always_inline)) { return scales(group, run).scale[half]; });
        UNROLL for (int t = 0; t < T; t++) sum[t] = V::fma(part[t], scale, sum[t]);
        if constexpr (HAS_FLOOR) {
            auto floor = V::of_each(w, stride, [&](const uint8_t* group) __attribute__((always_inline)) { return scales(group, run).floor[half]; });
            UNROLL for (int t = 0; t < T; t++) {
                const ActBlock& of = a.of(t);
                auto total = Form::PER_HALF ? V::every_bits(of.sums[half][t % TILE]) : V::every(of.sum[t % TILE]);
                sum[t] = V::fma(floor, total, sum[t]);
            }
        }
    }

    // not inlined: three products would otherwise hold a copy each of every type
    template <int R, int T>
    static __attribute__((noinline)) void rows(const uint8_t* w, size_t stride, int columns, const ActBlock* first, float* out) {
        Tokens a{first, static_cast<size_t>(columns / BLOCK)};
        typename Rows<R>::F sum[T];
        UNROLL for (int t = 0; t < T; t++) sum[t] = Rows<R>::every(0.0f);
        for (int b = 0; b < columns / SHAPE.values; b++, w += BYTES)
            for (int run = 0; run < RUNS; run++, a.first++) {
                for (int at = 0; at < RUN_BYTES; at += 64)
                    for (int group = 0; group < R; group++)
                        prefetch(w + static_cast<size_t>(group) * stride + PREFETCH_BYTES + run * RUN_BYTES + at);
                one_run<R, T>(w, stride, run, a, sum);
            }
        UNROLL for (int t = 0; t < T; t++) Rows<R>::put(out + t * LANES, T * LANES, sum[t]);
    }

    // sums (R, T, LANES)
    template <int R, int T, bool AHEAD>
    INLINE static void tile(const uint8_t* w, size_t stride, int columns, const Inputs& in, int token, float* sums) {
        rows<R, T>(w, stride, columns, tile_of(in, token, columns), sums);
    }

    static void unpack(const uint8_t* w, int columns, int lane, float* out) { Blocks<Form>::unpack(w, columns, lane, out); }
};

}  // namespace
}  // namespace localllm
