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
    INLINE static I dots(I sum, I quants, I q) { return _mm256_dpbusd_epi32(sum, quants, q); }
    INLINE static F floats(I v) { return _mm256_cvtepi32_ps(v); }
    INLINE static F bits(I v) { return _mm256_castsi256_ps(v); }
    INLINE static F all(float x) { return _mm256_set1_ps(x); }
    INLINE static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
};

template <>
struct Rows<2> {
    using I = __m512i;
    using F = __m512;
    INLINE static I zero() { return _mm512_setzero_si512(); }
    INLINE static I every(int32_t x) { return _mm512_set1_epi32(x); }
    INLINE static I dots(I sum, I quants, I q) { return _mm512_dpbusd_epi32(sum, quants, q); }
    INLINE static F floats(I v) { return _mm512_cvtepi32_ps(v); }
    INLINE static F bits(I v) { return _mm512_castsi512_ps(v); }
    INLINE static F all(float x) { return _mm512_set1_ps(x); }
    INLINE static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
};

INLINE int32_t word_of(const int8_t* four) {
    int32_t word;
    std::memcpy(&word, four, 4);
    return word;
}

// ---- what a set of quants looks like to the products

// body(a Count of 1 to 4 or 8 tokens); more are taken as MOST.
template <int N>
struct Count {
    static constexpr int value = N;
};
template <int MOST, class Body>
INLINE void with_count(int count, Body body) {
    switch (count) {
        case 1: return body(Count<1>{});
        case 2: return body(Count<2>{});
        case 3: return body(Count<3>{});
        case 4: return body(Count<4>{});
    }
    if constexpr (MOST > 4) switch (count) {
        case 5: return body(Count<5>{});
        case 6: return body(Count<6>{});
        case 7: return body(Count<7>{});
    }
    body(Count<MOST>{});
}

template <class Form>
INLINE Words unsigned_quants(const uint8_t* w, int run, int j) {
    constexpr int OFFSET = OffsetOf<Form>::VALUE;
    Words v = Form::quants(w, run, j);
    return Form::IS_SIGNED || OFFSET ? _mm256_add_epi8(v, _mm256_set1_epi8(static_cast<char>(BIAS - OFFSET))) : v;
}

template <class Form>
INLINE void fetch_run(const uint8_t* w, int run) {
    constexpr int RUNS = shape_of(Form::TYPE).values / BLOCK, RUN_BYTES = LANES * shape_of(Form::TYPE).bytes / RUNS;
    for (int at = 0; at < RUN_BYTES; at += 64) fetch_weights(w + run * RUN_BYTES + at);
}

// What products need to know of a type.
template <bool SIGNED, bool FLOOR, bool HALVES>
struct Kind {
    static constexpr bool IS_SIGNED = SIGNED, HAS_FLOOR = FLOOR, PER_HALF = HALVES;
};
template <class Form>
using KindOf = Kind<Form::IS_SIGNED || OffsetOf<Form>::VALUE, Form::HAS_FLOOR, Form::PER_HALF>;

// One run's products of Z registers of rows with T tokens onto their sums. `quants(half, j, z)`: four columns;
// `scale(half, z)` and `floor(half, z)`.
template <class K, int R, int Z, int T, class Quants, class Scale, class Floor>
INLINE void add_run(const Tokens& a, typename Rows<R>::F (*sum)[T], Quants quants, Scale scale, Floor floor) {
    using V = Rows<R>;
    typename V::F part[Z][T];
    auto add_part = [&](int half) __attribute__((always_inline)) {
        UNROLL for (int z = 0; z < Z; z++) {
            auto by = scale(half, z);
            UNROLL for (int t = 0; t < T; t++) sum[z][t] = V::fma(part[z][t], by, sum[z][t]);
        }
    };
    UNROLL for (int half = 0; half < BLOCK / HALF; half++) {
        typename V::I exact[Z][T];
        UNROLL for (int t = 0; t < T; t++) {
            auto from = K::IS_SIGNED ? V::every(a.of(t).sums[half][t % TILE]) : V::zero();
            UNROLL for (int z = 0; z < Z; z++) exact[z][t] = from;
        }
        UNROLL for (int j = 0; j < HALF / 4; j++) {
            typename V::I v[Z];
            UNROLL for (int z = 0; z < Z; z++) {
                v[z] = quants(half, half * (HALF / 4) + j, z);
                asm volatile("" : "+v"(v[z]));  // unpacked once, not once a token
            }
            UNROLL for (int t = 0; t < T; t++) {
                auto four = V::every(word_of(a.of(t).q[t % TILE] + half * HALF + 4 * j));
                if (Z > 1) asm volatile("" : "+v"(four));  // read once, not once a register
                UNROLL for (int z = 0; z < Z; z++) exact[z][t] = V::dots(exact[z][t], v[z], four);
            }
        }
        UNROLL for (int t = 0; t < T; t++) {
            auto its = V::bits(V::every(a.of(t).ratio[half][t % TILE]));
            UNROLL for (int z = 0; z < Z; z++) {
                auto x = V::floats(exact[z][t]);
                part[z][t] = K::PER_HALF || !half ? x * its : V::fma(x, its, part[z][t]);
            }
        }
        if (K::PER_HALF) add_part(half);
    }
    if (!K::PER_HALF) add_part(0);
    if constexpr (K::HAS_FLOOR)
        UNROLL for (int half = 0; half < 1 + K::PER_HALF; half++)
            UNROLL for (int t = 0; t < T; t++) {
                const ActBlock& of = a.of(t);
                auto total = V::all(of.sum[t % TILE]);
                if (K::PER_HALF)
                    total = V::floats(V::every(of.sums[half][t % TILE])) * V::bits(V::every(of.ratio[half][t % TILE])) *
                            V::all(-1.0f / BIAS);
                UNROLL for (int z = 0; z < Z; z++) sum[z][t] = V::fma(floor(half, z), total, sum[z][t]);
            }
}

// ---- many tokens: G groups of up to PANEL_RUNS runs unpacked, small enough to stay in the first-level cache
//
// 32 rows and 4 tokens a tile: an activation that is read serves two registers of rows. 16 rows and 8 tokens would ask for
// more reads than the machine has time for.

constexpr int PANEL_RUNS = 8;

template <int G>
struct Panel {
    alignas(64) uint8_t quants[PANEL_RUNS][BLOCK / 4][32 * G];
    alignas(64) float scale[PANEL_RUNS][2][LANES * G];
    alignas(64) float floor[PANEL_RUNS][2][LANES * G];
};

template <class Form, int G>
INLINE void unpack_run(const uint8_t* w, size_t stride, int run, Panel<G>& panel, int at) {
    for (int group = 0; group < G; group++) {
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

// Runs first..last of G groups.
template <class Form, int G>
INLINE void unpack_panel(const uint8_t* w, size_t stride, int first, int last, Panel<G>& panel) {
    constexpr BlockShape SHAPE = shape_of(Form::TYPE);
    constexpr int RUNS = SHAPE.values / BLOCK, BYTES = LANES * SHAPE.bytes;
    for (int run = first; run < last; run++)
        unpack_run<Form, G>(w + static_cast<size_t>(run / RUNS) * BYTES, stride, run % RUNS, panel, run - first);
}

// sums (T, G * 8) of T tokens go on with the runs of a panel.
template <class K, int G, int T>
__attribute__((noinline)) void add_panel(const Panel<G>& panel, int runs, Tokens a, float* sums) {
    using V = Rows<2>;
    constexpr int Z = G / 2, WIDTH = 2 * LANES;
    V::F sum[Z][T];
    UNROLL for (int z = 0; z < Z; z++)
        UNROLL for (int t = 0; t < T; t++) sum[z][t] = _mm512_load_ps(sums + (t * Z + z) * WIDTH);
    for (int run = 0; run < runs; run++, a.first++)
        add_run<K, 2, Z, T>(
            a, sum, [&](int, int j, int z) __attribute__((always_inline)) { return _mm512_load_si512(panel.quants[run][j] + 64 * z); },
            [&](int half, int z) __attribute__((always_inline)) { return _mm512_load_ps(panel.scale[run][half] + WIDTH * z); },
            [&](int half, int z) __attribute__((always_inline)) { return _mm512_load_ps(panel.floor[run][half] + WIDTH * z); });
    UNROLL for (int z = 0; z < Z; z++)
        UNROLL for (int t = 0; t < T; t++) _mm512_store_ps(sums + (t * Z + z) * WIDTH, sum[z][t]);
}

template <class Form>
struct Vnni {
    static constexpr BlockShape SHAPE = shape_of(Form::TYPE);
    static constexpr int VALUES = SHAPE.values, BYTES = LANES * SHAPE.bytes;
    static constexpr int RUNS = VALUES / BLOCK;
    static constexpr bool PAIRED = false, HAS_PANELS = true, HAS_STRIPS = true;
    static constexpr int PANEL_GROUPS = 4;
    static constexpr int PANEL_FROM = TILE + 1;  // tokens; fewer unpack as they go

    // The sums of T tokens go on with the blocks of `columns` more.
    // not inlined: three products would otherwise hold a copy each of every type
    template <int T>
    static __attribute__((noinline)) void rows(const uint8_t* w, int columns, Tokens a, float* sums, int sums_stride) {
        F8 sum[1][T];
        UNROLL for (int t = 0; t < T; t++) sum[0][t] = load(sums + t * sums_stride);
        for (int b = 0; b < columns / VALUES; b++, w += BYTES) {
            Unit unit = Form::unit(w);
            // unrolled, so that every shift is by a constant
            UNROLL for (int run = 0; run < RUNS; run++, a.first++) {
                fetch_run<Form>(w, run);
                Scales by = Form::scales(w, unit, run);
                add_run<KindOf<Form>, 1, 1, T>(
                    a, sum, [&](int, int j, int) __attribute__((always_inline)) { return unsigned_quants<Form>(w, run, j); },
                    [&](int half, int) __attribute__((always_inline)) { return by.scale[half]; },
                    [&](int half, int) __attribute__((always_inline)) { return by.floor[half]; });
            }
        }
        UNROLL for (int t = 0; t < T; t++) store(sums + t * sums_stride, sum[0][t]);
    }

    // G groups with tokens first..last; sums (last - first, G * 8) on a line of cache.
    template <int G>
    static __attribute__((noinline)) void panels(const uint8_t* w, size_t stride, int columns, const Inputs& in, int first,
                                                 int last, float* sums) {
        if (in.count <= FEW) return without_panels<G>(w, stride, columns, in, first, last, sums);
        Panel<G> panel;
        constexpr int TOKENS = 4 * TILE / G;
        const int blocks = columns / BLOCK;
        std::memset(sums, 0, static_cast<size_t>(last - first) * G * LANES * sizeof(float));
        for (int run = 0; run < blocks; run += PANEL_RUNS) {
            int runs = blocks - run < PANEL_RUNS ? blocks - run : PANEL_RUNS;
            unpack_panel<Form, G>(w, stride, run, run + runs, panel);
            for (int token = first; token < last; token += TOKENS) {
                Tokens a = tokens_of(in, token, columns);
                a.first += run;
                with_count<TOKENS>(last - token, [&](auto count) {
                    add_panel<KindOf<Form>, G, decltype(count)::value>(panel, runs, a, sums + (token - first) * G * LANES);
                });
            }
        }
    }
    // Memory is read while products are computed, where panels do one after the other: better until tokens are many.
    static constexpr int FEW = 32;
    template <int G>
    static void without_panels(const uint8_t* w, size_t stride, int columns, const Inputs& in, int first, int last,
                               float* sums) {
        for (int token = first; token < last; token += 2 * TILE)
            with_count<2 * TILE>(last - token, [&](auto count) {
                strips<Vnni, decltype(count)::value>(w, stride, G, columns, tokens_of(in, token, columns),
                                                     sums + G * (token - first) * LANES, G * LANES);
            });
    }
    static void unpack(const uint8_t* w, int columns, int lane, float* out) { Blocks<Form>::unpack(w, columns, lane, out); }
};

}  // namespace
}  // namespace localllm
