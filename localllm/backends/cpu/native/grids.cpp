#include "grids.h"

#include "grid_steps.h"

namespace localllm {
namespace {

// Entries of `LENGTH` values; a digit of `bits` bits of an entry's number says which of `values` comes there.
template <int LENGTH, int COUNT>
constexpr void expand(const uint16_t (&steps)[COUNT], int bits, const int* values, uint32_t* words) {
    uint32_t number = 0;
    for (int entry = 0; entry < COUNT; entry++) {
        number += steps[entry];
        for (int i = 0; i < LENGTH; i++) {
            uint32_t value = static_cast<uint8_t>(values[number >> i * bits & ((1u << bits) - 1)]);
            words[entry * (LENGTH / 4) + i / 4] |= value << i % 4 * 8;
        }
    }
}

constexpr Grids expanded() {
    constexpr int iq1[] = {-8, 0, 8}, iq2[] = {8, 25, 43};
    constexpr int iq3_xxs[] = {4, 12, 20, 28, 36, 44, 52, 62}, iq3_s[] = {1, 3, 5, 7, 9, 11, 13, 15};
    Grids grids{};
    expand<8>(IQ1_S_STEPS, 2, iq1, grids.iq1);
    expand<8>(IQ2_XXS_STEPS, 2, iq2, grids.iq2_xxs);
    expand<8>(IQ2_XS_STEPS, 2, iq2, grids.iq2_xs);
    expand<8>(IQ2_S_STEPS, 2, iq2, grids.iq2_s);
    expand<4>(IQ3_XXS_STEPS, 3, iq3_xxs, grids.iq3_xxs);
    expand<4>(IQ3_S_STEPS, 3, iq3_s, grids.iq3_s);
    return grids;
}

}  // namespace

constexpr Grids GRIDS = expanded();

}  // namespace localllm
