#include "matrix.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>
#include <string>

#include "sizes.h"

namespace localllm {

namespace {

BlockShape known_shape(Type type) {
    BlockShape shape = shape_of(type);
    if (!shape.values)
        throw std::invalid_argument("block type " + std::to_string(static_cast<int>(type)) + " has no native kernel");
    return shape;
}

// Fields of a block in the file's order: units that stay whole while rows are interleaved.
struct Fields {
    int unit_bytes, count;
};
std::vector<Fields> fields_of(Type type) {
    switch (type) {
        case Type::Q4_0:
        case Type::IQ4_NL: return {{2, 1}, {4, 4}};
        case Type::Q4_1: return {{2, 2}, {4, 4}};
        case Type::Q5_0: return {{2, 1}, {4, 5}};
        case Type::Q5_1: return {{2, 2}, {4, 5}};
        case Type::Q8_0: return {{2, 1}, {4, 8}};
        case Type::Q2_K: return {{1, 16}, {4, 16}, {2, 2}};
        case Type::Q3_K: return {{4, 24}, {1, 12}, {2, 1}};
        case Type::Q4_K: return {{2, 2}, {1, 12}, {4, 32}};
        case Type::Q5_K: return {{2, 2}, {1, 12}, {4, 40}};
        case Type::Q6_K: return {{4, 48}, {1, 16}, {2, 1}};
        case Type::IQ4_XS: return {{2, 1}, {1, 6}, {4, 32}};
        case Type::MXFP4: return {{1, 1}, {4, 4}};
        case Type::IQ1_S: return {{2, 1}, {4, 8}, {2, 8}};
        case Type::IQ1_M: return {{4, 8}, {1, 16}, {2, 4}};
        case Type::IQ2_XXS: return {{2, 1}, {4, 16}};
        case Type::IQ2_XS: return {{2, 1}, {4, 16}, {1, 8}};
        case Type::IQ2_S: return {{2, 1}, {4, 16}, {1, 16}};
        case Type::IQ3_XXS: return {{2, 1}, {4, 24}};
        case Type::IQ3_S: return {{2, 1}, {4, 16}, {1, 8}, {4, 8}, {1, 4}};
        case Type::TQ1_0: return {{4, 13}, {2, 1}};
        case Type::TQ2_0: return {{4, 16}, {2, 1}};
        case Type::Q1_0: return {{2, 1}, {4, 4}};
        default: return {};
    }
}

template <int UNIT>
void spread(const uint8_t* from, int count, uint8_t* to) {
    for (int i = 0; i < count; i++) std::memcpy(to + i * UNIT * LANES, from + i * UNIT, UNIT);
}

void pack_blocks(const RawMatrix& raw, int first_row, uint8_t* out) {
    const BlockShape shape = shape_of(raw.type);
    const std::vector<Fields> fields = fields_of(raw.type);
    const int rows = std::min(LANES, raw.rows - first_row), num_blocks = raw.columns / shape.values;
    if (rows < LANES) std::memset(out, 0, group_bytes(raw.type, raw.columns));
    for (int lane = 0; lane < rows; lane++) {
        const uint8_t* from = raw.data + static_cast<size_t>(first_row + lane) * raw.row_bytes;
        uint8_t* to = out;
        for (int b = 0; b < num_blocks; b++)
            for (const Fields& field : fields) {
                uint8_t* first = to + lane * field.unit_bytes;
                if (field.unit_bytes == 4) spread<4>(from, field.count, first);
                if (field.unit_bytes == 2) spread<2>(from, field.count, first);
                if (field.unit_bytes == 1) spread<1>(from, field.count, first);
                from += field.unit_bytes * field.count;
                to += field.unit_bytes * field.count * LANES;
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

void pack_row(const RawMatrix& raw, int row, uint8_t* group) {
    RawMatrix one = raw;
    one.data += static_cast<size_t>(row) * raw.row_bytes;
    one.rows = 1;
    pack_group(one, 0, group);
}

RawMatrix checked_raw(const uint8_t* data, size_t bytes, int type, long rows, long columns) {
    if (rows <= 0 || columns <= 0 || rows > INT_MAX - BLOCK || columns > INT_MAX - BLOCK)
        throw std::invalid_argument("a matrix of " + std::to_string(rows) + " x " + std::to_string(columns) +
                                    " cannot be used");
    RawMatrix raw{data, static_cast<Type>(type), static_cast<int>(rows), static_cast<int>(columns), 0};
    const BlockShape shape = known_shape(raw.type);
    raw.row_bytes = checked_mul(static_cast<size_t>(columns / shape.values), static_cast<size_t>(shape.bytes));
    if (columns % shape.values)
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
    if (is_quantized(gate.type) != is_quantized(up.type) || gate.rows != up.rows || gate.columns != up.columns)
        throw std::invalid_argument("gate and up differ in the form of their inputs or in shape");
    GatedMatrix matrix{gate.type, up.type, gate.rows, gate.columns, ceil_div(gate.rows, LANES), {}};
    const size_t strides = checked_add(group_bytes(gate.type, gate.columns), group_bytes(up.type, up.columns));
    const int units = ceil_div(matrix.groups, UNIT_GROUPS);
    auto groups_before = [&](int unit) { return std::min(unit * UNIT_GROUPS, matrix.groups); };
    for (int tid = 0; tid < team_.size(); tid++) {
        Span span = share(units, tid, team_.size());
        int groups = groups_before(span.last) - groups_before(span.first);
        uint8_t* data = arenas_[static_cast<size_t>(tid)].take(checked_mul(strides, static_cast<size_t>(groups)));
        matrix.slices.push_back({data, span.first, span.last - span.first});
    }
    team_.run([&](int tid) {
        const Slice& slice = matrix.slices[static_cast<size_t>(tid)];
        uint8_t* out = const_cast<uint8_t*>(slice.data);
        for (int unit = slice.first_group; unit < slice.first_group + slice.num_groups; unit++)
            for (const RawMatrix* raw : {&gate, &up})
                for (int g = groups_before(unit); g < groups_before(unit + 1); g++) {
                    pack_group(*raw, g, out);
                    out += group_bytes(raw->type, raw->columns);
                }
    });
    return matrix;
}

size_t Packer::used() const {
    size_t bytes = 0;
    for (const Arena& arena : arenas_) bytes += arena.used();
    return bytes;
}

}  // namespace localllm
