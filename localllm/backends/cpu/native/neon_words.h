// Four columns of eight rows as two NEON registers of four rows each, and their products. Included by words.h alone.
//
// With LOCALLLM_DOTPROD one instruction multiplies a whole register; without, products are added in 16 bits first.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "lanes.h"

namespace localllm {
namespace {

struct Words {
    uint8x16_t low, high;  // rows 0..3 and 4..7
};
struct Ints {
    int32x4_t low, high;
};

INLINE Words load_words(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16)}; }
// operators, for a shift that is known becomes one instruction
INLINE Words bits(Words v, int shift, int mask) {
    uint8x16_t by = vdupq_n_u8(static_cast<uint8_t>(shift)), kept = vdupq_n_u8(static_cast<uint8_t>(mask));
    v = {v.low >> by, v.high >> by};
    if (__builtin_constant_p(shift) && mask == 255 >> shift) return v;  // no other bits are left
    return {v.low & kept, v.high & kept};
}
INLINE Words minus(Words v, int n) {
    uint8x16_t by = vdupq_n_u8(static_cast<uint8_t>(n));
    return {vsubq_u8(v.low, by), vsubq_u8(v.high, by)};
}
// Bits `from` on of every byte, where `mask` has ones, moved to bit `to`; `to` and `from` are known at compile time.
INLINE Words bits_at(Words v, int from, int mask, int to) {
    if (from > to) return bits(v, from - to, mask << to);
    uint8x16_t by = vdupq_n_u8(static_cast<uint8_t>(to - from)), kept = vdupq_n_u8(static_cast<uint8_t>(mask << to));
    return {(v.low << by) & kept, (v.high << by) & kept};
}
INLINE Words operator|(Words a, Words b) { return {a.low | b.low, a.high | b.high}; }
INLINE Words look_up(const int8_t* table, Words v) {
    uint8x16_t entries = vreinterpretq_u8_s8(vld1q_s8(table));
    return {vqtbl1q_u8(entries, v.low), vqtbl1q_u8(entries, v.high)};
}
// Bits 4j..4j+3 of each row's word, one to a byte, as `one` or zero.
INLINE uint8x16_t four_bits(uint8x16_t v, int j, int one) {
    uint8x16_t first = vreinterpretq_u8_u32(uint32x4_t{0, 0x04040404, 0x08080808, 0x0c0c0c0c});
    uint8x16_t byte = vqtbl1q_u8(v, vaddq_u8(first, vdupq_n_u8(static_cast<uint8_t>(j / 2))));
    uint8x16_t bit = vreinterpretq_u8_u32(vdupq_n_u32(j % 2 ? 0x80402010 : 0x08040201));
    return vandq_u8(vtstq_u8(byte, bit), vdupq_n_u8(static_cast<uint8_t>(one)));
}
INLINE Words four_bits(Words v, int j, int one = 1) { return {four_bits(v.low, j, one), four_bits(v.high, j, one)}; }

// What is summed so far is summed before anything else is loaded: GCC otherwise unpacks all first and spills.
INLINE void pin(Ints& sums) { asm volatile("" : "+w"(sums.low), "+w"(sums.high)); }
INLINE Ints add(Ints a, Ints b) { return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
INLINE Ints subtract(Ints a, Ints b) { return {vsubq_s32(a.low, b.low), vsubq_s32(a.high, b.high)}; }
INLINE Ints all_ints(const int32_t* p) { return {vdupq_n_s32(*p), vdupq_n_s32(*p)}; }
INLINE Ints times(Ints a, int b) { return {vmulq_n_s32(a.low, b), vmulq_n_s32(a.high, b)}; }
INLINE F8 floats(Ints v) { return {vcvtq_f32_s32(v.low), vcvtq_f32_s32(v.high)}; }
INLINE F8 floats(uint64_t rows) {
    uint16x8_t wide = vmovl_u8(vcreate_u8(rows));
    return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide))), vcvtq_f32_u32(vmovl_high_u16(wide))};
}
INLINE F8 signed_floats(uint64_t rows) {
    int16x8_t wide = vmovl_s8(vcreate_s8(rows));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))};
}

// The largest magnitude of 16.
INLINE float largest_of_half(const float* x) {
    F8 left = load(x), right = load(x + LANES);
    float32x4_t first = vmaxnmq_f32(vabsq_f32(left.low), vabsq_f32(left.high));
    return vmaxnmvq_f32(vmaxnmq_f32(first, vmaxnmq_f32(vabsq_f32(right.low), vabsq_f32(right.high))));
}
// 8 values to the nearest whole numbers; what is none or too large has a number all the same
INLINE int8x8_t rounded(F8 x) {
    int16x4_t low = vqmovn_s32(vcvtnq_s32_f32(x.low));
    return vqmovn_s16(vqmovn_high_s32(low, vcvtnq_s32_f32(x.high)));
}
// 16 values times `factor`, rounded; returns their sum.
INLINE int quantize_half(const float* x, float factor, int8_t* q) {
    F8 by = all(factor);
    int8x16_t whole = vcombine_s8(rounded(load(x) * by), rounded(load(x + LANES) * by));
    vst1q_s8(q, whole);
    return vaddlvq_s8(whole);
}

#ifdef LOCALLLM_DOTPROD

INLINE int32x4_t dots(uint8x16_t v0, uint8x16_t v1, uint8x16_t v2, uint8x16_t v3, int8x16_t x) {
    int32x4_t sum = vdotq_laneq_s32(vdupq_n_s32(0), vreinterpretq_s8_u8(v0), x, 0);
    sum = vdotq_laneq_s32(sum, vreinterpretq_s8_u8(v1), x, 1);
    sum = vdotq_laneq_s32(sum, vreinterpretq_s8_u8(v2), x, 2);
    return vdotq_laneq_s32(sum, vreinterpretq_s8_u8(v3), x, 3);
}

// The sums of four words, of quants up to MOST, times 16 activations.
template <int MOST>
INLINE Ints dots(const Words* v, const int8_t* q) {
    int8x16_t x = vld1q_s8(q);
    return {dots(v[0].low, v[1].low, v[2].low, v[3].low, x), dots(v[0].high, v[1].high, v[2].high, v[3].high, x)};
}

#else

// Two rows: per row the sums of even and of odd pairs of columns.
template <int MOST>
INLINE int32x4_t pair_sums(int8x8_t v0, int8x8_t v1, int8x8_t v2, int8x8_t v3, const int8x8_t* x) {
    // two products of 128 * 127 are all that 16 bits hold
    int16x8_t left = vmlal_s8(vmull_s8(v0, x[0]), v1, x[1]);
    if (4 * MOST * 127 < (1 << 15)) return vpaddlq_s16(vmlal_s8(vmlal_s8(left, v2, x[2]), v3, x[3]));
    return vpadalq_s16(vpaddlq_s16(left), vmlal_s8(vmull_s8(v2, x[2]), v3, x[3]));
}
template <int MOST>
INLINE int32x4_t dots(uint8x16_t w0, uint8x16_t w1, uint8x16_t w2, uint8x16_t w3, const int8x8_t* x) {
    int8x16_t v0 = vreinterpretq_s8_u8(w0), v1 = vreinterpretq_s8_u8(w1);
    int8x16_t v2 = vreinterpretq_s8_u8(w2), v3 = vreinterpretq_s8_u8(w3);
    return vpaddq_s32(pair_sums<MOST>(vget_low_s8(v0), vget_low_s8(v1), vget_low_s8(v2), vget_low_s8(v3), x),
                      pair_sums<MOST>(vget_high_s8(v0), vget_high_s8(v1), vget_high_s8(v2), vget_high_s8(v3), x));
}
// The sums of four words, of quants up to MOST, times 16 activations.
template <int MOST>
INLINE Ints dots(const Words* v, const int8_t* q) {
    int8x16_t fours = vld1q_s8(q);
    int32x2_t left = vreinterpret_s32_s8(vget_low_s8(fours)), right = vreinterpret_s32_s8(vget_high_s8(fours));
    int8x8_t x[4] = {vreinterpret_s8_s32(vdup_lane_s32(left, 0)), vreinterpret_s8_s32(vdup_lane_s32(left, 1)),
                     vreinterpret_s8_s32(vdup_lane_s32(right, 0)), vreinterpret_s8_s32(vdup_lane_s32(right, 1))};
    return {dots<MOST>(v[0].low, v[1].low, v[2].low, v[3].low, x),
            dots<MOST>(v[0].high, v[1].high, v[2].high, v[3].high, x)};
}

#endif

}  // namespace
}  // namespace localllm
