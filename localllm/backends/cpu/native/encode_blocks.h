// Encoders of one instruction set; the including file names it and its lanes. quantize/*.py is the law: same bytes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "encode.h"

namespace localllm::ENCODE_SET {
namespace {

#include "encode_pack.h"
#include "encode_search.h"

constexpr float NO_SCALE = 2.9802322387695312e-08f;  // 2^-25: the scale of such a block is zero in float16

// ---- reading: float32 values of some blocks, and whether all of them are held

typedef uint16_t Halves __attribute__((vector_size(2 * ENCODE_LANES)));
typedef uint8_t Numbers __attribute__((vector_size(ENCODE_LANES)));

inline F halves_read(I halves) {
    I rest = halves & 0x7fff;
    F size = (F)(rest << 13) * 5.192296858534828e33f;  // as of_half
    return (F)((I)size | ((rest >= 0x7c00) & 0x7f800000) | (halves & 0x8000) << 16);
}

// Whole blocks, so that all lanes are full
inline void read_floats(const EncodeJob& job, size_t first, size_t count, float* out) {
    if (job.source == Floats::f32) {
        std::memcpy(out, job.values + 4 * first, 4 * count);
        return;
    }
    for (size_t i = 0; i < count; i += W) {
        Halves raw;
        std::memcpy(&raw, job.values + 2 * (first + i), sizeof raw);
        I bits = __builtin_convertvector(raw, I);
        F values = job.source == Floats::f16 ? halves_read(bits) : (F)(bits << 16);
        std::memcpy(out + i, &values, sizeof values);
    }
}

inline void put_numbers(I whole, uint8_t* out) {
    Numbers small = __builtin_convertvector(whole, Numbers);
    std::memcpy(out, &small, sizeof small);
}

inline F load(const float* x) {
    F values;
    std::memcpy(&values, x, sizeof values);
    return values;
}

inline bool any(I mask) {
    int32_t found = 0;
    for (int lane = 0; lane < W; ++lane) found |= mask[lane];
    return found != 0;
}

inline bool is_held(const float* x, size_t count, float limit) {
    I beyond{};
    for (size_t i = 0; i < count; i += W) beyond |= ~(size_of(load(x + i)) <= limit);
    return !any(beyond);
}

inline float largest(const float* x, int count) {
    F size{};
    for (int i = 0; i < count; i += W) size = larger(size_of(load(x + i)), size);
    float found = 0;
    for (int lane = 0; lane < W; ++lane) found = std::max(found, size[lane]);
    return found;
}

// Blocks without a scale are zero, and no zero has a sign
inline void without_traces(float* x, int count) {
    bool is_nothing = largest(x, count) < NO_SCALE;
    for (int i = 0; i < count; ++i) x[i] = is_nothing ? 0.0f : x[i] + 0.0f;
}

// ---- the plain types, a block at a time

struct Bounds { float low, high; };

inline Bounds bounds(const float* x) {
    F low = load(x), high = low;
    for (int i = W; i < 32; i += W) {
        low = smaller(load(x + i), low);
        high = larger(load(x + i), high);
    }
    Bounds found{low[0], high[0]};
    for (int lane = 1; lane < W; ++lane) {
        found.low = std::min(found.low, low[lane]);
        found.high = std::max(found.high, high[lane]);
    }
    return found;
}

// The first value of largest size
inline float first_extreme(const float* x) {
    Bounds found = bounds(x);
    if (found.high != -found.low) return found.high > -found.low ? found.high : found.low;
    if (found.high == 0) return 0.0f;
    for (int i = 0; i < 32; ++i)
        if (std::fabs(x[i]) == found.high) return x[i];
    return 0.0f;
}

// x * by + half, without its fraction, in 0..levels; an infinite scale makes zeros as casts on x86 do
inline void truncated(const float* x, float floor, float by, float half, int levels, uint8_t* out) {
    if (std::isinf(by)) {
        std::memset(out, 0, 32);
        return;
    }
    for (int i = 0; i < 32; i += W) {
        I whole = __builtin_convertvector((load(x + i) - floor) * by + half, I);
        whole = whole > levels ? I{} + levels : whole;
        whole = whole < 0 ? I{} : whole;
        put_numbers(whole, out + i);
    }
}

inline float inverse_of(float x) { return x != 0 ? 1.0f / x : 0.0f; }

template <int reach>
inline void plain_signed(const float* x, uint8_t* out) {
    float scale = first_extreme(x) / -float(reach);
    uint8_t quants[32];
    truncated(x, 0.0f, inverse_of(scale), reach + 0.5f, 2 * reach - 1, quants);
    out = put_half(out, half_of(scale));
    if (reach == 8) put_bits<16, 4, 32>(out, quants);
    else put_fifth_bits(out, quants);
}

template <int levels>
inline void plain_floored(const float* x, uint8_t* out) {
    Bounds found = bounds(x);
    float floor = found.low;
    if (floor == 0) floor = *std::find(x, x + 32, 0.0f);  // the first zero, of either sign
    float scale = (found.high - floor + 0.0f) / float(levels);
    uint8_t quants[32];
    truncated(x, floor, inverse_of(scale), 0.5f, levels, quants);
    out = put_half(put_half(out, half_of(scale)), half_of(floor));
    if (levels == 15) put_bits<16, 4, 32>(out, quants);
    else put_fifth_bits(out, quants);
}

inline void plain_q8_0(const float* x, uint8_t* out) {
    float scale = largest(x, 32) / 127.0f, by = inverse_of(scale);
    out = put_half(out, half_of(scale));
    if (std::isinf(by)) {
        std::memset(out, 0, 32);
        return;
    }
    for (int i = 0; i < 32; i += W) {
        F scaled = load(x + i) * by, size = size_of(scaled);
        I whole = __builtin_convertvector(size, I);
        F rest = size - __builtin_convertvector(whole, F);
        whole -= (I)(rest >= 0.5f);  // halves away from zero
        whole = scaled < 0.0f ? -whole : whole;
        put_numbers(whole, out + i);
    }
}

// ---- searches: W blocks at a time, their groups in lanes

template <int values, int group>
struct Tiles {
    static constexpr int G = group, P = values / group;  // P groups in a block, and as many tiles of W groups
    F x[P][G], weights[P][G];

    void fill(const float* from, const float* importance) {
        for (int tile = 0; tile < P; ++tile)
            for (int lane = 0; lane < W; ++lane) {
                size_t start = static_cast<size_t>(tile * W + lane) * G;
                for (int i = 0; i < G; ++i) x[tile][i][lane] = from[start + i];
                if (importance)
                    for (int i = 0; i < G; ++i) weights[tile][i][lane] = importance[start + i];
            }
    }

    void weigh(bool has_importance) {
        for (int tile = 0; tile < P; ++tile) size_weights<G>(x[tile], weights[tile], has_importance);
    }
};

// One number for each of the P * W groups, in lanes and one by one
template <int P>
union PerGroup {
    F tiles[P];
    float each[P * W];
};

template <int G>
inline void store(const F* quants, int tile, float added, uint8_t* out) {
    for (int lane = 0; lane < W; ++lane)
        for (int i = 0; i < G; ++i)
            out[(tile * W + lane) * G + i] = static_cast<uint8_t>(static_cast<int>(quants[i][lane] + added));
}

template <int P>
inline void largest_unit(const PerGroup<P>& numbers, float steps, uint16_t* halves, PerGroup<P>& unit) {
    for (int block = 0; block < W; ++block) {
        const float* of_block = numbers.each + block * P;
        halves[block] = half_of(*std::max_element(of_block, of_block + P) / steps);
        std::fill_n(unit.each + block * P, P, of_half(halves[block]));
    }
}

template <int group>
struct AffineBlocks {
    static constexpr int P = 256 / group;
    uint8_t quants[W * 256];
    uint8_t scales[W * P], floors[W * P];
    uint16_t super_scale[W], super_floor[W];
};

template <int G>
inline void affine_tile(const F* x, const F* weights, float levels, float steps, Affine fit, F scale_unit, F floor_unit,
                        Affine& small, F* quants) {
    auto nearest = [&](F scales, F floors, int i) {
        return quantized((x[i] + floors * floor_unit) * inverse(scales * scale_unit), 0.0f, levels);
    };
    F near_scale = quantized(fit.scale * inverse(scale_unit), 0.0f, steps);
    F near_floor = quantized(fit.floor * inverse(floor_unit), 0.0f, steps);
    static constexpr float BESIDE[3] = {0.0f, -1.0f, 1.0f};
    F least{};
    for (int k = 0; k < 9; ++k) {
        F scales = smaller(larger(near_scale + BESIDE[k / 3], F{}), all(steps));
        F floors = smaller(larger(near_floor + BESIDE[k % 3], F{}), all(steps));
        F slope = scales * scale_unit, lift = floors * floor_unit, by = inverse(slope);
        F error = total<G, 1>([&](int i) {
            F missed = x[i] - (quantized((x[i] + lift) * by, 0.0f, levels) * slope - lift);
            return weights[i] * missed * missed;
        });
        I better = k ? error < least : ~I{};
        small.scale = pick(better, scales, small.scale);
        small.floor = pick(better, floors, small.floor);
        least = pick(better, error, least);
    }
    for (int i = 0; i < G; ++i) quants[i] = nearest(small.scale, small.floor, i);
}

template <int group>
inline void affine(Tiles<256, group>& tiles, int levels, int steps, const float* reaches, int count,
                   AffineBlocks<group>& out) {
    constexpr int P = Tiles<256, group>::P;
    PerGroup<P> scale, floor, scale_unit, floor_unit;
    for (int tile = 0; tile < P; ++tile) {
        Affine fit = affine_fit<group>(tiles.x[tile], tiles.weights[tile], float(levels), reaches, count);
        scale.tiles[tile] = fit.scale;
        floor.tiles[tile] = fit.floor;
    }
    largest_unit<P>(scale, float(steps), out.super_scale, scale_unit);
    largest_unit<P>(floor, float(steps), out.super_floor, floor_unit);
    for (int tile = 0; tile < P; ++tile) {
        F quants[group];
        Affine small{};
        affine_tile<group>(tiles.x[tile], tiles.weights[tile], float(levels), float(steps),
                           {scale.tiles[tile], floor.tiles[tile]}, scale_unit.tiles[tile], floor_unit.tiles[tile], small,
                           quants);
        store<group>(quants, tile, 0.0f, out.quants);
        store<1>(&small.scale, tile, 0.0f, out.scales);
        store<1>(&small.floor, tile, 0.0f, out.floors);
    }
}

// Eight scales and eight floors of 6 bits to twelve bytes
inline uint8_t* put_pairs(uint8_t* out, const uint8_t* scales, const uint8_t* floors) {
    for (int i = 0; i < 4; ++i) out[i] = static_cast<uint8_t>((scales[i] & 63) | (scales[i + 4] >> 4) << 6);
    for (int i = 0; i < 4; ++i) out[4 + i] = static_cast<uint8_t>((floors[i] & 63) | (floors[i + 4] >> 4) << 6);
    for (int i = 0; i < 4; ++i) out[8 + i] = static_cast<uint8_t>((scales[i + 4] & 15) | (floors[i + 4] & 15) << 4);
    return out + 12;
}

inline void q2_k(Tiles<256, 16>& tiles, int count, uint8_t* out) {
    float reaches[64];
    AffineBlocks<16> blocks;
    affine<16>(tiles, 3, 15, reaches, arange(-0.5, 0.1, 16, 3, reaches), blocks);
    for (int b = 0; b < count; ++b) {
        for (int i = 0; i < 16; ++i)
            *out++ = static_cast<uint8_t>(blocks.scales[b * 16 + i] | blocks.floors[b * 16 + i] << 4);
        out = put_bits<32, 2, 256>(out, blocks.quants + b * 256);
        out = put_half(put_half(out, blocks.super_scale[b]), blocks.super_floor[b]);
    }
}

inline void q4_k(Tiles<256, 32>& tiles, int count, uint8_t* out) {
    float reaches[64];
    AffineBlocks<32> blocks;
    affine<32>(tiles, 15, 63, reaches, arange(-1, 0.1, 21, 15, reaches), blocks);
    for (int b = 0; b < count; ++b) {
        out = put_half(put_half(out, blocks.super_scale[b]), blocks.super_floor[b]);
        out = put_pairs(out, blocks.scales + b * 8, blocks.floors + b * 8);
        out = put_bits<32, 4, 256>(out, blocks.quants + b * 256);
    }
}

inline void q5_k(Tiles<256, 32>& tiles, int count, uint8_t* out) {
    float reaches[64];
    AffineBlocks<32> blocks;
    affine<32>(tiles, 31, 63, reaches, arange(-0.5, 0.1, 16, 31, reaches), blocks);
    uint8_t part[256];
    for (int b = 0; b < count; ++b) {
        out = put_half(put_half(out, blocks.super_scale[b]), blocks.super_floor[b]);
        out = put_pairs(out, blocks.scales + b * 8, blocks.floors + b * 8);
        shifted<256>(blocks.quants + b * 256, 4, 1, part);
        out = put_bits<32, 1, 256>(out, part);
        shifted<256>(blocks.quants + b * 256, 0, 15, part);
        out = put_bits<32, 4, 256>(out, part);
    }
}

struct SymmetricBlocks {
    uint8_t quants[W * 256];
    uint8_t scales[W * 16];  // lifted by `steps`
    uint16_t super_scale[W];
};

inline F symmetric_fit(const F* x, const F* weights, int reach) {
    float ends[19];
    int count = symmetric_ends(reach, ends);
    return scale_fit<16>(x, weights, inverse(extremes<16>(x)), ends, count,
                         [&](F scaled) { return quantized(scaled, float(-reach), float(reach - 1)); });
}

inline void symmetric(Tiles<256, 16>& tiles, int reach, int steps, SymmetricBlocks& out) {
    PerGroup<16> scale, heavy, unit;
    for (int tile = 0; tile < 16; ++tile) {
        const F* weights = tiles.weights[tile];
        scale.tiles[tile] = symmetric_fit(tiles.x[tile], weights, reach);
        heavy.tiles[tile] = total<16, 1>([&](int i) { return weights[i]; });
    }
    F scales[16], heavies[16];  // the groups of a block in its lane
    for (int block = 0; block < W; ++block)
        for (int i = 0; i < 16; ++i) {
            scales[i][block] = scale.each[block * 16 + i];
            heavies[i][block] = heavy.each[block * 16 + i];
        }
    F super = symmetric_fit(scales, heavies, steps);
    for (int block = 0; block < W; ++block) {
        out.super_scale[block] = half_of(super[block]);
        std::fill_n(unit.each + block * 16, 16, of_half(out.super_scale[block]));
    }
    float low = float(-reach), high = float(reach - 1), least_step = float(-steps), most = float(steps - 1);
    for (int tile = 0; tile < 16; ++tile) {
        const F *x = tiles.x[tile], *weights = tiles.weights[tile];
        F units = unit.tiles[tile], nearest = quantized(scale.tiles[tile] * inverse(units), least_step, most);
        F best{}, least{}, quants[16];
        static constexpr float BESIDE[3] = {0.0f, -1.0f, 1.0f};
        for (int k = 0; k < 3; ++k) {
            F small = smaller(larger(nearest + BESIDE[k], all(least_step)), all(most));
            F slope = small * units, by = inverse(slope);
            F error = total<16, 1>([&](int i) {
                F missed = x[i] - quantized(x[i] * by, low, high) * slope;
                return weights[i] * missed * missed;
            });
            I better = k ? error < least : ~I{};
            best = pick(better, small, best);
            least = pick(better, error, least);
        }
        F by = inverse(best * units);
        for (int i = 0; i < 16; ++i) quants[i] = quantized(x[i] * by, low, high);
        store<16>(quants, tile, float(reach), out.quants);
        store<1>(&best, tile, float(steps), out.scales);
    }
}

inline void q3_k(Tiles<256, 16>& tiles, int count, uint8_t* out) {
    SymmetricBlocks blocks;
    symmetric(tiles, 4, 32, blocks);
    uint8_t part[256];
    for (int b = 0; b < count; ++b) {
        const uint8_t *quants = blocks.quants + b * 256, *scales = blocks.scales + b * 16;
        shifted<256>(quants, 2, 1, part);
        out = put_bits<32, 1, 256>(out, part);
        shifted<256>(quants, 0, 3, part);
        out = put_bits<32, 2, 256>(out, part);
        shifted<16>(scales, 0, 15, part);
        out = put_bits<8, 4, 16>(out, part);
        shifted<16>(scales, 4, 3, part);
        out = put_bits<4, 2, 16>(out, part);
        out = put_half(out, blocks.super_scale[b]);
    }
}

inline void q6_k(Tiles<256, 16>& tiles, int count, uint8_t* out) {
    SymmetricBlocks blocks;
    symmetric(tiles, 32, 128, blocks);
    uint8_t part[256];
    for (int b = 0; b < count; ++b) {
        const uint8_t* quants = blocks.quants + b * 256;
        shifted<256>(quants, 0, 15, part);
        out = put_bits<64, 4, 256>(out, part);
        shifted<256>(quants, 4, 3, part);
        out = put_bits<32, 2, 256>(out, part);
        for (int i = 0; i < 16; ++i) *out++ = static_cast<uint8_t>(blocks.scales[b * 16 + i] - 128);
        out = put_half(out, blocks.super_scale[b]);
    }
}

// ---- tables of sixteen values

constexpr int IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

inline F iq4_point(F x) {
    F point = all(float(IQ4_VALUES[0]));
    for (int i = 0; i < 15; ++i) {
        float middle = (IQ4_VALUES[i] + IQ4_VALUES[i + 1]) / 2.0f;
        point += x >= middle ? all(float(IQ4_VALUES[i + 1] - IQ4_VALUES[i])) : F{};
    }
    return point;
}

inline F iq4_code(F x) {
    I code{};
    for (int i = 0; i < 15; ++i) code -= (I)(x >= (IQ4_VALUES[i] + IQ4_VALUES[i + 1]) / 2.0f);
    return __builtin_convertvector(code, F);
}

inline F iq4_scale(const F* x, const F* weights) {
    float ends[30];
    for (int i = 0; i < 15; ++i) {
        ends[i] = float(IQ4_VALUES[0] + i - 7);
        ends[15 + i] = float(-IQ4_VALUES[0] + i - 7);
    }
    return scale_fit<32>(x, weights, inverse(extremes<32>(x)), ends, 30, iq4_point);
}

inline void iq4_nl(Tiles<32, 32>& tiles, int count, uint8_t* out) {
    F scale = iq4_scale(tiles.x[0], tiles.weights[0]), codes[32], rounded;
    uint16_t halves[W];
    for (int block = 0; block < W; ++block) {
        halves[block] = half_of(scale[block]);
        rounded[block] = of_half(halves[block]);
    }
    F by = inverse(rounded);
    for (int i = 0; i < 32; ++i) codes[i] = iq4_code(tiles.x[0][i] * by);
    uint8_t quants[W * 32];
    store<32>(codes, 0, 0.0f, quants);
    for (int b = 0; b < count; ++b) out = put_bits<16, 4, 32>(put_half(out, halves[b]), quants + b * 32);
}

inline void iq4_xs(Tiles<256, 32>& tiles, int count, uint8_t* out) {
    PerGroup<8> scale, unit;
    uint16_t halves[W];
    for (int tile = 0; tile < 8; ++tile) scale.tiles[tile] = iq4_scale(tiles.x[tile], tiles.weights[tile]);
    for (int block = 0; block < W; ++block) {
        const float* of_block = scale.each + block * 8;
        float highest = *std::max_element(of_block, of_block + 8), lowest = *std::min_element(of_block, of_block + 8);
        halves[block] = half_of((highest >= -lowest ? highest : lowest) / -32.0f);
        std::fill_n(unit.each + block * 8, 8, of_half(halves[block]));
    }
    uint8_t quants[W * 256], lifted[W * 8], part[8];
    for (int tile = 0; tile < 8; ++tile) {
        F steps = quantized(scale.tiles[tile] * inverse(unit.tiles[tile]), -32.0f, 31.0f), codes[32];
        F by = inverse(steps * unit.tiles[tile]);
        for (int i = 0; i < 32; ++i) codes[i] = iq4_code(tiles.x[tile][i] * by);
        store<32>(codes, tile, 0.0f, quants);
        store<1>(&steps, tile, 32.0f, lifted);
    }
    for (int b = 0; b < count; ++b) {
        out = put_half(out, halves[b]);
        shifted<8>(lifted + b * 8, 4, 3, part);
        out = put_bits<1, 2, 8>(out, part);
        shifted<8>(lifted + b * 8, 0, 15, part);
        out = put_bits<1, 4, 8>(out, part);
        out = put_bits<16, 4, 256>(out, quants + b * 256);
    }
}

inline F mxfp4_exponent(F size) {
    F exponent;
    for (int lane = 0; lane < W; ++lane) {
        int power = 0;
        std::frexp(size[lane], &power);
        exponent[lane] = size[lane] > 0 ? float(std::min(std::max(power - 3 + 127, 1), 252)) : 0.0f;
    }
    return exponent;
}

// Codes under a shared exponent, and the squared error in squares of half the scale
inline F mxfp4_codes(const F* x, const F* importance, F exponent, F* codes) {
    F by;
    for (int lane = 0; lane < W; ++lane) by[lane] = std::ldexp(1.0f, 128 - std::max(int(exponent[lane]), 1));
    static constexpr float MIDDLES[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
    static constexpr float STEPS[7] = {1, 1, 1, 1, 2, 2, 4};
    return total<32, 1>([&](int i) {
        F doubled = x[i] * by, size = size_of(doubled), point{}, code{};
        for (int k = 0; k < 7; ++k) {
            I above = k % 2 ? size >= MIDDLES[k] : size > MIDDLES[k];  // a tie goes to the even mantissa
            point += pick(above, all(STEPS[k]), F{});
            code += pick(above, all(1.0f), F{});
        }
        codes[i] = code + pick(doubled < 0.0f, all(8.0f), F{});
        F missed = point - size;
        return importance ? missed * missed * importance[i] : missed * missed;
    });
}

inline void mxfp4(Tiles<32, 32>& tiles, bool has_importance, int count, uint8_t* out) {
    const F *x = tiles.x[0], *importance = has_importance ? tiles.weights[0] : nullptr;
    F size{}, codes[32], upper_codes[32];
    for (int i = 0; i < 32; ++i) size = larger(size_of(x[i]), size);
    F proposed = mxfp4_exponent(size), upper = smaller(proposed + 1.0f, all(252.0f));
    F error = mxfp4_codes(x, importance, proposed, codes);
    F upper_error = mxfp4_codes(x, importance, upper, upper_codes);
    I is_upper = 4.0f * upper_error < error;
    F exponent = pick(is_upper, upper, proposed);
    for (int i = 0; i < 32; ++i) codes[i] = pick(is_upper, upper_codes[i], codes[i]);
    uint8_t quants[W * 32];
    store<32>(codes, 0, 0.0f, quants);
    for (int b = 0; b < count; ++b) {
        *out++ = static_cast<uint8_t>(exponent[b]);
        out = put_bits<16, 4, 32>(out, quants + b * 32);
    }
}

// ---- Q4_0 to Q5_1 where the importance of columns is known

inline F rounded_halves(F numbers, uint16_t* halves) {
    F rounded;
    for (int block = 0; block < W; ++block) {
        halves[block] = half_of(numbers[block]);
        rounded[block] = of_half(halves[block]);
    }
    return rounded;
}

template <int reach>
inline void weighted_signed(Tiles<32, 32>& tiles, int count, uint8_t* out) {
    const F* x = tiles.x[0];
    float ends[19];
    symmetric_ends(reach, ends);
    auto nearest = [](F scaled) { return quantized(scaled, -float(reach), float(reach - 1)); };
    F scale = scale_fit<32>(x, tiles.weights[0], inverse(extremes<32>(x)), ends, 19, nearest), quants[32];
    uint16_t halves[W];
    F by = inverse(rounded_halves(scale, halves));
    for (int i = 0; i < 32; ++i) quants[i] = nearest(x[i] * by);
    uint8_t numbers[W * 32];
    store<32>(quants, 0, float(reach), numbers);
    for (int b = 0; b < count; ++b) {
        out = put_half(out, halves[b]);
        out = reach == 8 ? put_bits<16, 4, 32>(out, numbers + b * 32) : put_fifth_bits(out, numbers + b * 32);
    }
}

template <int levels>
inline void weighted_floored(Tiles<32, 32>& tiles, int count, uint8_t* out) {
    const F* x = tiles.x[0];
    float reaches[64];
    Affine fit = affine_fit<32>(x, tiles.weights[0], float(levels), reaches, arange(-0.9, 0.05, 37, levels, reaches));
    uint16_t halves[W], floors[W];
    F by = inverse(rounded_halves(fit.scale, halves)), floor = rounded_halves(F{} - fit.floor, floors), quants[32];
    for (int i = 0; i < 32; ++i) quants[i] = quantized((x[i] - floor) * by, 0.0f, float(levels));
    uint8_t numbers[W * 32];
    store<32>(quants, 0, 0.0f, numbers);
    for (int b = 0; b < count; ++b) {
        out = put_half(put_half(out, halves[b]), floors[b]);
        out = levels == 15 ? put_bits<16, 4, 32>(out, numbers + b * 32) : put_fifth_bits(out, numbers + b * 32);
    }
}

// ---- all together

template <int values, int group, class Encode>
inline void searched(const EncodeJob& job, EncodeRoom& room, const Encode& encode) {
    Tiles<values, group> tiles;
    tiles.fill(room.values, job.importance ? room.weights : nullptr);
    if (job.kind != MXFP4) tiles.weigh(job.importance != nullptr);
    encode(tiles);
}

inline void search(const EncodeJob& job, EncodeRoom& room, int count, uint8_t* out) {
    switch (job.kind) {
        case Q2_K: return searched<256, 16>(job, room, [&](auto& tiles) { q2_k(tiles, count, out); });
        case Q3_K: return searched<256, 16>(job, room, [&](auto& tiles) { q3_k(tiles, count, out); });
        case Q4_K: return searched<256, 32>(job, room, [&](auto& tiles) { q4_k(tiles, count, out); });
        case Q5_K: return searched<256, 32>(job, room, [&](auto& tiles) { q5_k(tiles, count, out); });
        case Q6_K: return searched<256, 16>(job, room, [&](auto& tiles) { q6_k(tiles, count, out); });
        case IQ4_NL: return searched<32, 32>(job, room, [&](auto& tiles) { iq4_nl(tiles, count, out); });
        case IQ4_XS: return searched<256, 32>(job, room, [&](auto& tiles) { iq4_xs(tiles, count, out); });
        case MXFP4:
            return searched<32, 32>(job, room,
                                    [&](auto& tiles) { mxfp4(tiles, job.importance != nullptr, count, out); });
        case Q4_0: return searched<32, 32>(job, room, [&](auto& tiles) { weighted_signed<8>(tiles, count, out); });
        case Q5_0: return searched<32, 32>(job, room, [&](auto& tiles) { weighted_signed<16>(tiles, count, out); });
        case Q4_1: return searched<32, 32>(job, room, [&](auto& tiles) { weighted_floored<15>(tiles, count, out); });
        case Q5_1: return searched<32, 32>(job, room, [&](auto& tiles) { weighted_floored<31>(tiles, count, out); });
    }
}

inline void plain(int kind, const float* x, uint8_t* out) {
    switch (kind) {
        case Q4_0: return plain_signed<8>(x, out);
        case Q4_1: return plain_floored<15>(x, out);
        case Q5_0: return plain_signed<16>(x, out);
        case Q5_1: return plain_floored<31>(x, out);
        case Q8_0: return plain_q8_0(x, out);
    }
}

}  // namespace

ptrdiff_t encode_blocks(const EncodeJob& job, size_t first, size_t last, EncodeRoom& room) {
    const size_t values = values_per_block(job.kind), bytes = bytes_per_block(job.kind);
    const bool is_plain = job.kind == Q8_0 || (job.kind <= Q8_0 && !job.importance);
    for (size_t block = first; block < last; block += W) {
        const size_t count = std::min<size_t>(W, last - block);
        read_floats(job, block * values, count * values, room.values);
        if (!is_held(room.values, count * values, job.limit))
            for (size_t i = 0; i < count; ++i)
                if (!is_held(room.values + i * values, values, job.limit)) return static_cast<ptrdiff_t>(block + i);
        uint8_t* out = job.out + block * bytes;
        if (is_plain) {
            for (size_t i = 0; i < count; ++i) plain(job.kind, room.values + i * 32, out + i * bytes);
            continue;
        }
        for (size_t i = 0; i < count; ++i) {
            if (job.kind != MXFP4) without_traces(room.values + i * values, static_cast<int>(values));
            if (job.importance)
                std::memcpy(room.weights + i * values, job.importance + (block + i) % job.blocks_per_row * values,
                            4 * values);
        }
        std::fill(room.values + count * values, room.values + W * values, 0.0f);
        if (job.importance) std::fill(room.weights + count * values, room.weights + W * values, 1.0f);
        search(job, room, static_cast<int>(count), out);
    }
    return -1;
}

}  // namespace localllm::ENCODE_SET
