// What the blocks of a file hold: per type its quants as bytes, and their scales, for eight interleaved rows.
//
// A packed block keeps the file's fields, each unit of a field (a word of quants, a half, a byte of scales) eight times,
// row by row: what has offset `o` in the file's block lies at LANES * o. A run is 32 columns; `j` is a word of a run, which
// is four columns. A value is scale * (quant - OFFSET) + floor. Quants are unsigned, or signed with no offset, and of
// sizes up to MOST.
#pragma once
#include "kernels.h"
#include "words.h"

namespace localllm {
namespace {

// A type's OFFSET, a power of two, or zero where it has none.
template <class Form, class = int>
struct OffsetOf {
    static constexpr int VALUE = 0;
};
template <class Form>
struct OffsetOf<Form, decltype(Form::OFFSET + 0)> {
    static constexpr int VALUE = Form::OFFSET;
};

// Of one run. The second ones are those of the right half, in types with a scale per half.
struct Scales {
    F8 scale[2], floor[2];
};

// Of one block: what its runs share.
struct Unit {
    F8 scale, floor;
};

INLINE const uint8_t* field(const uint8_t* w, int offset) { return w + LANES * offset; }
INLINE Words word(const uint8_t* w, int offset, int index) { return load_words(field(w, offset + 4 * index)); }
INLINE uint64_t byte(const uint8_t* w, int offset, int index) { return load_bytes(field(w, offset + index)); }
INLINE F8 half(const uint8_t* w, int offset) { return load_half(field(w, offset)); }
INLINE Words nibbles(Words v, int upper) { return bits(v, 4 * upper, 15); }

// ---- 8 bits

struct Q8_0 {
    static constexpr Type TYPE = Type::Q8_0;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 128;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {}}; }
    INLINE static Words quants(const uint8_t* w, int, int j) { return word(w, 2, j); }
};

// ---- 4 bits: the low ones of a word's bytes are columns 4j.., the high ones 16 + 4j..

struct Q4_0 {
    static constexpr Type TYPE = Type::Q4_0;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 15, OFFSET = 8;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {}}; }
    INLINE static Words quants(const uint8_t* w, int, int j) { return nibbles(word(w, 2, j % 4), j / 4); }
};

struct Q4_1 {
    static constexpr Type TYPE = Type::Q4_1;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = true, PER_HALF = false;
    static constexpr int MOST = 15;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), half(w, 2)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {unit.floor}}; }
    INLINE static Words quants(const uint8_t* w, int, int j) { return nibbles(word(w, 4, j % 4), j / 4); }
};

// ---- 5 bits: the fifth ones in a word of their own

INLINE Words five_bits(const uint8_t* w, int high, int quants, int j) {
    return nibbles(word(w, quants, j % 4), j / 4) | four_bits(word(w, high, 0), j, 16);
}

struct Q5_0 {
    static constexpr Type TYPE = Type::Q5_0;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 31, OFFSET = 16;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {}}; }
    INLINE static Words quants(const uint8_t* w, int, int j) { return five_bits(w, 2, 6, j); }
};

struct Q5_1 {
    static constexpr Type TYPE = Type::Q5_1;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = true, PER_HALF = false;
    static constexpr int MOST = 31;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), half(w, 2)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {unit.floor}}; }
    INLINE static Words quants(const uint8_t* w, int, int j) { return five_bits(w, 4, 8, j); }
};

// ---- 256 columns with small whole scales, which multiply one half for all of them

INLINE Words two_bits(const uint8_t* w, int quants, int run, int j) {
    return bits(word(w, quants, run / 4 * 8 + j), run % 4 * 2, 3);
}

struct Q2_K {
    static constexpr Type TYPE = Type::Q2_K;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = true, PER_HALF = true;
    static constexpr int MOST = 3;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 80), all(0.0f) - half(w, 82)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        uint64_t left = byte(w, 0, 2 * run), right = byte(w, 0, 2 * run + 1);
        return {{unit.scale * floats(bits(left, 0, 15)), unit.scale * floats(bits(right, 0, 15))},
                {unit.floor * floats(bits(left, 4, 15)), unit.floor * floats(bits(right, 4, 15))}};
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) { return two_bits(w, 16, run, j); }
};

struct Q3_K {
    static constexpr Type TYPE = Type::Q3_K;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = false, PER_HALF = true;
    static constexpr int MOST = 7, OFFSET = 4;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 108), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        return {{unit.scale * six_bits(w, 2 * run), unit.scale * six_bits(w, 2 * run + 1)}, {}};
    }
    INLINE static F8 six_bits(const uint8_t* w, int index) {
        uint64_t low = bits(byte(w, 96, index % 8), index / 8 * 4, 15);
        uint64_t high = bits(byte(w, 104, index % 4), index / 4 * 2, 3);
        return floats(low | high << 4) - all(32.0f);
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        return two_bits(w, 32, run, j) | bits_at(word(w, 0, j), run, 1, 2);
    }
};

// Scales and floors of Q4_K and Q5_K: eight pairs of 6 bits in twelve bytes from offset 4 on.
INLINE Scales pairs_of_six_bits(const uint8_t* w, const Unit& unit, int run) {
    uint64_t scale, floor;
    if (run < 4) {
        scale = bits(byte(w, 4, run), 0, 63);
        floor = bits(byte(w, 8, run), 0, 63);
    } else {
        uint64_t low = byte(w, 8, run);
        scale = bits(low, 0, 15) | bits(byte(w, 0, run), 6, 3) << 4;
        floor = bits(low, 4, 15) | bits(byte(w, 4, run), 6, 3) << 4;
    }
    return {{unit.scale * floats(scale)}, {unit.floor * floats(floor)}};
}

INLINE Words four_bits_of_k(const uint8_t* w, int quants, int run, int j) {
    return nibbles(word(w, quants, run / 2 * 8 + j), run % 2);
}

struct Q4_K {
    static constexpr Type TYPE = Type::Q4_K;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = true, PER_HALF = false;
    static constexpr int MOST = 15;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f) - half(w, 2)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) { return pairs_of_six_bits(w, unit, run); }
    INLINE static Words quants(const uint8_t* w, int run, int j) { return four_bits_of_k(w, 16, run, j); }
};

struct Q5_K {
    static constexpr Type TYPE = Type::Q5_K;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = true, PER_HALF = false;
    static constexpr int MOST = 31;
    INLINE static Unit unit(const uint8_t* w) { return Q4_K::unit(w); }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) { return pairs_of_six_bits(w, unit, run); }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        return four_bits_of_k(w, 48, run, j) | bits_at(word(w, 16, j), run, 1, 4);
    }
};

struct Q6_K {
    static constexpr Type TYPE = Type::Q6_K;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = false, PER_HALF = true;
    static constexpr int MOST = 63, OFFSET = 32;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 208), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        F8 left = signed_floats(byte(w, 192, 2 * run)), right = signed_floats(byte(w, 192, 2 * run + 1));
        return {{unit.scale * left, unit.scale * right}, {}};
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        Words low = nibbles(word(w, 0, run / 4 * 16 + run % 2 * 8 + j), run % 4 / 2);
        return low | bits_at(word(w, 128, run / 4 * 8 + j), run % 4 * 2, 3, 4);
    }
};

// ---- 4 bits that choose from a codebook

alignas(16) constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// doubled, and 16 more
alignas(16) constexpr int8_t MXFP4_VALUES[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

struct IQ4_NL {
    static constexpr Type TYPE = Type::IQ4_NL;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 127;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {}}; }
    INLINE static Words quants(const uint8_t* w, int, int j) {
        return look_up(IQ4_VALUES, nibbles(word(w, 2, j % 4), j / 4));
    }
};

struct IQ4_XS {
    static constexpr Type TYPE = Type::IQ4_XS;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 127;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        uint64_t low = bits(byte(w, 4, run / 2), run % 2 * 4, 15), high = bits(byte(w, 2, run / 4), run % 4 * 2, 3);
        return {{unit.scale * (floats(low | high << 4) - all(32.0f))}, {}};
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        return look_up(IQ4_VALUES, nibbles(word(w, 8, run * 4 + j % 4), j / 4));
    }
};

struct MXFP4 {
    static constexpr Type TYPE = Type::MXFP4;
    static constexpr bool IS_SIGNED = false, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 28, OFFSET = 16;
    INLINE static Unit unit(const uint8_t* w) { return {powers(field(w, 0)), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {}}; }
    INLINE static Words quants(const uint8_t* w, int, int j) {
        return look_up(MXFP4_VALUES, nibbles(word(w, 1, j % 4), j / 4));
    }
    // Half of 2^(e - 127), as the codebook is doubled; the two smallest are no normal numbers.
    INLINE static F8 powers(const uint8_t* exponents) {
#ifdef LOCALLLM_AVX2
        __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(exponents)));
        __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
        __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
        return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, tiny, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
#else
        float x[LANES];
        for (int i = 0; i < LANES; i++) {
            uint32_t e = exponents[i];
            x[i] = bits_to_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        }
        return load(x);
#endif
    }
};

}  // namespace
}  // namespace localllm
