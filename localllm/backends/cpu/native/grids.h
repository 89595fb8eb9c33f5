// The tables of the IQ types: each entry is four or eight bytes, one for each column, as words of four.
#pragma once
#include <cstdint>

namespace localllm {

struct Grids {
    uint32_t iq1[2 * 2048];  // eighths: -8, 0 or 8; for IQ1_S and IQ1_M
    uint32_t iq2_xxs[2 * 256], iq2_xs[2 * 512], iq2_s[2 * 1024];
    uint32_t iq3_xxs[256], iq3_s[512];
};
extern const Grids GRIDS;

}  // namespace localllm
