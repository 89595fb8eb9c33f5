// Eight floats at once: AVX2 registers, pairs of NEON's, or vectors that any compiler lowers to what its target has.
// Sixteen where AVX-512 has them: loops that gain by it are written over the widths at the end.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "half.h"
#ifdef LOCALLLM_AVX2
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own _mm512_undefined_ps
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#define INLINE inline __attribute__((always_inline))

// Loops over sums are unrolled wherever they appear: one sum indexed by a variable keeps all of them in memory.
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
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
INLINE F8 load_bytes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
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
// Into the second-level cache: what is asked for ahead is more than the first has room for beside what is at work.
INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
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
INLINE F8 load_bytes(const int8_t* p) {
    F8 x;
    for (int i = 0; i < 8; i++) x[i] = static_cast<float>(p[i]);
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

// What a loop needs to know of a width: the type of a register, how many floats it holds, and how it is filled.
struct Eight {
    using F = F8;
    static constexpr int COUNT = 8;
    static INLINE F read(const float* p) { return load(p); }
    static INLINE F read_half(const void* p) { return load_half(p); }
    static INLINE F read_bytes(const int8_t* p) { return load_bytes(p); }
    static INLINE F every(float x) { return all(x); }
    // x * 2^n, zero where `of` is not above -80
    static INLINE F power(F x, F n, F of) { return where_greater(of, all(-80.0f), x * two_to(n)); }
};

#ifdef LOCALLLM_AVX512

using F16 = __m512;

INLINE void store(float* p, F16 x) { _mm512_storeu_ps(p, x); }
INLINE F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE F16 max(F16 a, F16 b) { return _mm512_max_ps(a, b); }
INLINE F16 min(F16 a, F16 b) { return _mm512_min_ps(a, b); }
INLINE F16 pick_greater(F16 a, F16 b, F16 x, F16 y) {
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), x);
}
INLINE F16 round_nearest(F16 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F8 lower(F16 x) { return _mm512_castps512_ps256(x); }
INLINE F8 upper(F16 x) { return _mm512_extractf32x8_ps(x, 1); }
INLINE float largest(F16 x) { return largest(max(lower(x), upper(x))); }
INLINE float total(F16 x) { return total(lower(x) + upper(x)); }

struct Sixteen {
    using F = F16;
    static constexpr int COUNT = 16;
    static INLINE F read(const float* p) { return _mm512_loadu_ps(p); }
    static INLINE F read_half(const void* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    }
    static INLINE F read_bytes(const int8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    static INLINE F every(float x) { return _mm512_set1_ps(x); }
    static INLINE F power(F x, F n, F of) {
        return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(of, every(-80.0f), _CMP_GT_OQ), x, n);
    }
};
using Widest = Sixteen;

#else

using Widest = Eight;

#endif

// e^x, relative error about 2e-7; zero below -80 (no subnormals), capped at e^88.
template <class L>
INLINE typename L::F exp_of(typename L::F x) {
    typename L::F y = min(max(x, L::every(-87.3f)), L::every(88.0f));
    typename L::F n = round_nearest(y * L::every(1.44269504f));
    typename L::F r = fma(n, L::every(-0.693359375f), y);
    r = fma(n, L::every(2.12194440e-4f), r);
    typename L::F p = L::every(1.0f / 720);
    p = fma(p, r, L::every(1.0f / 120));
    p = fma(p, r, L::every(1.0f / 24));
    p = fma(p, r, L::every(1.0f / 6));
    p = fma(p, r, L::every(0.5f));
    p = fma(p, r, L::every(1.0f));
    p = fma(p, r, L::every(1.0f));
    return L::power(p, n, x);
}
INLINE F8 exp8(F8 x) { return exp_of<Eight>(x); }
INLINE float exp1(float x) {
    float lanes[8];
    store(lanes, exp8(all(x)));
    return lanes[0];
}
INLINE F8 sigmoid8(F8 x) { return all(1.0f) / (all(1.0f) + exp8(all(0.0f) - x)); }
// tanh, relative error about 2e-7. Near zero the quotient would cancel; there it is a polynomial (Cephes, tanhf).
template <class L>
INLINE typename L::F tanh_of(typename L::F x) {
    constexpr float NEAR = 0.625f;
    typename L::F square = x * x, p = L::every(-5.70498872745e-3f);
    p = fma(p, square, L::every(2.06390887954e-2f));
    p = fma(p, square, L::every(-5.37397155531e-2f));
    p = fma(p, square, L::every(1.33314422036e-1f));
    p = fma(p, square, L::every(-3.33332819422e-1f));
    typename L::F quotient = L::every(1.0f) - L::every(2.0f) / (exp_of<L>(x + x) + L::every(1.0f));
    return pick_greater(square, L::every(NEAR * NEAR), quotient, fma(p * square, x, x));
}
INLINE F8 tanh8(F8 x) { return tanh_of<Eight>(x); }
INLINE F8 each_erf(F8 x) {
    float lanes[8];
    store(lanes, x);
    for (float& lane : lanes) lane = std::erf(lane);
    return load(lanes);
}

}  // namespace
}  // namespace localllm
