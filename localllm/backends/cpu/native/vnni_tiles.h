// Products of packed rows by 8-bit dot products (VNNI): four columns of 8 rows, or of two groups of 8, an instruction.
//
// Quants become unsigned by adding BIAS, activations stay signed. Here an activation's half has a scale of its own, a float
// in the place of `ratio`, and -BIAS times its plain sum in `sums`: halves are joined by a multiply-add.
// All tiles of a type compute the same float operations per (row, token), in the order of blocks.
#pragma once
#include "block_tiles.h"
#include "rowwise.h"

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
    INLINE static I every(int32_t x) { return _mm256_set1_epi32(x); }
    INLINE static I dots(I sum, I quants, const int8_t* q) { return _mm256_dpbusd_epi32(sum, quants, every(four(q))); }
    INLINE static F floats(I v) { return _mm256_cvtepi32_ps(v); }
    INLINE static F bits(I v) { return _mm256_castsi256_ps(v); }
    INLINE static F all(float x) { return _mm256_set1_ps(x); }
    INLINE static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    INLINE static int32_t four(const int8_t* q) {
        int32_t word;
        std::memcpy(&word, q, 4);
        return word;
    }
};

template <>
struct Rows<2> {
    using I = __m512i;
    using F = __m512;
    INLINE static I zero() { return _mm512_setzero_si512(); }
    INLINE static I every(int32_t x) { return _mm512_set1_epi32(x); }
    INLINE static I dots(I sum, I quants, const int8_t* q) {
        return _mm512_dpbusd_epi32(sum, quants, every(Rows<1>::four(q)));
    }
    INLINE static F floats(I v) { return _mm512_cvtepi32_ps(v); }
    INLINE static F bits(I v) { return _mm512_castsi512_ps(v); }
    INLINE static F all(float x) { return _mm512_set1_ps(x); }
    INLINE static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
};

// ---- what a set of quants looks like to the products

// body(a Count of 1 to 8 tokens); more are taken as 8.
template <int N>
struct Count {
    static constexpr int value = N;
};
template <class Body>
INLINE void with_count(int count, Body body) {
    switch (count) {
        case 1: return body(Count<1>{});
        case 2: return body(Count<2>{});
        case 3: return body(Count<3>{});
        case 4: return body(Count<4>{});
        case 5: return body(Count<5>{});
        case 6: return body(Count<6>{});
        case 7: return body(Count<7>{});
        default: return body(Count<8>{});
    }
}

template <class Form>
INLINE Words unsigned_quants(const uint8_t* w, int run, int j) {
    constexpr int OFFSET = OffsetOf<Form>::VALUE;
    Words v = Form::quants(w, run, j);
    return Form::IS_SIGNED || OFFSET ? _mm256_add_epi8(v, _mm256_set1_epi8(static_cast<char>(BIAS - OFFSET))) : v;
}

// Activations: tiles of TILE tokens lie `tile_stride` apart.
struct Tokens {
    const ActBlock* first;
    size_t tile_stride;
    INLINE const ActBlock& of(int t) const { return first[static_cast<size_t>(t / TILE) * tile_stride]; }
};

// What comes FAR_BYTES later, to the second-level cache.
constexpr int FAR_BYTES = 8192;

template <class Form>
INLINE void fetch_run(const uint8_t* w, int run) {
    constexpr int RUNS = shape_of(Form::TYPE).values / BLOCK, RUN_BYTES = LANES * shape_of(Form::TYPE).bytes / RUNS;
    for (int at = 0; at < RUN_BYTES; at += 64)
        _mm_prefetch(reinterpret_cast<const char*>(w) + FAR_BYTES + run * RUN_BYTES + at, _MM_HINT_T1);
}

// What products need to know of a type.
template <bool SIGNED, bool FLOOR, bool HALVES>
struct Kind {
    static constexpr bool IS_SIGNED = SIGNED, HAS_FLOOR = FLOOR, PER_HALF = HALVES;
};
template <class Form>
using KindOf = Kind<Form::IS_SIGNED || OffsetOf<Form>::VALUE, Form::HAS_FLOOR, Form::PER_HALF>;

// One run's products with T tokens onto their sums. `quants(half, j)`: four columns; `scale(half)` and `floor(half)`.
template <class K, int R, int T, class Quants, class Scale, class Floor>
INLINE void add_run(const Tokens& a, typename Rows<R>::F* sum, Quants quants, Scale scale, Floor floor) {
    using V = Rows<R>;
    typename V::F part[T];
    auto add_part = [&](int half) __attribute__((always_inline)) {
        auto by = scale(half);
        UNROLL for (int t = 0; t < T; t++) sum[t] = V::fma(part[t], by, sum[t]);
    };
    UNROLL for (int half = 0; half < BLOCK / HALF; half++) {
        typename V::I exact[T];
        UNROLL for (int t = 0; t < T; t++) exact[t] = K::IS_SIGNED ? V::every(a.of(t).sums[half][t % TILE]) : V::zero();
        UNROLL for (int j = 0; j < HALF / 4; j++) {
            auto v = quants(half, half * (HALF / 4) + j);
            asm volatile("" : "+v"(v));  // unpacked once, not once a token
            UNROLL for (int t = 0; t < T; t++) exact[t] = V::dots(exact[t], v, a.of(t).q[t % TILE] + half * HALF + 4 * j);
        }
        UNROLL for (int t = 0; t < T; t++) {
            auto x = V::floats(exact[t]), its = V::bits(V::every(a.of(t).ratio[half][t % TILE]));
            part[t] = K::PER_HALF || !half ? x * its : V::fma(x, its, part[t]);
        }
        if (K::PER_HALF) add_part(half);
    }
    if (!K::PER_HALF) add_part(0);
    if constexpr (K::HAS_FLOOR)
        UNROLL for (int half = 0; half < 1 + K::PER_HALF; half++) {
            auto by = floor(half);
            UNROLL for (int t = 0; t < T; t++) {
                const ActBlock& of = a.of(t);
                auto total = V::all(of.sum[t % TILE]);
                if (K::PER_HALF)
                    total = V::floats(V::every(of.sums[half][t % TILE])) * V::bits(V::every(of.ratio[half][t % TILE])) *
                            V::all(-1.0f / BIAS);
                sum[t] = V::fma(by, total, sum[t]);
            }
        }
}

// ---- many tokens: 16 rows of up to PANEL_RUNS runs unpacked, small enough to stay in the first-level cache

constexpr int PANEL_RUNS = 8;

struct Panel {
    alignas(64) uint8_t quants[PANEL_RUNS][BLOCK / 4][64];
    alignas(64) float scale[PANEL_RUNS][2][2 * LANES];
    alignas(64) float floor[PANEL_RUNS][2][2 * LANES];
};

template <class Form>
INLINE void unpack_run(const uint8_t* w, size_t stride, int run, Panel& panel, int at) {
    for (int group = 0; group < 2; group++) {
        const uint8_t* rows = w + static_cast<size_t>(group) * stride;
        fetch_run<Form>(rows, run);
        UNROLL for (int j = 0; j < BLOCK / 4; j++)
            _mm256_store_si256(reinterpret_cast<__m256i*>(panel.quants[at][j] + 32 * group), unsigned_quants<Form>(rows, run, j));
        Scales by = Form::scales(rows, Form::unit(rows), run);
        for (int half = 0; half < 1 + Form::PER_HALF; half++) {
            store(panel.scale[at][half] + LANES * group, by.scale[half]);
            if (Form::HAS_FLOOR) store(panel.floor[at][half] + LANES * group, by.floor[half]);
        }
    }
}

// Runs first..last of 16 rows.
template <class Form>
INLINE void unpack_panel(const uint8_t* w, size_t stride, int first, int last, Panel& panel) {
    constexpr BlockShape SHAPE = shape_of(Form::TYPE);
    constexpr int RUNS = SHAPE.values / BLOCK, BYTES = LANES * SHAPE.bytes;
    for (int run = first; run < last; run++)
        unpack_run<Form>(w + static_cast<size_t>(run / RUNS) * BYTES, stride, run % RUNS, panel, run - first);
}

// sums (T, 16) of T tokens go on with the runs of a panel.
template <class K, int T>
__attribute__((noinline)) void add_panel(const Panel& panel, int runs, Tokens a, float* sums) {
    using V = Rows<2>;
    V::F sum[T];
    UNROLL for (int t = 0; t < T; t++) sum[t] = _mm512_load_ps(sums + t * 2 * LANES);
    for (int run = 0; run < runs; run++, a.first++)
        add_run<K, 2, T>(
            a, sum, [&](int, int j) __attribute__((always_inline)) { return _mm512_load_si512(panel.quants[run][j]); },
            [&](int half) __attribute__((always_inline)) { return _mm512_load_ps(panel.scale[run][half]); },
            [&](int half) __attribute__((always_inline)) { return _mm512_load_ps(panel.floor[run][half]); });
    UNROLL for (int t = 0; t < T; t++) _mm512_store_ps(sums + t * 2 * LANES, sum[t]);
}

template <class Form>
struct Vnni {
    static constexpr BlockShape SHAPE = shape_of(Form::TYPE);
    static constexpr int BYTES = LANES * SHAPE.bytes;
    static constexpr int RUNS = SHAPE.values / BLOCK;
    static constexpr bool PAIRED = false, HAS_PANELS = true;
    static constexpr int PANEL_FROM = TILE + 1;  // tokens; fewer unpack as they go

    // not inlined: three products would otherwise hold a copy each of every type
    template <int T>
    static __attribute__((noinline)) void rows(const uint8_t* w, int columns, const ActBlock* first, float* out, int out_stride) {
        Tokens a{first, static_cast<size_t>(columns / BLOCK)};
        F8 sum[T];
        UNROLL for (int t = 0; t < T; t++) sum[t] = all(0.0f);
        for (int b = 0; b < columns / SHAPE.values; b++, w += BYTES) {
            Unit unit = Form::unit(w);
            // unrolled, so that every shift is by a constant
            UNROLL for (int run = 0; run < RUNS; run++, a.first++) {
                // a lone token reads blocks of one run byte after byte, which the machine foresees by itself
                if (RUNS > 1 || T > 1) fetch_run<Form>(w, run);
                Scales by = Form::scales(w, unit, run);
                add_run<KindOf<Form>, 1, T>(
                    a, sum, [&](int, int j) __attribute__((always_inline)) { return unsigned_quants<Form>(w, run, j); },
                    [&](int half) __attribute__((always_inline)) { return by.scale[half]; },
                    [&](int half) __attribute__((always_inline)) { return by.floor[half]; });
            }
        }
        UNROLL for (int t = 0; t < T; t++) store(out + t * out_stride, sum[t]);
    }

    template <int R, int T, bool AHEAD>
    INLINE static void tile(const uint8_t* w, size_t, int columns, const Inputs& in, int token, float* out) {
        static_assert(R == 1, "two groups go as panels");
        rows<T>(w, columns, tile_of(in, token, columns), out, LANES);
    }

    // Two groups with tokens first..last; sums (last - first, 16) on a line of cache.
    static __attribute__((noinline)) void panels(const uint8_t* w, size_t stride, int columns, const Inputs& in, int first,
                                                 int last, float* sums) {
        if (in.count <= FEW) return without_panels(w, stride, columns, in, first, last, sums);
        Panel panel;
        const int blocks = columns / BLOCK;
        std::memset(sums, 0, static_cast<size_t>(last - first) * 2 * LANES * sizeof(float));
        for (int run = 0; run < blocks; run += PANEL_RUNS) {
            int runs = blocks - run < PANEL_RUNS ? blocks - run : PANEL_RUNS;
            unpack_panel<Form>(w, stride, run, run + runs, panel);
            for (int token = first; token < last; token += 2 * TILE) {
                Tokens a{tile_of(in, token, columns) + run, static_cast<size_t>(blocks)};
                with_count(last - token, [&](auto count) {
                    add_panel<KindOf<Form>, decltype(count)::value>(panel, runs, a, sums + (token - first) * 2 * LANES);
                });
            }
        }
    }
    // Memory is read while products are computed, where panels do one after the other: better until tokens are many.
    static constexpr int FEW = 32;
    static void without_panels(const uint8_t* w, size_t stride, int columns, const Inputs& in, int first, int last,
                               float* sums) {
        for (int group = 0; group < 2; group++)
            for (int token = first; token < last; token += 2 * TILE)
                with_count(last - token, [&](auto count) {
                    rows<decltype(count)::value>(w + static_cast<size_t>(group) * stride, columns, tile_of(in, token, columns),
                                                 sums + (2 * (token - first) + group) * LANES, 2 * LANES);
                });
    }
    static void unpack(const uint8_t* w, int columns, int lane, float* out) { Blocks<Form>::unpack(w, columns, lane, out); }
};

}  // namespace
}  // namespace localllm
