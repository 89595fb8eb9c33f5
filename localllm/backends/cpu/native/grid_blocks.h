// Blocks whose numbers stand for four or eight values at once, looked up in the tables of grids.h; and those of one, two
// and three values. Laid out and described as the ones of blocks.h.
#pragma once
#include "blocks.h"
#include "grids.h"

namespace localllm {
namespace {

// Eight numbers of 32 bits, one of each row.
#ifdef LOCALLLM_AVX2

using Numbers = __m256i;

INLINE Numbers numbers(Words v) { return v; }
INLINE Words as_words(Numbers n) { return n; }
INLINE Numbers numbers(uint64_t rows) { return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(rows))); }
INLINE Numbers pairs(const uint8_t* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
INLINE Numbers part(Numbers n, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi32(n, shift), _mm256_set1_epi32(mask));
}
INLINE Numbers beside(Numbers a, Numbers b, int shift) { return _mm256_or_si256(a, _mm256_slli_epi32(b, shift)); }
INLINE Numbers differing(Numbers a, Numbers b) { return _mm256_xor_si256(a, b); }
INLINE Words fours(const uint32_t* table, Numbers at) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), at, 4);
}
// Half `upper` of entries of eight bytes. Both halves come from the same look-ups, which compilers then do once.
INLINE Words eights(const uint32_t* table, Numbers at, int upper) {
    __m128i first = _mm256_castsi256_si128(at), second = _mm256_extracti128_si256(at, 1);
    const long long* entries = reinterpret_cast<const long long*>(table);
    __m256 outer = _mm256_castsi256_ps(_mm256_i32gather_epi64(entries, _mm_unpacklo_epi64(first, second), 8));
    __m256 inner = _mm256_castsi256_ps(_mm256_i32gather_epi64(entries, _mm_unpackhi_epi64(first, second), 8));
    return _mm256_castps_si256(upper ? _mm256_shuffle_ps(outer, inner, 0xdd) : _mm256_shuffle_ps(outer, inner, 0x88));
}
INLINE F8 floats_of(Numbers n) { return _mm256_cvtepi32_ps(n); }
INLINE Words plus(Words a, Words b) { return _mm256_add_epi8(a, b); }
// -v where `minus` is 1, v where it is 0
INLINE Words with_signs(Words v, Words minus) {
    Words mask = _mm256_sub_epi8(_mm256_setzero_si256(), minus);
    return _mm256_sub_epi8(_mm256_xor_si256(v, mask), mask);
}
// Four times -1 where `down` is 1, 1 where it is 0
INLINE Words ones(Numbers down) {
    return _mm256_or_si256(_mm256_sub_epi32(_mm256_setzero_si256(), down), _mm256_set1_epi8(1));
}
// Whole part of 3 / 256 * (byte * power), where products lose what is above 8 bits.
INLINE Words digits(Words v, int power) {
    auto of_pair = [&](Words byte) {
        Words fraction = _mm256_and_si256(_mm256_mullo_epi16(byte, _mm256_set1_epi16(static_cast<short>(power))),
                                          _mm256_set1_epi16(255));
        return _mm256_srli_epi16(_mm256_mullo_epi16(fraction, _mm256_set1_epi16(3)), 8);
    };
    Words lower = of_pair(_mm256_and_si256(v, _mm256_set1_epi16(255))), upper = of_pair(_mm256_srli_epi16(v, 8));
    return _mm256_or_si256(lower, _mm256_slli_epi16(upper, 8));
}
// A half of each row, in fours of bits: the topmost ones of four numbers.
INLINE F8 half_in_quarters(const uint8_t* p) {
    auto quarter = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i); };
    __m128i lower = _mm_or_si128(_mm_srli_epi16(quarter(0), 12),
                                 _mm_and_si128(_mm_srli_epi16(quarter(1), 8), _mm_set1_epi16(0x00f0)));
    __m128i upper = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(quarter(2), 4), _mm_set1_epi16(0x0f00)),
                                 _mm_and_si128(quarter(3), _mm_set1_epi16(static_cast<short>(0xf000))));
    return _mm256_cvtph_ps(_mm_or_si128(lower, upper));
}

#else

struct Numbers {
    uint32_t at[LANES];
};

template <class Of>
INLINE Numbers each_number(Of of) {
    Numbers n;
    for (int i = 0; i < LANES; i++) n.at[i] = of(i);
    return n;
}
template <class Of>
INLINE Words each_byte(Of of) {
    uint8_t bytes[4 * LANES];
    for (int i = 0; i < 4 * LANES; i++) bytes[i] = static_cast<uint8_t>(of(i));
    return load_words(bytes);
}
struct BytesOf {
    uint8_t at[4 * LANES];
    INLINE explicit BytesOf(Words v) { std::memcpy(at, &v, sizeof at); }
};
INLINE Numbers numbers(Words v) {
    Numbers n;
    std::memcpy(&n, &v, sizeof n);
    return n;
}
INLINE Words as_words(Numbers n) {
    uint8_t bytes[4 * LANES];
    std::memcpy(bytes, &n, sizeof bytes);
    return load_words(bytes);
}
INLINE Numbers numbers(uint64_t rows) {
    uint8_t bytes[LANES];
    std::memcpy(bytes, &rows, sizeof bytes);
    return each_number([&](int i) { return static_cast<uint32_t>(bytes[i]); });
}
INLINE Numbers pairs(const uint8_t* p) {
    uint16_t all[LANES];
    std::memcpy(all, p, sizeof all);
    return each_number([&](int i) { return static_cast<uint32_t>(all[i]); });
}
INLINE Numbers part(Numbers n, int shift, int mask) {
    return each_number([&](int i) { return n.at[i] >> shift & static_cast<uint32_t>(mask); });
}
INLINE Numbers beside(Numbers a, Numbers b, int shift) {
    return each_number([&](int i) { return a.at[i] | b.at[i] << shift; });
}
INLINE Numbers differing(Numbers a, Numbers b) {
    return each_number([&](int i) { return a.at[i] ^ b.at[i]; });
}
INLINE Words fours(const uint32_t* table, Numbers at) {
    return as_words(each_number([&](int i) { return table[at.at[i]]; }));
}
INLINE Words eights(const uint32_t* table, Numbers at, int upper) {
    return as_words(each_number([&](int i) { return table[2 * at.at[i] + static_cast<uint32_t>(upper)]; }));
}
INLINE F8 floats_of(Numbers n) {
    float x[LANES];
    for (int i = 0; i < LANES; i++) x[i] = static_cast<float>(n.at[i]);
    return load(x);
}
INLINE Words plus(Words a, Words b) {
    BytesOf left(a), right(b);
    return each_byte([&](int i) { return left.at[i] + right.at[i]; });
}
INLINE Words with_signs(Words v, Words minus) {
    BytesOf value(v), negative(minus);
    return each_byte([&](int i) { return negative.at[i] ? -value.at[i] : value.at[i]; });
}
INLINE Words ones(Numbers down) {
    return as_words(each_number([&](int i) { return down.at[i] ? 0xffffffffu : 0x01010101u; }));
}
INLINE Words digits(Words v, int power) {
    BytesOf packed(v);
    return each_byte([&](int i) { return (packed.at[i] * power & 255) * 3 >> 8; });
}
INLINE F8 half_in_quarters(const uint8_t* p) {
    uint16_t quarters[4][LANES];
    std::memcpy(quarters, p, sizeof quarters);
    uint16_t halves[LANES];
    for (int i = 0; i < LANES; i++) {
        int lower = quarters[0][i] >> 12 | (quarters[1][i] >> 8 & 0x00f0);
        halves[i] = static_cast<uint16_t>(lower | (quarters[2][i] >> 4 & 0x0f00) | (quarters[3][i] & 0xf000));
    }
    return load_half(halves);
}

#endif

// ---- signs

// Sets the eighth bit of each of four bytes so that an even number of bits is set.
INLINE Words even(Numbers codes) {
    Numbers folded = differing(codes, part(codes, 4, 0x07070707));
    folded = differing(folded, part(folded, 2, 0x03030303));
    folded = part(differing(folded, part(folded, 1, 0x01010101)), 0, 0x01010101);
    return as_words(beside(codes, folded, 7));
}
// Four times seven bits, and four that are left out.
INLINE Words four_codes(Numbers n) {
    Numbers lower = beside(part(n, 0, 127), part(n, 7, 127), 8);
    return even(beside(lower, beside(part(n, 14, 127), part(n, 21, 127), 8), 16));
}

// ---- scales

INLINE F8 and_half(Numbers n) { return floats_of(n) + all(0.5f); }
INLINE F8 twice_and_one(Numbers n) { return floats_of(n) * all(2.0f) + all(1.0f); }

// Of both halves of a run, four bits each.
INLINE Scales with_halves(Numbers both, F8 unit) {
    return {{unit * and_half(part(both, 0, 15)) * all(0.25f), unit * and_half(part(both, 4, 15)) * all(0.25f)}, {}};
}

// ---- two and three bits

struct IQ2_XXS {
    static constexpr Type TYPE = Type::IQ2_XXS;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 43;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        return {{unit.scale * and_half(part(codes(w, run), 28, 15)) * all(0.25f)}, {}};
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        Numbers entry = part(numbers(word(w, 2, 2 * run)), j / 2 * 8, 255);
        return with_signs(eights(GRIDS.iq2_xxs, entry, j % 2), four_bits(four_codes(codes(w, run)), j));
    }
    INLINE static Numbers codes(const uint8_t* w, int run) { return numbers(word(w, 2, 2 * run + 1)); }
};

struct IQ2_XS {
    static constexpr Type TYPE = Type::IQ2_XS;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = true;
    static constexpr int MOST = 43;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        return with_halves(numbers(byte(w, 66, run)), unit.scale);
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        Numbers two = numbers(word(w, 2, 2 * run + j / 4));  // entries of 9 bits, each with 7 bits of signs above it
        Words signs = even(beside(part(two, 9, 127), part(two, 25, 127), 8));
        return with_signs(eights(GRIDS.iq2_xs, part(two, j / 2 % 2 * 16, 511), j % 2), four_bits(signs, j % 4));
    }
};

struct IQ2_S {
    static constexpr Type TYPE = Type::IQ2_S;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = true;
    static constexpr int MOST = 43;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        return with_halves(numbers(byte(w, 74, run)), unit.scale);
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        Numbers low = part(numbers(word(w, 2, run)), j / 2 * 8, 255), high = numbers(byte(w, 66, run));
        Numbers entry = beside(low, part(high, j / 2 * 2, 3), 8);
        return with_signs(eights(GRIDS.iq2_s, entry, j % 2), four_bits(word(w, 34, run), j));
    }
};

struct IQ3_XXS {
    static constexpr Type TYPE = Type::IQ3_XXS;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 62;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        return {{unit.scale * and_half(part(codes(w, run), 28, 15)) * all(0.5f)}, {}};
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        Numbers entry = part(numbers(word(w, 2, 2 * run + j / 4)), j % 4 * 8, 255);
        return with_signs(fours(GRIDS.iq3_xxs, entry), four_bits(four_codes(codes(w, run)), j));
    }
    INLINE static Numbers codes(const uint8_t* w, int run) { return numbers(word(w, 66, run)); }
};

struct IQ3_S {
    static constexpr Type TYPE = Type::IQ3_S;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 15;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        return {{unit.scale * twice_and_one(part(numbers(byte(w, 106, run / 2)), run % 2 * 4, 15))}, {}};
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        Numbers low = part(numbers(word(w, 2, 2 * run + j / 4)), j % 4 * 8, 255), high = numbers(byte(w, 66, run));
        Words sizes = fours(GRIDS.iq3_s, beside(low, part(high, j, 1), 8));
        return with_signs(sizes, four_bits(word(w, 74, run), j));
    }
};

// ---- less than two bits: -1, 0 or 1, and an eighth to or from all of them; so quants are eighths

struct IQ1_S {
    static constexpr Type TYPE = Type::IQ1_S;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 9;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0) * all(0.125f), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        return {{unit.scale * twice_and_one(part(pairs(field(w, 34 + 2 * run)), 12, 7))}, {}};
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        Numbers low = part(numbers(word(w, 2, run)), j / 2 * 8, 255), high = pairs(field(w, 34 + 2 * run));
        Numbers entry = beside(low, part(high, j / 2 * 3, 7), 8);
        return plus(eights(GRIDS.iq1, entry, j % 2), ones(part(high, 15, 1)));
    }
};

struct IQ1_M {
    static constexpr Type TYPE = Type::IQ1_M;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = true;
    static constexpr int MOST = 9;
    INLINE static Unit unit(const uint8_t* w) { return {half_in_quarters(field(w, 48)) * all(0.125f), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t* w, const Unit& unit, int run) {
        Numbers four = pairs(field(w, 48 + 2 * (run / 2)));
        int left = run % 2 * 6;
        return {{unit.scale * twice_and_one(part(four, left, 7)), unit.scale * twice_and_one(part(four, left + 3, 7))}, {}};
    }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        Numbers low = part(numbers(word(w, 0, run)), j / 2 * 8, 255);
        Numbers high = part(numbers(byte(w, 32, 2 * run + j / 4)), j / 2 % 2 * 4, 15);
        Numbers entry = beside(low, part(high, 0, 7), 8);
        return plus(eights(GRIDS.iq1, entry, j % 2), ones(part(high, 3, 1)));
    }
};

struct TQ1_0 {
    static constexpr Type TYPE = Type::TQ1_0;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 1;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 52), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {}}; }
    // Five digits to base 3 in a byte: of 32 bytes, which fill five runs, of 16, and of four with four digits each.
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        int after = 2 * (run - 5) + j / 4;  // halves since the first five runs
        if (run < 5) return minus(digits(word(w, 0, j), power(run)), 1);
        if (after < 5) return minus(digits(word(w, 32, j % 4), power(after)), 1);
        return minus(digits(word(w, 48, 0), power(j % 4)), 1);
    }
    INLINE static int power(int digit) {
        constexpr int OF_THREE[5] = {1, 3, 9, 27, 81};
        return OF_THREE[digit];
    }
};

struct TQ2_0 {
    static constexpr Type TYPE = Type::TQ2_0;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 2;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 64), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {}}; }
    INLINE static Words quants(const uint8_t* w, int run, int j) { return minus(two_bits(w, 0, run, j), 1); }
};

struct Q1_0 {
    static constexpr Type TYPE = Type::Q1_0;
    static constexpr bool IS_SIGNED = true, HAS_FLOOR = false, PER_HALF = false;
    static constexpr int MOST = 1;
    INLINE static Unit unit(const uint8_t* w) { return {half(w, 0), all(0.0f)}; }
    INLINE static Scales scales(const uint8_t*, const Unit& unit, int) { return {{unit.scale}, {}}; }
    INLINE static Words quants(const uint8_t* w, int run, int j) {
        Words set = four_bits(word(w, 2, run), j);
        return minus(plus(set, set), 1);
    }
};

}  // namespace
}  // namespace localllm
