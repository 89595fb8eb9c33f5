// Matrix products of one thread's rows: plain, gated, and the vocabulary head.
#pragma once
#include "block_tiles.h"
#include "grid_blocks.h"
#include "rowwise.h"
#include "tiles.h"
#ifdef LOCALLLM_AVX512
#include "vnni_tiles.h"
#include "wide_floats.h"
#endif

namespace localllm {
namespace {

#ifdef LOCALLLM_AVX512
using PlainQ4_0 = Vnni<Q4_0>;
using PlainQ4_1 = Vnni<Q4_1>;
using PlainQ8_0 = Vnni<Q8_0>;
template <class Form>
using Quantized = Vnni<Form>;
template <class Plain>
using Unquantized = WideFloats<Plain>;
#else
using PlainQ4_0 = FourBit<false>;
using PlainQ4_1 = FourBit<true>;
using PlainQ8_0 = Blocks<Q8_0>;
template <class Form>
using Quantized = Blocks<Form>;
template <class Plain>
using Unquantized = Floats<Plain>;
#endif

// activations that a pass over the weights works on should stay in the second-level cache
#ifdef LOCALLLM_AVX512
constexpr size_t PASS_BYTES = 800 * 1024;  // machines with these instructions have at least 1 MB
#else
constexpr size_t PASS_BYTES = 400 * 1024;
#endif

INLINE int tokens_per_pass(int columns) {
    size_t bytes_per_token = static_cast<size_t>(columns) * sizeof(ActBlock) / (BLOCK * TILE) + 1;
    int tokens = static_cast<int>(PASS_BYTES / bytes_per_token);
#ifdef LOCALLLM_AVX512
    // whole panels: with wide rows, unpacking weights once more costs more than reading activations from the cache behind
    return tokens < PANEL_TOKENS ? PANEL_TOKENS : tokens / PANEL_TOKENS * PANEL_TOKENS;
#else
    return tokens < 32 ? 32 : tokens / TILE * TILE;
#endif
}

// emit(group - first, token, sums of 8 rows) for R groups and the up to TILE tokens from `token` on
template <class W, int R, bool AHEAD, class Emit>
INLINE void one_tile(const uint8_t* w, size_t stride, int columns, const Inputs& in, int token, int count, Emit emit) {
    alignas(32) float sums[2 * TILE * LANES];
#define CASE(T)                                                             \
    W::template tile<R, T, AHEAD>(w, stride, columns, in, token, sums);     \
    for (int r = 0; r < R; r++)                                             \
        for (int t = 0; t < T; t++) emit(r, token + t, load(sums + (r * T + t) * LANES));
    switch (count) {
        case 1: { CASE(1) } break;
        case 2: { CASE(2) } break;
        case 3: { CASE(3) } break;
        default: { CASE(4) }
    }
#undef CASE
}

// emit(group, token, sums) for up to STRIP_GROUPS groups and the up to TILE tokens from `token` on
constexpr int STRIP_GROUPS = 8;
template <class W, class Emit>
INLINE void strip_tile(const uint8_t* w, size_t stride, int groups, int columns, const Inputs& in, int token, int count,
                       Emit emit) {
    alignas(32) float sums[TILE * STRIP_GROUPS * LANES];
    constexpr int LD = STRIP_GROUPS * LANES;
    const Tokens a = tokens_of(in, token, columns);
    switch (count) {
        case 1: strips<W, 1>(w, stride, groups, columns, a, sums, LD); break;
        case 2: strips<W, 2>(w, stride, groups, columns, a, sums, LD); break;
        case 3: strips<W, 3>(w, stride, groups, columns, a, sums, LD); break;
        default: strips<W, 4>(w, stride, groups, columns, a, sums, LD);
    }
    for (int g = 0; g < groups; g++)
        for (int t = 0; t < (count < TILE ? count : TILE); t++) emit(g, token + t, load(sums + t * LD + g * LANES));
}

// Groups in a row with the `count` tokens from `token` on; emit(group, token, sums). `ahead`: weights come from memory.
// `paired`: two groups at once. With one or two tokens memory is the limit, and one stream reads faster than two.
template <class W, class Emit>
INLINE void tile_groups(const uint8_t* w, size_t stride, int groups, int columns, const Inputs& in, int token, int count,
                        bool ahead, bool paired, Emit emit) {
    int group = 0;
    auto put = [&](int r, int t, F8 sums) { emit(group + r, t, sums); };
    if constexpr (W::PAIRED)
        if (paired)
            for (; group + 1 < groups; group += 2) {
                const uint8_t* at = w + static_cast<size_t>(group) * stride;
                if (ahead)
                    one_tile<W, 2, true>(at, stride, columns, in, token, count, put);
                else
                    one_tile<W, 2, false>(at, stride, columns, in, token, count, put);
            }
    for (int size = 1; group < groups; group += size) {
        const uint8_t* at = w + static_cast<size_t>(group) * stride;
        if constexpr (W::HAS_STRIPS) {
            size = groups - group < STRIP_GROUPS ? groups - group : STRIP_GROUPS;
            strip_tile<W>(at, stride, size, columns, in, token, count, put);
        } else if (ahead) {
            one_tile<W, 1, true>(at, stride, columns, in, token, count, put);
        } else {
            one_tile<W, 1, false>(at, stride, columns, in, token, count, put);
        }
    }
}

// As many groups by panels of G as there are whole ones from `group` on, with tokens first..last; returns the next group.
template <class W, int G, class Emit>
INLINE int panels_of(const uint8_t* w, size_t stride, int group, int groups, int columns, const Inputs& in, int first,
                     int last, Emit emit) {
    alignas(64) float sums[PANEL_TOKENS * G * LANES];
    for (; group + G <= groups; group += G)
        for (int token = first; token < last; token += PANEL_TOKENS) {
            int end = last - token < PANEL_TOKENS ? last : token + PANEL_TOKENS;
            W::template panels<G>(w + static_cast<size_t>(group) * stride, stride, columns, in, token, end, sums);
            for (int t = token; t < end; t++)
                for (int g = 0; g < G; g++) emit(group + g, t, load(sums + ((t - token) * G + g) * LANES));
        }
    return group;
}

// Groups by panels, if the format has them and the tokens are many; how many are done, from the first on.
template <class W, class Emit>
INLINE int panel_groups(const uint8_t* w, size_t stride, int groups, int columns, const Inputs& in, int first, int last,
                        Emit emit) {
    int done = 0;
    if constexpr (W::HAS_PANELS) {
        if (last - first < W::PANEL_FROM) return 0;
        if constexpr (W::PANEL_GROUPS > 2)
            done = panels_of<W, W::PANEL_GROUPS>(w, stride, done, groups, columns, in, first, last, emit);
        done = panels_of<W, 2>(w, stride, done, groups, columns, in, first, last, emit);
    }
    return done;
}

template <class W, class Emit>
INLINE void product(const Slice& w, size_t stride, int columns, const Inputs& in, int first, int last, Emit emit) {
    int done = panel_groups<W>(w.data, stride, w.num_groups, columns, in, first, last, emit);
    bool paired = W::PAIRED && last - first > 2;
    int step = W::HAS_STRIPS && last - first <= TILE ? STRIP_GROUPS : paired ? 2 : 1;
    for (int group = done; group < w.num_groups; group += step) {
        int size = w.num_groups - group < step ? w.num_groups - group : step;
        const uint8_t* at = w.data + static_cast<size_t>(group) * stride;
        for (int token = first; token < last; token += TILE)
            tile_groups<W>(at, stride, size, columns, in, token, last - token < TILE ? last - token : TILE,
                           token == first, paired, [&](int g, int t, F8 sums) { emit(group + g, t, sums); });
    }
}

template <class Body>
INLINE void with_format(Type type, Body body) {
    switch (type) {
        case Type::Q4_0: body(PlainQ4_0{}); break;
        case Type::Q4_1: body(PlainQ4_1{}); break;
        case Type::Q8_0: body(PlainQ8_0{}); break;
        case Type::Q5_0: body(Quantized<Q5_0>{}); break;
        case Type::Q5_1: body(Quantized<Q5_1>{}); break;
        case Type::Q2_K: body(Quantized<Q2_K>{}); break;
        case Type::Q3_K: body(Quantized<Q3_K>{}); break;
        case Type::Q4_K: body(Quantized<Q4_K>{}); break;
        case Type::Q5_K: body(Quantized<Q5_K>{}); break;
        case Type::Q6_K: body(Quantized<Q6_K>{}); break;
        case Type::IQ4_NL: body(Quantized<IQ4_NL>{}); break;
        case Type::IQ4_XS: body(Quantized<IQ4_XS>{}); break;
        case Type::MXFP4: body(Quantized<MXFP4>{}); break;
        case Type::IQ1_S: body(Quantized<IQ1_S>{}); break;
        case Type::IQ1_M: body(Quantized<IQ1_M>{}); break;
        case Type::IQ2_XXS: body(Quantized<IQ2_XXS>{}); break;
        case Type::IQ2_XS: body(Quantized<IQ2_XS>{}); break;
        case Type::IQ2_S: body(Quantized<IQ2_S>{}); break;
        case Type::IQ3_XXS: body(Quantized<IQ3_XXS>{}); break;
        case Type::IQ3_S: body(Quantized<IQ3_S>{}); break;
        case Type::TQ1_0: body(Quantized<TQ1_0>{}); break;
        case Type::TQ2_0: body(Quantized<TQ2_0>{}); break;
        case Type::Q1_0: body(Quantized<Q1_0>{}); break;
        case Type::F16: body(Unquantized<PlainF16>{}); break;
        case Type::BF16: body(Unquantized<PlainBF16>{}); break;
        case Type::F32: body(Unquantized<PlainF32>{}); break;
    }
}

// Passes over the slice, a bounded number of tokens each.
template <class Body>
INLINE void passes(int count, int columns, Body body) {
    int step = tokens_per_pass(columns);
    for (int first = 0; first < count; first += step) body(first, count - first < step ? count : first + step);
}

void linear(const Slice& w, Type type, int columns, const Inputs& in, const LinearOut& out) {
    with_format(type, [&](auto format) {
        using W = decltype(format);
        passes(in.count, columns, [&](int first, int last) {
            product<W>(w, group_bytes(type, columns), columns, in, first, last,
                       [&](int group, int token, F8 sums) {
                           size_t row = static_cast<size_t>(w.first_group + group) * LANES;
                           if (out.bias) sums = sums + load(out.bias + row);
                           if (out.residual) {
                               F8 before = load(out.residual + static_cast<size_t>(token) * out.residual_ld + row);
                               sums = before + sums * all(out.scale);
                           }
                           store(out.y + static_cast<size_t>(token) * out.ld + row, sums);
                       });
        });
    });
}

// A unit of hidden values of some tokens, while it is in a near cache.
template <int TOKENS>
struct Hidden {
    alignas(32) float gate[TOKENS][BLOCK];
    alignas(32) float up[TOKENS][BLOCK];
};

INLINE void emit_hidden(float* gates, const float* ups, int unit, int num_groups, int token, const GatedOut& out) {
    size_t row = static_cast<size_t>(unit) * BLOCK;
    for (int i = 0; i < num_groups * LANES; i += LANES) {
        F8 gate = load(gates + i), up = load(ups + i);
        if (out.gate_bias) gate = gate + load(out.gate_bias + row + i);
        if (out.up_bias) up = up + load(out.up_bias + row + i);
        store(gates + i, gate_times_up(gate, up, out.activation));
    }
    if (out.blocks) {
        size_t tile = static_cast<size_t>(token / TILE) * static_cast<size_t>(out.blocks_per_token);
        quantize_block(gates, out.blocks[tile + static_cast<size_t>(unit)], token % TILE);
    }
    if (out.values)
        for (int i = 0; i < num_groups * LANES; i += LANES)
            store(out.values + static_cast<size_t>(token) * out.ld + row + i, load(gates + i));
}

// Groups of one matrix of a unit, where gate and up differ in type and no loop holds both.
void some_groups(const uint8_t* w, Type type, int groups, int columns, const Inputs& in, int token, int count,
                 float (*to)[BLOCK]) {
    with_format(type, [&](auto format) {
        tile_groups<decltype(format)>(w, group_bytes(type, columns), groups, columns, in, token, count, true, false,
                                      [&](int group, int t, F8 sums) { store(to[t % TILE] + group * LANES, sums); });
    });
}

void gated_of_two_types(const Slice& w, Type gate, Type up, int columns, int groups, const Inputs& in,
                        const GatedOut& out) {
    size_t gate_stride = group_bytes(gate, columns), up_stride = group_bytes(up, columns);
    passes(in.count, columns, [&](int first, int last) {
        const uint8_t* at = w.data;
        for (int unit = w.first_group; unit < w.first_group + w.num_groups; unit++) {
            int size = groups - unit * UNIT_GROUPS < UNIT_GROUPS ? groups - unit * UNIT_GROUPS : UNIT_GROUPS;
            const uint8_t* ups = at + gate_stride * static_cast<size_t>(size);
            for (int token = first; token < last; token += TILE) {
                int end = last - token < TILE ? last : token + TILE;
                Hidden<TILE> hidden;
                some_groups(at, gate, size, columns, in, token, end - token, hidden.gate);
                some_groups(ups, up, size, columns, in, token, end - token, hidden.up);
                for (int t = token; t < end; t++)
                    emit_hidden(hidden.gate[t % TILE], hidden.up[t % TILE], unit, size, t, out);
            }
            at = ups + up_stride * static_cast<size_t>(size);
        }
    });
}

// One unit: all of a tile's gate and up rows, then on, so that the unit's weights stay near.
template <class W>
INLINE void unit_of_hidden(const uint8_t* w, size_t stride, int columns, const Inputs& in, int first, int last, int unit,
                           int size, const GatedOut& out) {
    constexpr int TOKENS = W::HAS_PANELS ? PANEL_TOKENS : TILE;
    for (int token = first; token < last; token += TOKENS) {
        int count = last - token < TOKENS ? last - token : TOKENS;
        Hidden<TOKENS> hidden;
        auto put = [&](int group, int t, F8 sums) {
            float* to = group < size ? hidden.gate[t - token] + group * LANES : hidden.up[t - token] + (group - size) * LANES;
            store(to, sums);
        };
        int done = panel_groups<W>(w, stride, 2 * size, columns, in, token, token + count, put);
        for (int t = 0; t < count && done < 2 * size; t += TILE)
            tile_groups<W>(w + static_cast<size_t>(done) * stride, stride, 2 * size - done, columns, in, token + t,
                           count - t < TILE ? count - t : TILE, token + t == first, last - first > 2,
                           [&](int group, int at, F8 sums) { put(done + group, at, sums); });
        for (int t = 0; t < count; t++) emit_hidden(hidden.gate[t], hidden.up[t], unit, size, token + t, out);
    }
}

void gated(const Slice& w, Type type, Type up, int columns, int groups, const Inputs& in, const GatedOut& out) {
    if (type != up) return gated_of_two_types(w, type, up, columns, groups, in, out);
    with_format(type, [&](auto format) {
        using W = decltype(format);
        size_t stride = group_bytes(type, columns);
        passes(in.count, columns, [&](int first, int last) {
            const uint8_t* at = w.data;
            for (int unit = w.first_group; unit < w.first_group + w.num_groups; unit++) {
                int size = groups - unit * UNIT_GROUPS < UNIT_GROUPS ? groups - unit * UNIT_GROUPS : UNIT_GROUPS;
                unit_of_hidden<W>(at, stride, columns, in, first, last, unit, size, out);
                at += stride * static_cast<size_t>(2 * size);
            }
        });
    });
}

// -inf in all lanes but the first `count`
INLINE F8 only_first(F8 x, int count) {
    float lanes[LANES];
    store(lanes, x);
    for (int lane = count; lane < LANES; lane++) lanes[lane] = -INFINITY;
    return load(lanes);
}

// The first group of the largest value, per lane, in whatever order groups come.
INLINE void keep_best(F8 x, int group, float* best, int32_t* best_group) {
#ifdef LOCALLLM_AVX2
    F8 before = load(best), greater = _mm256_cmp_ps(x, before, _CMP_GT_OQ), equal = _mm256_cmp_ps(x, before, _CMP_EQ_OQ);
    __m256i* groups = reinterpret_cast<__m256i*>(best_group);
    __m256i its = _mm256_set1_epi32(group), kept = _mm256_loadu_si256(groups);
    __m256i earlier = _mm256_and_si256(_mm256_castps_si256(equal), _mm256_cmpgt_epi32(kept, its));
    __m256i better = _mm256_or_si256(_mm256_castps_si256(greater), earlier);
    store(best, _mm256_blendv_ps(before, x, greater));
    _mm256_storeu_si256(groups, _mm256_blendv_epi8(kept, its, better));
#else
    float lanes[LANES];
    store(lanes, x);
    for (int lane = 0; lane < LANES; lane++) {  // choices, not branches: these become vectors
        bool greater = lanes[lane] > best[lane], earlier = lanes[lane] == best[lane] && group < best_group[lane];
        best[lane] = greater ? lanes[lane] : best[lane];
        best_group[lane] = greater || earlier ? group : best_group[lane];
    }
#endif
}

void head(const Slice& w, Type type, int columns, const Inputs& in, const HeadOut& out) {
    with_format(type, [&](auto format) {
        using W = decltype(format);
        passes(in.count, columns, [&](int first, int last) {
            product<W>(w, group_bytes(type, columns), columns, in, first, last, [&](int group, int token, F8 sums) {
                int row = (w.first_group + group) * LANES;
                if (out.scale != 1.0f) sums = sums * all(out.scale);
                if (out.softcap != 0.0f) sums = tanh8(sums / all(out.softcap)) * all(out.softcap);
                if (out.stored[token]) store(out.logits + static_cast<size_t>(token) * out.ld + row, sums);
                if (row + LANES > out.num_rows) sums = only_first(sums, out.num_rows - row);
                keep_best(sums, w.first_group + group, out.best + token * LANES, out.best_group + token * LANES);
            });
        });
    });
}

void unpack_row(const uint8_t* group, Type type, int columns, int lane, float factor, float* out) {
    with_format(type, [&](auto format) { decltype(format)::unpack(group, columns, lane, out); });
    if (factor != 1.0f)
        for (int c = 0; c < columns; c++) out[c] *= factor;
}

}  // namespace
}  // namespace localllm
