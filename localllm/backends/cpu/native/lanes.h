// Eight floats at once: AVX2 registers, pairs of NEON's, or vectors that any compiler lowers to what its target has.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "half.h"
#ifdef LOCALLLM_AVX2
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

// Loops over sums are unrolled wherever they appear: one sum indexed by a variable keeps all of them in memory.
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

#ifdef LOCALLLM_NEON
#include "neon_lanes.h"
#endif

namespace localllm {
namespace {

// Pins the order of loads: GCC otherwise hoists them all and spills sums, which costs a store-forward per token.
#define KEEP(a) asm volatile("" : "+x"(a))
#define KEEP_BOTH(a, b) asm volatile("" : "+x"(a), "+x"(b))
#define KEEP_ALL(a, b, c, d) asm volatile("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d))

#ifdef LOCALLLM_AVX2

using F8 = __m256;

INLINE F8 load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store(float* p, F8 x) { _mm256_storeu_ps(p, x); }
INLINE F8 all(float x) { return _mm256_set1_ps(x); }
INLINE F8 all_at(const float* p) { return _mm256_broadcast_ss(p); }
INLINE F8 fma(F8 a, F8 b, F8 c) { return _mm256_fmadd_ps(a, b, c); }
INLINE F8 max(F8 a, F8 b) { return _mm256_max_ps(a, b); }
INLINE F8 min(F8 a, F8 b) { return _mm256_min_ps(a, b); }
INLINE F8 load_half(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
INLINE void store_half(void* p, F8 x) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
INLINE F8 load_bfloat(const void* p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
// x where a > b, else zero
INLINE F8 where_greater(F8 a, F8 b, F8 x) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), x); }
// x where a > b, else y
INLINE F8 pick_greater(F8 a, F8 b, F8 x, F8 y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
INLINE F8 round_nearest(F8 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F8 two_to(F8 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INLINE float largest(F8 x) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
INLINE float total(F8 x) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
INLINE uint16_t to_half(float x) { return static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
INLINE float from_half(uint16_t x) { return _cvtsh_ss(x); }

#elif !defined(LOCALLLM_NEON)

typedef float F8 __attribute__((vector_size(32)));

INLINE F8 load(const float* p) {
    F8 x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
INLINE void store(float* p, F8 x) { std::memcpy(p, &x, sizeof x); }
INLINE F8 all(float x) { return F8{x, x, x, x, x, x, x, x}; }
INLINE F8 all_at(const float* p) { return all(*p); }
INLINE F8 fma(F8 a, F8 b, F8 c) { return a * b + c; }
INLINE F8 max(F8 a, F8 b) {
    for (int i = 0; i < 8; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
INLINE F8 min(F8 a, F8 b) {
    for (int i = 0; i < 8; i++) a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
}
INLINE F8 load_half(const void* p) {
    uint16_t h[8];
    std::memcpy(h, p, sizeof h);
    F8 x;
    for (int i = 0; i < 8; i++) x[i] = half_to_float(h[i]);
    return x;
}
INLINE void store_half(void* p, F8 x) {
    uint16_t h[8];
    for (int i = 0; i < 8; i++) h[i] = float_to_half(x[i]);
    std::memcpy(p, h, sizeof h);
}
INLINE F8 load_bfloat(const void* p) {
    uint16_t h[8];
    std::memcpy(h, p, sizeof h);
    F8 x;
    for (int i = 0; i < 8; i++) x[i] = bfloat_to_float(h[i]);
    return x;
}
INLINE F8 where_greater(F8 a, F8 b, F8 x) {
    for (int i = 0; i < 8; i++) x[i] = a[i] > b[i] ? x[i] : 0.0f;
    return x;
}
INLINE F8 pick_greater(F8 a, F8 b, F8 x, F8 y) {
    for (int i = 0; i < 8; i++) y[i] = a[i] > b[i] ? x[i] : y[i];
    return y;
}
INLINE F8 round_nearest(F8 x) {
    for (int i = 0; i < 8; i++) x[i] = std::nearbyintf(x[i]);
    return x;
}
INLINE F8 two_to(F8 n) {
    for (int i = 0; i < 8; i++) n[i] = bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n[i]) + 127) << 23);
    return n;
}
INLINE float largest(F8 x) {
    float m = x[0];
    for (int i = 1; i < 8; i++) m = x[i] > m ? x[i] : m;
    return m;
}
INLINE float total(F8 x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }
INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
INLINE uint16_t to_half(float x) { return float_to_half(x); }
INLINE float from_half(uint16_t x) { return half_to_float(x); }

#endif

// e^x, relative error about 2e-7; zero below -80 (no subnormals), capped at e^88.
INLINE F8 exp8(F8 x) {
    F8 y = min(max(x, all(-87.3f)), all(88.0f));
    F8 n = round_nearest(y * all(1.44269504f));
    F8 r = fma(n, all(-0.693359375f), y);
    r = fma(n, all(2.12194440e-4f), r);
    F8 p = all(1.0f / 720);
    p = fma(p, r, all(1.0f / 120));
    p = fma(p, r, all(1.0f / 24));
    p = fma(p, r, all(1.0f / 6));
    p = fma(p, r, all(0.5f));
    p = fma(p, r, all(1.0f));
    p = fma(p, r, all(1.0f));
    return where_greater(x, all(-80.0f), p * two_to(n));
}
INLINE float exp1(float x) {
    float lanes[8];
    store(lanes, exp8(all(x)));
    return lanes[0];
}
INLINE F8 sigmoid8(F8 x) { return all(1.0f) / (all(1.0f) + exp8(all(0.0f) - x)); }
// tanh, relative error about 2e-7. Near zero the quotient would cancel; there it is a polynomial (Cephes, tanhf).
INLINE F8 tanh8(F8 x) {
    constexpr float NEAR = 0.625f;
    F8 square = x * x, p = all(-5.70498872745e-3f);
    p = fma(p, square, all(2.06390887954e-2f));
    p = fma(p, square, all(-5.37397155531e-2f));
    p = fma(p, square, all(1.33314422036e-1f));
    p = fma(p, square, all(-3.33332819422e-1f));
    F8 quotient = all(1.0f) - all(2.0f) / (exp8(x + x) + all(1.0f));
    return pick_greater(square, all(NEAR * NEAR), quotient, fma(p * square, x, x));
}
INLINE F8 each_erf(F8 x) {
    float lanes[8];
    store(lanes, x);
    for (float& lane : lanes) lane = std::erf(lane);
    return load(lanes);
}

}  // namespace
}  // namespace localllm
