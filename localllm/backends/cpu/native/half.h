// Half precision and bfloat16 without instructions for them. Rounding is to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

namespace localllm {
namespace {  // internal linkage: these headers are compiled with different instruction sets

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

#if defined(__aarch64__)
inline float half_to_float(uint16_t half) {
    __fp16 value;
    std::memcpy(&value, &half, 2);
    return value;
}
inline uint16_t float_to_half(float value) {
    __fp16 half = static_cast<__fp16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
#else
inline float half_to_float(uint16_t half) {
    uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x400) return bits_to_float(sign | ((rest << 13) + (112u << 23)));
    return (sign ? -1.0f : 1.0f) * static_cast<float>(rest) * 0x1p-24f;
}
inline uint16_t float_to_half(float value) {
    uint32_t bits = float_to_bits(value), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (rest >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
    if (rest < 0x38800000) {  // adding one half's smallest normal lets the adder do the rounding
        float shifted = bits_to_float(rest) + 0.5f;
        return static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000));
    }
    uint32_t rounded = rest + 0xfff + ((rest >> 13) & 1);
    return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}
#endif

inline float bfloat_to_float(uint16_t bits) { return bits_to_float(static_cast<uint32_t>(bits) << 16); }

}  // namespace
}  // namespace localllm
