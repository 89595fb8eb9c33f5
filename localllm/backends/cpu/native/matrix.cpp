#include "matrix.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>
#include <string>

#include "sizes.h"

namespace localllm {

namespace {

size_t row_bytes(Type type, size_t columns) {
    switch (type) {
        case Type::F32: return checked_mul(columns, 4);
        case Type::F16:
        case Type::BF16: return checked_mul(columns, 2);
        case Type::Q4_0: return checked_mul(columns / BLOCK, 18);
        case Type::Q4_1: return checked_mul(columns / BLOCK, 20);
        case Type::Q8_0: return checked_mul(columns / BLOCK, 34);
    }
    throw std::invalid_argument("block type " + std::to_string(static_cast<int>(type)) + " has no native kernel");
}

// Where the parts of a quantized block lie: scales come first in the file's block and in ours.
struct BlockParts {
    size_t bytes, num_scales, quant_words;
};
BlockParts parts_of(Type type) {
    if (type == Type::Q4_0) return {18, 1, 4};
    if (type == Type::Q4_1) return {20, 2, 4};
    return {34, 1, 8};
}

void pack_blocks(const RawMatrix& raw, int first_row, uint8_t* out) {
    const BlockParts parts = parts_of(raw.type);
    const size_t scale_bytes = parts.num_scales * 2, packed = LANES * parts.bytes;
    const size_t num_blocks = static_cast<size_t>(raw.columns) / BLOCK;
    const int rows = std::min(LANES, raw.rows - first_row);
    if (rows < LANES) std::memset(out, 0, packed * num_blocks);
    for (int lane = 0; lane < rows; lane++) {
        const uint8_t* from = raw.data + static_cast<size_t>(first_row + lane) * raw.row_bytes;
        uint8_t* to = out;
        for (size_t b = 0; b < num_blocks; b++, from += parts.bytes, to += packed) {
            for (size_t s = 0; s < parts.num_scales; s++) std::memcpy(to + s * 2 * LANES + 2 * lane, from + 2 * s, 2);
            for (size_t word = 0; word < parts.quant_words; word++)
                std::memcpy(to + scale_bytes * LANES + (word * LANES + lane) * 4, from + scale_bytes + 4 * word, 4);
        }
    }
}

void pack_values(const RawMatrix& raw, int first_row, uint8_t* out) {
    const size_t size = raw.type == Type::F32 ? 4 : 2, columns = static_cast<size_t>(raw.columns);
    const int rows = std::min(LANES, raw.rows - first_row);
    if (rows < LANES) std::memset(out, 0, columns * size * LANES);
    for (int lane = 0; lane < rows; lane++) {
        const uint8_t* from = raw.data + static_cast<size_t>(first_row + lane) * raw.row_bytes;
        for (size_t c = 0; c < columns; c++) std::memcpy(out + (c * LANES + lane) * size, from + c * size, size);
    }
}

void pack_group(const RawMatrix& raw, int group, uint8_t* out) {
    if (is_quantized(raw.type))
        pack_blocks(raw, group * LANES, out);
    else
        pack_values(raw, group * LANES, out);
}

}  // namespace

RawMatrix checked_raw(const uint8_t* data, size_t bytes, int type, long rows, long columns) {
    if (rows <= 0 || columns <= 0 || rows > INT_MAX - BLOCK || columns > INT_MAX - BLOCK)
        throw std::invalid_argument("a matrix of " + std::to_string(rows) + " x " + std::to_string(columns) +
                                    " cannot be used");
    RawMatrix raw{data, static_cast<Type>(type), static_cast<int>(rows), static_cast<int>(columns), 0};
    raw.row_bytes = row_bytes(raw.type, static_cast<size_t>(columns));
    if (is_quantized(raw.type) && columns % BLOCK)
        throw std::invalid_argument("a row of " + std::to_string(columns) + " values is no whole number of blocks");
    if (checked_mul(raw.row_bytes, static_cast<size_t>(rows)) != bytes)
        throw std::invalid_argument("a matrix has " + std::to_string(bytes) + " bytes, its shape asks for " +
                                    std::to_string(checked_mul(raw.row_bytes, static_cast<size_t>(rows))));
    return raw;
}

const uint8_t* Matrix::group(int index) const {
    for (const Slice& slice : slices)
        if (index < slice.first_group + slice.num_groups)
            return slice.data + static_cast<size_t>(index - slice.first_group) * stride;
    return nullptr;
}

Matrix Packer::pack(const RawMatrix& raw) {
    Matrix matrix{raw.type, raw.rows, raw.columns, ceil_div(raw.rows, LANES), group_bytes(raw.type, raw.columns), {}};
    for (int tid = 0; tid < team_.size(); tid++) {
        Span span = share(matrix.groups, tid, team_.size());
        size_t bytes = checked_mul(matrix.stride, static_cast<size_t>(span.last - span.first));
        matrix.slices.push_back({arenas_[static_cast<size_t>(tid)].take(bytes), span.first, span.last - span.first});
    }
    team_.run([&](int tid) {
        const Slice& slice = matrix.slices[static_cast<size_t>(tid)];
        uint8_t* out = const_cast<uint8_t*>(slice.data);
        for (int g = 0; g < slice.num_groups; g++, out += matrix.stride) pack_group(raw, slice.first_group + g, out);
    });
    return matrix;
}

GatedMatrix Packer::pack_gated(const RawMatrix& gate, const RawMatrix& up) {
    if (gate.type != up.type || gate.rows != up.rows || gate.columns != up.columns)
        throw std::invalid_argument("gate and up differ in type or shape");
    GatedMatrix matrix{gate.type, gate.rows, gate.columns, ceil_div(gate.rows, LANES), {}};
    const size_t stride = group_bytes(gate.type, gate.columns);
    const int units = ceil_div(matrix.groups, UNIT_GROUPS);
    auto groups_before = [&](int unit) { return std::min(unit * UNIT_GROUPS, matrix.groups); };
    for (int tid = 0; tid < team_.size(); tid++) {
        Span span = share(units, tid, team_.size());
        int groups = groups_before(span.last) - groups_before(span.first);
        uint8_t* data = arenas_[static_cast<size_t>(tid)].take(checked_mul(stride, static_cast<size_t>(groups) * 2));
        matrix.slices.push_back({data, span.first, span.last - span.first});
    }
    team_.run([&](int tid) {
        const Slice& slice = matrix.slices[static_cast<size_t>(tid)];
        uint8_t* out = const_cast<uint8_t*>(slice.data);
        for (int unit = slice.first_group; unit < slice.first_group + slice.num_groups; unit++)
            for (const RawMatrix* raw : {&gate, &up})
                for (int g = groups_before(unit); g < groups_before(unit + 1); g++, out += stride)
                    pack_group(*raw, g, out);
    });
    return matrix;
}

size_t Packer::used() const {
    size_t bytes = 0;
    for (const Arena& arena : arenas_) bytes += arena.used();
    return bytes;
}

}  // namespace localllm
