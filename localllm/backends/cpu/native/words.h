// Thirty-two bytes at once: four columns of eight rows, as packed blocks have them. Eight bytes: one of each row.
#pragma once
#include "kernels.h"
#include "lanes.h"
#ifdef LOCALLLM_NEON
#include "neon_words.h"
#endif

namespace localllm {
namespace {

#ifdef LOCALLLM_AVX2

using Words = __m256i;
using Ints = __m256i;

INLINE Words load_words(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
INLINE void store_words(uint8_t* p, Words v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
INLINE Words bits(Words v, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi8(static_cast<char>(mask)));
}
INLINE Words minus(Words v, int n) { return _mm256_sub_epi8(v, _mm256_set1_epi8(static_cast<char>(n))); }
// Bits `from` on of every byte, where `mask` has ones, moved to bit `to`; `to` and `from` are known at compile time.
INLINE Words bits_at(Words v, int from, int mask, int to) {
    v = from > to ? _mm256_srli_epi16(v, from - to) : _mm256_slli_epi16(v, to - from);
    return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>(mask << to)));
}
INLINE Words look_up(const int8_t* table, Words v) {
    __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half), v);
}
// Bits 4j..4j+3 of each row's word, one to a byte, as `one` or zero.
INLINE Words four_bits(Words v, int j, int one = 1) {
    __m256i byte = _mm256_set1_epi32((j / 2) * 0x01010101);
    __m256i of_row = _mm256_add_epi8(byte, _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c)));
    __m256i bit = _mm256_set1_epi32(j % 2 ? static_cast<int>(0x80402010) : 0x08040201);
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(v, of_row), bit), bit);
    return _mm256_and_si256(set, _mm256_set1_epi8(static_cast<char>(one)));
}
INLINE Ints all_ints(const int32_t* p) { return _mm256_set1_epi32(*p); }
INLINE Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
INLINE Ints subtract(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
INLINE Ints times(Ints a, int power_of_two) { return _mm256_slli_epi32(a, __builtin_ctz(static_cast<unsigned>(power_of_two))); }
INLINE F8 floats(Ints v) { return _mm256_cvtepi32_ps(v); }
INLINE F8 floats(uint64_t rows) { return floats(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(rows)))); }
INLINE F8 signed_floats(uint64_t rows) {
    return floats(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(static_cast<long long>(rows))));
}

#elif !defined(LOCALLLM_NEON)

typedef uint8_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t WordPairs __attribute__((vector_size(4 * LANES)));  // few machines shift bytes
struct Ints {
    int32_t at[LANES];
};

INLINE Words all_bytes(int n) { return Words{} + static_cast<uint8_t>(n); }
INLINE WordPairs all_pairs(int n) { return WordPairs{} + static_cast<uint16_t>(n); }
INLINE Words load_words(const uint8_t* p) {
    Words v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
INLINE Words bits(Words v, int shift, int mask) {
    return reinterpret_cast<Words>(reinterpret_cast<WordPairs>(v) >> all_pairs(shift)) & all_bytes(mask);
}
INLINE Words minus(Words v, int n) { return v - all_bytes(n); }
INLINE Words bits_at(Words v, int from, int mask, int to) {
    WordPairs pairs = reinterpret_cast<WordPairs>(v);
    pairs = from > to ? pairs >> all_pairs(from - to) : pairs << all_pairs(to - from);
    return reinterpret_cast<Words>(pairs) & all_bytes(mask << to);
}
INLINE Words look_up(const int8_t* table, Words v) {
    for (int i = 0; i < 4 * LANES; i++) v[i] = static_cast<uint8_t>(table[v[i]]);
    return v;
}
INLINE Words four_bits(Words v, int j, int one = 1) {
    uint32_t words[LANES];
    std::memcpy(words, &v, sizeof v);
    // the product has bit k of four at bit 8k
    for (uint32_t& four : words) four = ((four >> 4 * j & 15) * 0x00204081u & 0x01010101u) * static_cast<uint32_t>(one);
    std::memcpy(&v, words, sizeof v);
    return v;
}
INLINE void pin(Ints&) {}
INLINE Ints all_ints(const int32_t* p) {
    Ints a;
    for (int32_t& lane : a.at) lane = *p;
    return a;
}
INLINE Ints subtract(Ints a, Ints b) {
    for (int i = 0; i < LANES; i++) a.at[i] -= b.at[i];
    return a;
}
INLINE Ints add(Ints a, Ints b) {
    for (int i = 0; i < LANES; i++) a.at[i] += b.at[i];
    return a;
}
INLINE Ints times(Ints a, int b) {
    for (int i = 0; i < LANES; i++) a.at[i] *= b;
    return a;
}
// The sums of four words, of quants up to MOST, times 16 activations.
template <int MOST>
INLINE Ints dots(const Words* v, const int8_t* q) {
    int8_t quants[4][4 * LANES];
    std::memcpy(quants, v, sizeof quants);
    Ints sums{};
    for (int j = 0; j < 4; j++)
        for (int lane = 0; lane < LANES; lane++)
            for (int c = 0; c < 4; c++) sums.at[lane] += quants[j][4 * lane + c] * q[4 * j + c];
    return sums;
}
// The largest magnitude of 16.
INLINE float largest_of_half(const float* x) {
    float most = 0.0f;
    for (int i = 0; i < HALF; i++) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
    return most;
}
// 16 values times `factor`, rounded; returns their sum.
INLINE int quantize_half(const float* x, float factor, int8_t* q) {
    int sum = 0;
    for (int i = 0; i < HALF; i++) {
        float scaled = std::nearbyintf(x[i] * factor);
        // a NaN or an infinity among the inputs must not become an undefined conversion
        int whole = scaled >= -127.0f && scaled <= 127.0f ? static_cast<int>(scaled) : -127;
        q[i] = static_cast<int8_t>(whole);
        sum += whole;
    }
    return sum;
}
INLINE F8 floats(Ints v) {
    F8 x;
    for (int i = 0; i < LANES; i++) x[i] = static_cast<float>(v.at[i]);
    return x;
}
INLINE F8 floats(uint64_t rows) {
    uint8_t bytes[LANES];
    std::memcpy(bytes, &rows, sizeof bytes);
    F8 x;
    for (int i = 0; i < LANES; i++) x[i] = static_cast<float>(bytes[i]);
    return x;
}
INLINE F8 signed_floats(uint64_t rows) {
    int8_t bytes[LANES];
    std::memcpy(bytes, &rows, sizeof bytes);
    F8 x;
    for (int i = 0; i < LANES; i++) x[i] = static_cast<float>(bytes[i]);
    return x;
}

#endif

INLINE uint64_t load_bytes(const uint8_t* p) {
    uint64_t rows;
    std::memcpy(&rows, p, sizeof rows);
    return rows;
}
INLINE uint64_t bits(uint64_t rows, int shift, int mask) {
    return rows >> shift & static_cast<uint64_t>(mask) * 0x0101010101010101u;
}

}  // namespace
}  // namespace localllm
