// Small numbers into the bit fields of blocks, halves, and floats of other widths.

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// To nearest, ties to even; no NaN comes here
inline uint16_t half_of(float x) {
    uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);
    if (size < 0x38800000) return static_cast<uint16_t>(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000));
    size += 0xfff + (size >> 13 & 1);
    return static_cast<uint16_t>(sign | ((size - 0x38000000) >> 13));
}

inline float of_half(uint16_t half) {
    uint32_t rest = half & 0x7fffu;
    float size = float_of(rest << 13) * 5.192296858534828e33f;  // 2^112: denormal halves become what they are
    uint32_t bits = bits_of(size) | (rest >= 0x7c00 ? 0x7f800000u : 0u);
    return float_of(bits | (half & 0x8000u) << 16);
}

inline uint8_t* put_half(uint8_t* out, uint16_t half) {
    out[0] = static_cast<uint8_t>(half);
    out[1] = static_cast<uint8_t>(half >> 8);
    return out + 2;
}

// `group` bytes take their lowest fields first, as pack_bits in quantize/pack.py
template <int group, int width, int count>
inline uint8_t* put_bits(uint8_t* out, const uint8_t* numbers) {
    constexpr int per_byte = 8 / width;
    for (int chunk = 0; chunk < count / (group * per_byte); ++chunk)
        for (int j = 0; j < group; ++j) {
            int byte = 0;
            for (int k = 0; k < per_byte; ++k) byte |= numbers[(chunk * per_byte + k) * group + j] << (k * width);
            *out++ = static_cast<uint8_t>(byte);
        }
    return out;
}

template <int count>
inline void shifted(const uint8_t* numbers, int right, int mask, uint8_t* out) {
    for (int i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(numbers[i] >> right & mask);
}

inline uint8_t* put_fifth_bits(uint8_t* out, const uint8_t* quants) {
    uint32_t high = 0;
    for (int i = 0; i < 32; ++i) high |= static_cast<uint32_t>(quants[i] >> 4 & 1) << i;
    for (int i = 0; i < 4; ++i) *out++ = static_cast<uint8_t>(high >> (8 * i));
    uint8_t low[32];
    shifted<32>(quants, 0, 15, low);
    return put_bits<16, 4, 32>(out, low);
}
