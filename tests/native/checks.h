// What the comparisons of kernel sets share: random numbers, random weights and activations, and what is counted.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "half.h"
#include "kernels.h"

namespace localllm {

// splitmix64: the same numbers on every machine
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t bits() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    // low..high, both included
    int whole(int low, int high) { return low + static_cast<int>(bits() % static_cast<uint64_t>(high - low + 1)); }
    float uniform(float low, float high) { return low + (high - low) * static_cast<float>(bits() >> 40) * 0x1p-24f; }
    bool chance(int percent) { return whole(1, 100) <= percent; }
    std::vector<float> floats(size_t count, float most) {
        std::vector<float> out(count);
        for (float& x : out) x = uniform(-most, most);
        return out;
    }

private:
    uint64_t state_;
};

// Counts comparisons and tells the first failures of each kind.
class Checks {
public:
    Checks(const Kernels& set) : set_(set) {}

    void same(const char* what, const void* a, const void* b, size_t bytes) {
        count(what, !std::memcmp(a, b, bytes), "bits differ");
    }
    void same(const char* what, const std::vector<float>& a, const std::vector<float>& b) {
        count(what, a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), "bits differ");
    }
    // zeros are equal whatever their signs
    void equal(const char* what, const std::vector<float>& a, const std::vector<float>& b) {
        count(what, a == b, "values differ");
    }
    void near(const char* what, double value, double expected, double tolerance) {
        bool fits = std::fabs(value - expected) <= tolerance;
        char difference[96] = "";
        if (!fits)
            std::snprintf(difference, sizeof difference, "%.9g, expected %.9g +- %.2g", value, expected, tolerance);
        count(what, fits, difference);
    }
    void near(const char* what, const std::vector<float>& values, const std::vector<double>& expected,
              double tolerance) {
        for (size_t i = 0; i < expected.size(); i++)
            near(what, values[i], expected[i], tolerance * (1 + std::fabs(expected[i])));
    }
    void is(const char* what, bool claim) { count(what, claim, "is not so"); }

    // What is being compared, for the line of a failure.
    std::string about;
    long compared = 0, failed = 0;

private:
    void count(const char* what, bool fits, const char* difference) {
        compared++;
        if (fits) return;
        if (failed++ < 20) std::printf("%s: %s (%s): %s\n", set_.name, what, about.c_str(), difference);
    }
    const Kernels& set_;
};

// A kernel set with what its comparisons need.
struct Trial {
    const Kernels& set;
    const Kernels& portable;
    Random& random;
    Checks& checks;
};

void compare_products(Trial& trial);
void compare_rows(Trial& trial);
void compare_attention(Trial& trial);
void compare_delta_nets(Trial& trial);
void compare_state_spaces(Trial& trial);

// Where a type's blocks have halves that scale, which may be no infinity: bytes from the block's first.
inline std::vector<int> halves_of(Type type) {
    switch (type) {
        case Type::Q4_1:
        case Type::Q5_1:
        case Type::Q4_K:
        case Type::Q5_K: return {0, 2};
        case Type::Q2_K: return {80, 82};
        case Type::Q3_K: return {108};
        case Type::Q6_K: return {208};
        case Type::TQ1_0: return {52};
        case Type::TQ2_0: return {64};
        case Type::IQ1_M:
        case Type::MXFP4: return {};
        default: return {0};
    }
}

inline void put_half(uint8_t* place, float value) {
    uint16_t half = float_to_half(value);
    std::memcpy(place, &half, 2);
}

// One value of a type without blocks.
inline void put_value(uint8_t* place, Type type, float value) {
    uint32_t bits = float_to_bits(value);
    uint16_t upper = static_cast<uint16_t>(bits >> 16);
    if (type == Type::F32) std::memcpy(place, &bits, 4);
    if (type == Type::BF16) std::memcpy(place, &upper, 2);
    if (type == Type::F16) put_half(place, value);
}

// The half of a row of IQ1_M, in the topmost bits of four numbers.
inline void put_quarters(uint8_t* numbers, int lane, float value) {
    uint16_t half = float_to_half(value);
    for (int i = 0; i < 4; i++) {
        uint8_t* upper = numbers + 2 * (i * LANES + lane) + 1;
        *upper = static_cast<uint8_t>((*upper & 15) | (half >> 4 * i & 15) << 4);
    }
}

inline void draw_block(Random& random, Type type, uint8_t* packed) {
    const int bytes = shape_of(type).bytes * LANES;
    for (int i = 0; i < bytes; i++) packed[i] = static_cast<uint8_t>(random.bits());
    for (int offset : halves_of(type))
        for (int lane = 0; lane < LANES; lane++)
            put_half(packed + offset * LANES + 2 * lane, random.uniform(-0.02f, 0.02f));
    if (type == Type::IQ1_M)
        for (int lane = 0; lane < LANES; lane++)
            put_quarters(packed + 48 * LANES, lane, random.uniform(-0.02f, 0.02f));
    if (type == Type::MXFP4)
        for (int lane = 0; lane < LANES; lane++) packed[lane] = static_cast<uint8_t>(random.whole(110, 130));
    if (!is_quantized(type))
        for (int lane = 0; lane < LANES; lane++)
            put_value(packed + lane * shape_of(type).bytes, type, random.uniform(-0.5f, 0.5f));
}

// Groups as they lie packed: any bytes are quants, so none has to be packed first.
inline std::vector<uint8_t> draw_groups(Random& random, Type type, int columns, int groups) {
    std::vector<uint8_t> packed(group_bytes(type, columns) * groups);
    const size_t block = shape_of(type).bytes * LANES;
    for (size_t at = 0; at < packed.size(); at += block) draw_block(random, type, packed.data() + at);
    return packed;
}

// Every type there is.
inline std::vector<Type> all_types() {
    std::vector<Type> types;
    for (int number = 0; number < 256; number++)
        if (shape_of(static_cast<Type>(number)).values) types.push_back(static_cast<Type>(number));
    return types;
}

// What an activation of a block is worth: one set keeps a float in the place of the ratio.
inline double half_scale(const Kernels& set, const ActBlock& block, int half, int t) {
    int32_t ratio = block.ratio[half][t];
    if (!std::strcmp(set.name, "avx512")) return bits_to_float(static_cast<uint32_t>(ratio));
    return double(block.scale[t]) * once(ratio);
}

// Tokens as floats and as a set's blocks.
struct Tokens {
    int count, columns;
    std::vector<float> values;
    std::vector<ActBlock> blocks;

    Tokens(const Kernels& set, std::vector<float> x, int columns) : columns(columns), values(std::move(x)) {
        count = static_cast<int>(values.size()) / columns;
        const int per_token = columns / BLOCK;
        blocks.resize((count + TILE - 1) / TILE * per_token);
        if (columns % BLOCK == 0)
            for (int t = 0; t < count; t++) set.quantize(row(t), columns, blocks.data(), per_token, 0, t);
    }
    const float* row(int token) const { return values.data() + token * columns; }
    Inputs inputs() const { return {values.data(), size_t(columns), blocks.data(), count}; }
    Tokens only(const Kernels& set, int token) const { return {set, {row(token), row(token) + columns}, columns}; }
    const ActBlock& block(int token, int column) const {
        return blocks[token / TILE * (columns / BLOCK) + column / BLOCK];
    }
    // what a product takes it for
    double value(const Kernels& set, Type type, int token, int column) const {
        if (!is_quantized(type)) return row(token)[column];
        const ActBlock& from = block(token, column);
        int t = token % TILE, at = column % BLOCK;
        return half_scale(set, from, at / HALF, t) * from.q[t][at];
    }
};

// Columns with very different magnitudes, some halves all zero.
inline std::vector<float> draw_values(Random& random, int count, int columns) {
    std::vector<float> out = random.floats(count * columns, 1.0f);
    float most = 1.0f;
    for (size_t i = 0; i < out.size(); i++) {
        if (i % HALF == 0) most = random.chance(5) ? 0.0f : std::exp(random.uniform(-4.0f, 3.0f));
        out[i] *= most;
    }
    return out;
}

}  // namespace localllm
