// Products of packed rows in any of the blocks of blocks.h with T tokens: words of quants are unpacked as they are needed.
#pragma once
#include "blocks.h"
#include "tiles.h"

namespace localllm {
namespace {

// The sum of 16 activations, the same in all lanes.
INLINE F8 sum_of_half(const ActBlock& a, int half, int t) {
    const int8_t* q = a.q[t] + half * HALF;
#ifdef LOCALLLM_AVX2
    __m128i shifted = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)), _mm_set1_epi8(-128));
    __m128i sums = _mm_sad_epu8(shifted, _mm_setzero_si128());
    int sum = _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums))) - HALF * 128;
#else
    int sum = 0;
    for (int i = 0; i < HALF; i++) sum += q[i];
#endif
    return all(a.scale[t] * static_cast<float>(sum * once(a.ratio[half][t])));
}

template <class Form>
struct Blocks {
    static constexpr BlockShape SHAPE = shape_of(Form::TYPE);
    static constexpr int BYTES = LANES * SHAPE.bytes;
    static constexpr int RUNS = SHAPE.values / BLOCK;
    static constexpr bool PAIRED = false, HAS_PANELS = false;

    // The products of half a run, times the ratio of the activations.
    template <int T>
    INLINE static void products(const uint8_t* w, int run, int half, const ActBlock& a, Ints* out) {
#ifdef LOCALLLM_AVX2
        // 8 products of two bytes fit in the 16 bits of a sum, or 2 where the quants are large
        constexpr bool FITS = 8 * Form::MOST * 127 < (1 << 15);
        Ints sum[T];
        UNROLL for (int j = 0; j < 4; j++) {
            Words v = Form::quants(w, run, half * 4 + j), size = Form::IS_SIGNED ? _mm256_abs_epi8(v) : v;
            UNROLL for (int t = 0; t < T; t++) {
                __m256i x = FourBit<true>::four(a.q[t] + half * HALF + 4 * j);
                if constexpr (Form::IS_SIGNED) x = _mm256_sign_epi8(x, v);
                __m256i pairs = _mm256_maddubs_epi16(size, x);
                if constexpr (FITS) {
                    sum[t] = j ? _mm256_add_epi16(sum[t], pairs) : pairs;
                } else {
                    pairs = FourBit<true>::scaled(pairs, a, half, t);
                    sum[t] = j ? add(sum[t], pairs) : pairs;
                }
            }
        }
        UNROLL for (int t = 0; t < T; t++) out[t] = FITS ? FourBit<true>::scaled(sum[t], a, half, t) : sum[t];
#else
        Words v[4];
        UNROLL for (int j = 0; j < 4; j++) v[j] = Form::quants(w, run, half * 4 + j);
        UNROLL for (int t = 0; t < T; t++)
            out[t] = times(dots<Form::MOST>(v, a.q[t] + half * HALF), once(a.ratio[half][t]));
        UNROLL for (int t = 0; t < T; t++) pin(out[t]);
#endif
    }

    template <int T>
    INLINE static void one_run(const uint8_t* w, const Unit& unit, int run, const ActBlock& a, F8* sum) {
        Ints left[T], right[T];
        products<T>(w, run, 0, a, left);
        products<T>(w, run, 1, a, right);
        Scales by = Form::scales(w, unit, run);
        UNROLL for (int t = 0; t < T; t++) {
            F8 scale = all_at(a.scale + t);
            if constexpr (Form::PER_HALF) {
                sum[t] = fma(floats(left[t]), by.scale[0] * scale, sum[t]);
                sum[t] = fma(floats(right[t]), by.scale[1] * scale, sum[t]);
            } else {
                sum[t] = fma(floats(add(left[t], right[t])), by.scale[0] * scale, sum[t]);
            }
            if constexpr (Form::HAS_FLOOR && Form::PER_HALF) {
                sum[t] = fma(by.floor[0], sum_of_half(a, 0, t), sum[t]);
                sum[t] = fma(by.floor[1], sum_of_half(a, 1, t), sum[t]);
            } else if constexpr (Form::HAS_FLOOR) {
                sum[t] = fma(by.floor[0], all_at(a.sum + t), sum[t]);
            }
        }
    }

    // not inlined: three products would otherwise hold a copy each of every type
    template <int T>
    static __attribute__((noinline)) void rows(const uint8_t* w, int num_blocks, const ActBlock* a, float* out) {
        F8 sum[T];
        for (int t = 0; t < T; t++) sum[t] = all(0.0f);
        for (int b = 0; b < num_blocks; b++, w += BYTES) {
            Unit unit = Form::unit(w);
            for (int run = 0; run < RUNS; run++, a++) {
                for (int at = 0; at < BYTES / RUNS; at += 64) prefetch(w + PREFETCH_BYTES + run * (BYTES / RUNS) + at);
                one_run<T>(w, unit, run, *a, sum);
            }
        }
        for (int t = 0; t < T; t++) store(out + t * LANES, sum[t]);
    }

    template <int R, int T, bool AHEAD>
    INLINE static void tile(const uint8_t* w, size_t, int columns, const Inputs& in, int token, float* out) {
        static_assert(R == 1, "these rows go one group at a time");
        rows<T>(w, columns / SHAPE.values, tile_of(in, token, columns), out);
    }

    static void unpack(const uint8_t* w, int columns, int lane, float* out) {
        for (int b = 0; b < columns / SHAPE.values; b++, w += BYTES) {
            Unit unit = Form::unit(w);
            for (int run = 0; run < RUNS; run++, out += BLOCK) unpack_run(w, unit, run, lane, out);
        }
    }
    static void unpack_run(const uint8_t* w, const Unit& unit, int run, int lane, float* out) {
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
                out[4 * j + i] = scale[lane] * static_cast<float>(quants[4 * lane + i]) + floor[lane];
        }
    }
};

}  // namespace
}  // namespace localllm
