// Eight floats at once as two NEON registers: what every 64-bit ARM machine has. Included by lanes.h alone.
#pragma once
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace localllm {
namespace {

struct F8 {
    float32x4_t low, high;
};

INLINE F8 operator+(F8 a, F8 b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
INLINE F8 operator-(F8 a, F8 b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
INLINE F8 operator*(F8 a, F8 b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
INLINE F8 operator/(F8 a, F8 b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }

INLINE F8 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
INLINE void store(float* p, F8 x) {
    vst1q_f32(p, x.low);
    vst1q_f32(p + 4, x.high);
}
INLINE F8 all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
INLINE F8 all_at(const float* p) { return all(*p); }
INLINE F8 fma(F8 a, F8 b, F8 c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }

// x where a > b, else y
INLINE float32x4_t pick_greater(float32x4_t a, float32x4_t b, float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcgtq_f32(a, b), x, y);
}
INLINE F8 pick_greater(F8 a, F8 b, F8 x, F8 y) {
    return {pick_greater(a.low, b.low, x.low, y.low), pick_greater(a.high, b.high, x.high, y.high)};
}
INLINE F8 where_greater(F8 a, F8 b, F8 x) { return pick_greater(a, b, x, all(0.0f)); }
// not vmaxq: what the other sets make of a NaN is b
INLINE F8 max(F8 a, F8 b) { return pick_greater(a, b, a, b); }
INLINE F8 min(F8 a, F8 b) { return pick_greater(b, a, a, b); }

// packed fields have any address, so their bytes are loaded
INLINE uint16x8_t load_pairs(const void* p) { return vreinterpretq_u16_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
INLINE F8 load_half(const void* p) {
    float16x8_t h = vreinterpretq_f16_u16(load_pairs(p));
    return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
}
INLINE void store_half(void* p, F8 x) {
    float16x8_t h = vcvt_high_f16_f32(vcvt_f16_f32(x.low), x.high);
    vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_f16(h));
}
INLINE float32x4_t from_bfloat(uint16x4_t h) { return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(h), 16)); }
INLINE F8 load_bfloat(const void* p) {
    uint16x8_t h = load_pairs(p);
    return {from_bfloat(vget_low_u16(h)), from_bfloat(vget_high_u16(h))};
}

INLINE F8 load_bytes(const int8_t* p) {
    int16x8_t wide = vmovl_s8(vld1_s8(p));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))};
}

INLINE F8 round_nearest(F8 x) { return {vrndnq_f32(x.low), vrndnq_f32(x.high)}; }
INLINE float32x4_t two_to(float32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
INLINE F8 two_to(F8 n) { return {two_to(n.low), two_to(n.high)}; }

INLINE float largest(F8 x) { return vmaxnmvq_f32(vmaxnmq_f32(x.low, x.high)); }
// in the order of the other sets
INLINE float total(F8 x) {
    float32x4_t four = vaddq_f32(x.low, x.high);
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
INLINE uint16_t to_half(float x) { return float_to_half(x); }
INLINE float from_half(uint16_t x) { return half_to_float(x); }

}  // namespace
}  // namespace localllm
