// Products of packed rows of floats with many tokens: 16 rows and 8 tokens a tile, over a panel of columns as float32.
//
// As in tiles.h even and odd columns have a sum each, in the order of columns, so both give the same numbers.
#pragma once
#include "vnni_tiles.h"

namespace localllm {
namespace {

constexpr int PANEL_COLUMNS = 128;  // 8 kB: the first-level cache holds it beside the activations

// sums (T, 2, 16) of even and odd columns go on with a panel (columns, 16); x (T, columns), `ld` apart.
template <int T>
__attribute__((noinline)) void add_float_panel(const float* panel, int columns, const float* x, size_t ld, float* sums) {
    __m512 even[T], odd[T];
    UNROLL for (int t = 0; t < T; t++) {
        even[t] = _mm512_load_ps(sums + t * 4 * LANES);
        odd[t] = _mm512_load_ps(sums + t * 4 * LANES + 2 * LANES);
    }
    int c = 0;
    for (; c + 1 < columns; c += 2, panel += 4 * LANES) {
        __m512 w0 = _mm512_load_ps(panel), w1 = _mm512_load_ps(panel + 2 * LANES);
        UNROLL for (int t = 0; t < T; t++) {
            const float* at = x + static_cast<size_t>(t) * ld + c;
            even[t] = _mm512_fmadd_ps(w0, _mm512_set1_ps(at[0]), even[t]);
            odd[t] = _mm512_fmadd_ps(w1, _mm512_set1_ps(at[1]), odd[t]);
        }
    }
    if (c < columns)
        UNROLL for (int t = 0; t < T; t++)
            even[t] = _mm512_fmadd_ps(_mm512_load_ps(panel), _mm512_set1_ps(x[static_cast<size_t>(t) * ld + c]), even[t]);
    UNROLL for (int t = 0; t < T; t++) {
        _mm512_store_ps(sums + t * 4 * LANES, even[t]);
        _mm512_store_ps(sums + t * 4 * LANES + 2 * LANES, odd[t]);
    }
}

template <class Plain>
struct WideFloats : Floats<Plain> {
    static constexpr bool HAS_PANELS = true;
    static constexpr int PANEL_GROUPS = 2, PANEL_FROM = 2;

    // Two groups with tokens first..last; sums (last - first, 16) on a line of cache.
    template <int G>
    static __attribute__((noinline)) void panels(const uint8_t* w, size_t stride, int columns, const Inputs& in, int first,
                                                 int last, float* sums) {
        alignas(64) float panel[PANEL_COLUMNS * 2 * LANES], both[PANEL_TOKENS * 4 * LANES] = {};
        for (int c = 0; c < columns; c += PANEL_COLUMNS) {
            int size = columns - c < PANEL_COLUMNS ? columns - c : PANEL_COLUMNS;
            for (int group = 0; group < 2; group++) {
                const uint8_t* at = w + static_cast<size_t>(group) * stride + static_cast<size_t>(c) * Floats<Plain>::COLUMN_BYTES;
                for (int i = 0; i < size; i++)
                    store(panel + (2 * i + group) * LANES, Plain::values(at + static_cast<size_t>(i) * Floats<Plain>::COLUMN_BYTES));
            }
            for (int token = first; token < last; token += 2 * TILE)
                with_count<2 * TILE>(last - token, [&](auto count) {
                    add_float_panel<decltype(count)::value>(panel, size, in.values + static_cast<size_t>(token) * in.ld + c,
                                                            in.ld, both + (token - first) * 4 * LANES);
                });
        }
        for (int t = 0; t < last - first; t++) {
            const float* pair = both + t * 4 * LANES;
            _mm512_store_ps(sums + t * 2 * LANES, _mm512_load_ps(pair) + _mm512_load_ps(pair + 2 * LANES));
        }
    }
};

}  // namespace
}  // namespace localllm
