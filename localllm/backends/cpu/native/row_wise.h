// What instructions that work token by token share: rows in, rows out, and the checks of both.
#pragma once
#include <cstring>
#include <stdexcept>

#include "record.h"
#include "sizes.h"

namespace localllm {

// One row at a time, into floats, blocks, or both; private outputs are computed by every member when there is one row.
struct RowWise : Instruction {
    Buffer* values = nullptr;
    Buffer* blocks = nullptr;
    int width = 0;

    // Fills `out` with the row's `width` floats.
    virtual void compute(Program& program, int index, int tid, float* out) = 0;

    void run(Program& program, int tid) override {
        int count = program.count(taken);
        if (program.is_single(taken, is_private)) return one(program, 0, tid);
        Span span = share(count, tid, program.threads());
        for (int index = span.first; index < span.last; index++) one(program, index, tid);
    }

private:
    void one(Program& program, int index, int tid) {
        float* out = values ? program.row(*values, index, tid) : program.scratch(tid);
        compute(program, index, tid, out);
        if (blocks) program.quantize(out, width, *blocks, 0, index, tid);
    }
};

inline void bind(Program& program, std::unique_ptr<RowWise> instruction, int width, Outputs out) {
    RowWise& row = *instruction;
    row.width = width;
    row.values = out.values == NONE ? nullptr : &program.buffer(out.values);
    row.blocks = out.blocks == NONE ? nullptr : &program.buffer(out.blocks);
    const Buffer* first = row.values ? row.values : row.blocks;
    if (!first) throw std::invalid_argument("a row must go somewhere");
    for (const Buffer* buffer : {row.values, row.blocks})
        if (buffer && (buffer->width != width || buffer->taken != first->taken || buffer->is_private != first->is_private))
            throw std::invalid_argument("the outputs of a row differ in shape or place");
    if (row.values && row.values->quantized) throw std::invalid_argument("floats cannot go to a quantized buffer");
    if (row.blocks && !row.blocks->quantized) throw std::invalid_argument("blocks must go to a quantized buffer");
    row.taken = first->taken;
    row.is_private = first->is_private;
    program.need_scratch(round_up(static_cast<size_t>(width), 16));
    program.add(std::move(instruction));
}

inline const Buffer& floats(Program& program, int id) {
    const Buffer& buffer = program.buffer(id);
    if (buffer.quantized) throw std::invalid_argument("floats are needed here");
    return buffer;
}

inline void same_rows(const Buffer& x, Program& program, Outputs out) {
    const Buffer& y = program.buffer(out.values != NONE ? out.values : out.blocks);
    if (x.taken != y.taken) throw std::invalid_argument("rows of tokens and taken rows are mixed");
}

inline const float* weights(Program& program, int id, int width) {
    if (id == NONE) return nullptr;
    const std::vector<float>& vector = program.vector(id);
    if (vector.size() < static_cast<size_t>(width)) throw std::invalid_argument("a vector is too short");
    return vector.data();
}

}  // namespace localllm
