// Weights in the order the kernels read them: eight rows interleaved, each thread's rows in its own arena.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "mapping.h"
#include "team.h"

namespace localllm {

// Blocks as a file has them, row after row.
struct RawMatrix {
    const uint8_t* data;
    Type type;
    int rows, columns;
    size_t row_bytes;
};

// One row alone, as lane 0 of a group of group_bytes(type, columns).
void pack_row(const RawMatrix& raw, int row, uint8_t* group);

// Throws std::invalid_argument when bytes and shape do not agree, or the type is none of ours.
RawMatrix checked_raw(const uint8_t* data, size_t bytes, int type, long rows, long columns);

struct Matrix {
    Type type;
    int rows, columns, groups;
    size_t stride;              // bytes of a group
    std::vector<Slice> slices;  // per thread

    const uint8_t* group(int index) const;
};

// Gate and up side by side: a unit is up to UNIT_GROUPS groups of gate and as many of up. Slices count units.
// The two may differ in type; then both take floats, or both take quantized activations.
struct GatedMatrix {
    Type type, up_type;
    int rows, columns, groups;
    std::vector<Slice> slices;
};

class Packer {
public:
    Packer(Team& team) : team_(team), arenas_(static_cast<size_t>(team.size())) {}

    Matrix pack(const RawMatrix& raw);
    GatedMatrix pack_gated(const RawMatrix& gate, const RawMatrix& up);
    size_t used() const;

private:
    Team& team_;
    std::vector<Arena> arenas_;
};

}  // namespace localllm
