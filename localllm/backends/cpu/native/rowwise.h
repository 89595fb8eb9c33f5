// Work on one token's row: norms, activations, sums, rotation, quantizing. Rows are padded to whole lanes with zeros.
#pragma once
#include "kernels.h"
#include "lanes.h"
#include "words.h"

namespace localllm {
namespace {

INLINE F8 activated(F8 x, Activation activation) {
    switch (activation) {
        case Activation::silu: return x * sigmoid8(x);
        case Activation::gelu: return x * (all(1.0f) + each_erf(x * all(0.70710678f))) * all(0.5f);
        case Activation::gelu_tanh: {
            F8 inner = all(0.79788456f) * (x + all(0.044715f) * x * x * x);
            return x * (all(1.0f) + tanh8(inner)) * all(0.5f);
        }
        case Activation::relu: return max(x, all(0.0f));
        case Activation::relu2: return max(x, all(0.0f)) * max(x, all(0.0f));
        default: return x;
    }
}

INLINE F8 gate_times_up(F8 gate, F8 up, Activation activation) {
    if (activation != Activation::swiglu_oai) return activated(gate, activation) * up;
    gate = min(gate, all(7.0f));  // gpt-oss: both limited, and a sharper sigmoid
    up = max(min(up, all(7.0f)), all(-7.0f));
    return gate * sigmoid8(gate * all(1.702f)) * (up + all(1.0f));
}

// The scale of 32 values, and per half its ratio and what brings its values to -127..127.
struct HalfScales {
    float scale;
    int ratio[2];
    float inverse[2];
};

// Ratios are rounded up, so nothing is cut. Below 1e-30 everything is zero: the reciprocal would overflow.
INLINE HalfScales scales_of(float left, float right) {
    constexpr float SMALLEST = 1e-30f;
    float most = left > right ? left : right;
    float unit = most > SMALLEST ? RATIO_MOST / most : 0.0f;
    HalfScales out;
    out.scale = most / (127.0f * RATIO_MOST);
    for (int half = 0; half < 2; half++) {
        float wanted = (half ? right : left) * unit;
        // an infinity or a NaN among the inputs must not become an undefined conversion
        bool fits = wanted < static_cast<float>(RATIO_MOST);
        out.ratio[half] = fits ? static_cast<int>(wanted) + 1 : RATIO_MOST;
        out.inverse[half] = 127.0f * unit / static_cast<float>(out.ratio[half]);
    }
    return out;
}

// Where there is an infinity or a NaN among the inputs, sums are none of bytes and the product may wrap.
INLINE int32_t wrapped_product(int a, int b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}

// AVX-512 products take quants of 0..255: the signed ones and this, which sums that begin at `ActBlock::sums` take back.
constexpr int BIAS = 128;

INLINE void put_float(int32_t& place, float value) { std::memcpy(&place, &value, sizeof place); }

INLINE void put_scales(const HalfScales& scales, int left_sum, int right_sum, ActBlock& out, int t) {
    out.scale[t] = scales.scale;
    // whole numbers below 2^24, so floats hold them
    float sum = static_cast<float>(scales.ratio[0]) * static_cast<float>(left_sum);
    out.sum[t] = scales.scale * (sum + static_cast<float>(scales.ratio[1]) * static_cast<float>(right_sum));
    for (int half = 0; half < 2; half++) {
        int half_sum = half ? right_sum : left_sum;
#ifdef LOCALLLM_AVX512
        float scale = scales.scale * static_cast<float>(scales.ratio[half]);
        put_float(out.ratio[half][t], scale);
        out.sums[half][t] = wrapped_product(-BIAS, half_sum);
#else
        out.ratio[half][t] = twice(scales.ratio[half]);
        out.sums[half][t] = wrapped_product(scales.ratio[half], half_sum);
#endif
    }
}

// 32 values to lane `t`
INLINE void quantize_block(const float* x, ActBlock& out, int t) {
#ifdef LOCALLLM_AVX2
    F8 v0 = load(x), v1 = load(x + 8), v2 = load(x + 16), v3 = load(x + 24), sign = all(-0.0f);
    float left = largest(max(_mm256_andnot_ps(sign, v0), _mm256_andnot_ps(sign, v1)));
    float right = largest(max(_mm256_andnot_ps(sign, v2), _mm256_andnot_ps(sign, v3)));
    HalfScales scales = scales_of(left, right);
    F8 to_left = all(scales.inverse[0]), to_right = all(scales.inverse[1]);
    __m256i i0 = _mm256_cvtps_epi32(v0 * to_left), i1 = _mm256_cvtps_epi32(v1 * to_left);
    __m256i i2 = _mm256_cvtps_epi32(v2 * to_right), i3 = _mm256_cvtps_epi32(v3 * to_right);
    __m256i sums = _mm256_hadd_epi32(_mm256_add_epi32(i0, i1), _mm256_add_epi32(i2, i3));
    __m128i pairs = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    pairs = _mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0xb1));
    i0 = _mm256_packs_epi16(_mm256_packs_epi32(i0, i1), _mm256_packs_epi32(i2, i3));
    i0 = _mm256_permutevar8x32_epi32(i0, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q[t]), i0);
    put_scales(scales, _mm_extract_epi32(pairs, 0), _mm_extract_epi32(pairs, 2), out, t);
#else
    HalfScales scales = scales_of(largest_of_half(x), largest_of_half(x + HALF));
    int left = quantize_half(x, scales.inverse[0], out.q[t]);
    int right = quantize_half(x + HALF, scales.inverse[1], out.q[t] + HALF);
    put_scales(scales, left, right, out, t);
#endif
}

void quantize(const float* x, int width, ActBlock* tiles, int blocks_per_token, int first_block, int token) {
    ActBlock* tile = tiles + static_cast<size_t>(token / TILE) * static_cast<size_t>(blocks_per_token) + first_block;
    for (int b = 0; b < width / BLOCK; b++) quantize_block(x + b * BLOCK, tile[b], token % TILE);
}

INLINE float sum_of_squares(const float* x, int length) {
    F8 even = all(0.0f), odd = all(0.0f);
    int i = 0;
    for (; i + 2 * LANES <= length; i += 2 * LANES) {
        F8 a = load(x + i), b = load(x + i + LANES);
        even = fma(a, a, even);
        odd = fma(b, b, odd);
    }
    float sum = total(even + odd);
    for (; i < length; i++) sum += x[i] * x[i];
    return sum;
}

void rms_norm(const float* x, int width, int length, const float* weight, float eps, float* out) {
    for (int first = 0; first < width; first += length) {
        const float* run = x + first;
        float factor = 1.0f / std::sqrt(sum_of_squares(run, length) / static_cast<float>(length) + eps);
        int i = 0;
        for (; i + LANES <= length; i += LANES)
            store(out + first + i, load(run + i) * all(factor) * load(weight + i));
        for (; i < length; i++) out[first + i] = run[i] * factor * weight[i];
    }
}

void layer_norm(const float* x, int width, const float* weight, const float* bias, float eps, float* out) {
    F8 lanes = all(0.0f);
    int i = 0;
    for (; i + LANES <= width; i += LANES) lanes = lanes + load(x + i);
    float sum = total(lanes);
    for (; i < width; i++) sum += x[i];
    float mean = sum / static_cast<float>(width);
    for (i = 0; i < width; i++) out[i] = x[i] - mean;
    float factor = 1.0f / std::sqrt(sum_of_squares(out, width) / static_cast<float>(width) + eps);
    for (i = 0; i < width; i++) out[i] = out[i] * factor * weight[i] + (bias ? bias[i] : 0.0f);
}

void activate_rows(const float* x, int width, Activation activation, float* out) {
    for (int i = 0; i < width; i += LANES) store(out + i, activated(load(x + i), activation));
}
void gate_mul(const float* gate, const float* up, int width, Activation activation, float* out) {
    for (int i = 0; i < width; i += LANES) store(out + i, gate_times_up(load(gate + i), load(up + i), activation));
}
void add_scaled(const float* x, const float* y, float factor, int width, float* out) {
    for (int i = 0; i < width; i += LANES) store(out + i, load(x + i) + load(y + i) * all(factor));
}
void scale_rows(const float* x, float factor, int width, float* out) {
    for (int i = 0; i < width; i += LANES) store(out + i, load(x + i) * all(factor));
}
void softcap_rows(const float* x, float cap, int width, float* out) {
    for (int i = 0; i < width; i += LANES) store(out + i, tanh8(load(x + i) / all(cap)) * all(cap));
}

void rope(const float* x, int head_dim, int dims, const float* cos, const float* sin, float factor, float* out) {
    int half = dims / 2, i = 0;
    for (; i + LANES <= half; i += LANES) {
        F8 a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
        store(out + i, (a * c - b * s) * all(factor));
        store(out + half + i, (b * c + a * s) * all(factor));
    }
    for (; i < half; i++) {
        float a = x[i], b = x[half + i];
        out[i] = (a * cos[i] - b * sin[i]) * factor;
        out[half + i] = (b * cos[i] + a * sin[i]) * factor;
    }
    for (i = dims; i < head_dim; i++) out[i] = x[i] * factor;
}

}  // namespace
}  // namespace localllm
