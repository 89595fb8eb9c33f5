// Instructions that multiply by a matrix.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "record.h"
#include "sizes.h"

namespace localllm {

namespace {

constexpr int PAIR = 2;  // the smallest panel holds two groups

const Buffer& input_of(Program& program, int id, Type type, int columns) {
    const Buffer& x = program.buffer(id);
    if (x.width != columns) throw std::invalid_argument("a matrix does not fit its input");
    if (x.quantized != is_quantized(type)) throw std::invalid_argument("the input has the wrong form for its matrix");
    return x;
}

const float* bias_of(Program& program, int id, int rows) {
    if (id == NONE) return nullptr;
    if (program.vector(id).size() < static_cast<size_t>(rows)) throw std::invalid_argument("a bias is too short");
    return program.vector(id).data();
}

struct Linear : Instruction {
    const Buffer *x, *out, *residual;
    const Matrix* matrix;
    const float* bias;
    float scale;
    int site, turn;
    Shares* shares;
    void run(Program& program, int tid) override {
        LinearOut to{};
        to.y = program.row(*out, 0, tid);
        to.ld = out->ld;
        to.bias = bias;
        to.residual = residual ? program.row(*residual, 0, tid) : nullptr;
        to.residual_ld = residual ? residual->ld : 0;
        to.scale = scale;
        Inputs in = program.inputs(*x, tid);
        shares->take(tid, [&](const Slice& part) {
            program.kernels.linear(part, matrix->type, matrix->columns, in, to);
            if (site != NONE && !program.step().adapted.empty())
                expand(program, {site, turn, 0, to.y, to.ld, part.first_group, part.num_groups, false, residual ? scale : 1.0f,
                                 0, program.step().num_tokens, tid});
        });
    }
};

struct LinearHeads : Instruction {
    const Buffer *x, *out;
    std::vector<const Matrix*> matrices;
    std::vector<Mapping> apart;  // each member's copy of one head's blocks
    void run(Program& program, int tid) override {
        Inputs all = program.inputs(*x, tid);
        for (size_t head = 0; head < matrices.size(); head++) {
            const Matrix& matrix = *matrices[head];
            Inputs in = part(all, head, static_cast<size_t>(matrix.columns), tid);
            LinearOut to{};
            to.y = program.row(*out, 0, tid) + head * static_cast<size_t>(matrix.rows);
            to.ld = out->ld;
            program.kernels.linear(matrix.slices[static_cast<size_t>(tid)], matrix.type, matrix.columns, in, to);
        }
    }

private:
    // Products read tiles of blocks without gaps; floats may have any distance between rows.
    Inputs part(const Inputs& all, size_t head, size_t columns, int tid) const {
        Inputs in = all;
        if (in.values) in.values += head * columns;
        if (!in.blocks) return in;
        ActBlock* copy = apart[static_cast<size_t>(tid)].as<ActBlock>();
        size_t blocks = columns / BLOCK, tiles = static_cast<size_t>(ceil_div(in.count, TILE));
        for (size_t tile = 0; tile < tiles; tile++)
            std::memcpy(copy + tile * blocks, all.blocks + tile * all.ld + head * blocks, blocks * sizeof(ActBlock));
        in.blocks = copy;
        in.ld = blocks;
        return in;
    }
};

struct Gated : Instruction {
    const Buffer *x, *values, *blocks;
    const GatedMatrix* matrix;
    GatedOut out;
    Shares* shares;
    void run(Program& program, int tid) override {
        GatedOut to = out;
        if (values) to.values = program.row(*values, 0, tid);
        if (blocks) to.blocks = blocks->memory.as<ActBlock>();
        Inputs in = program.inputs(*x, tid);
        shares->take(tid, [&](const Slice& part) {
            program.kernels.gated(part, matrix->type, matrix->up_type, matrix->columns, matrix->groups, in, to);
        });
    }
};

struct Head : Instruction {
    const Buffer* x;
    const Matrix* matrix;
    float scale, softcap;
    Shares* shares;
    void run(Program& program, int tid) override {
        HeadOut out = program.head_out(tid);
        std::fill_n(out.best, program.count(true) * LANES, -INFINITY);
        std::fill_n(out.best_group, program.count(true) * LANES, 0);
        out.scale = scale;
        out.softcap = softcap;
        Inputs in = program.inputs(*x, tid);
        shares->take(tid, [&](const Slice& part) { program.kernels.head(part, matrix->type, matrix->columns, in, out); });
    }
};

void shared_output(const Buffer& out, int width, bool quantized, bool taken) {
    // members write their own rows of the matrix, so every one must see the same buffer
    if (out.is_private || out.width != width || out.quantized != quantized || out.taken != taken)
        throw std::invalid_argument("the output of a product has the wrong shape or place");
}

}  // namespace

void record_linear(Program& program, const LinearSpec& spec) {
    auto linear = std::make_unique<Linear>();
    linear->matrix = &program.matrix(spec.matrix);
    linear->shares = &program.deal(linear->matrix->slices, linear->matrix->stride, PAIR);
    linear->x = &input_of(program, spec.x, linear->matrix->type, linear->matrix->columns);
    linear->out = &program.buffer(spec.out);
    linear->bias = bias_of(program, spec.bias, linear->matrix->rows);
    linear->residual = spec.residual == NONE ? nullptr : &program.buffer(spec.residual);
    linear->scale = spec.scale;
    linear->sync = spec.sync;
    linear->taken = linear->x->taken;
    shared_output(*linear->out, linear->matrix->rows, false, linear->x->taken);
    if (linear->residual && (linear->residual->quantized || linear->residual->width != linear->matrix->rows ||
                             linear->residual->taken != linear->x->taken))
        throw std::invalid_argument("a residual differs in shape from what is added");
    linear->site = spec.site;
    if (spec.site != NONE) {
        if (program.adapters.site(spec.site).rows != linear->matrix->rows)
            throw std::invalid_argument("an adapted matrix has other rows than its product");
        linear->turn = record_shrink(program, *linear->x, {spec.site});
    }
    program.add(std::move(linear));
}

void record_linear_heads(Program& program, int x, const std::vector<int>& matrices, int out) {
    auto linear = std::make_unique<LinearHeads>();
    for (int id : matrices) linear->matrices.push_back(&program.matrix(id));
    if (matrices.empty()) throw std::invalid_argument("there are no heads");
    const Matrix& first = *linear->matrices[0];
    for (const Matrix* each : linear->matrices)
        if (each->type != first.type || each->rows != first.rows || each->columns != first.columns)
            throw std::invalid_argument("heads differ in type or shape");
    // whole groups and blocks: a head must not touch what belongs to the next
    if (first.rows % LANES || (is_quantized(first.type) && first.columns % BLOCK))
        throw std::invalid_argument("heads of this width have no native product");
    int heads = static_cast<int>(matrices.size());
    if (first.rows > INT32_MAX / heads || first.columns > INT32_MAX / heads) throw std::invalid_argument("too many heads");
    linear->x = &input_of(program, x, first.type, first.columns * heads);
    linear->out = &program.buffer(out);
    linear->taken = linear->x->taken;
    shared_output(*linear->out, first.rows * heads, false, linear->x->taken);
    if (linear->x->quantized) {
        size_t tiles = static_cast<size_t>(ceil_div(program.limits.max_tokens, TILE));
        size_t bytes = checked_mul(checked_mul(tiles, static_cast<size_t>(first.columns / BLOCK)), sizeof(ActBlock));
        for (int tid = 0; tid < program.threads(); tid++) linear->apart.emplace_back(bytes);
    }
    program.add(std::move(linear));
}

void record_gated(Program& program, int x, int matrix, int activation, int gate_bias, int up_bias, Outputs out,
                  GatedSites sites) {
    auto gated = std::make_unique<Gated>();
    gated->matrix = &program.gated_matrix(matrix);
    const GatedMatrix& weights = *gated->matrix;
    gated->x = &input_of(program, x, weights.type, weights.columns);
    gated->values = out.values == NONE ? nullptr : &program.buffer(out.values);
    gated->blocks = out.blocks == NONE ? nullptr : &program.buffer(out.blocks);
    gated->taken = gated->x->taken;
    if (activation < 0 || activation > static_cast<int>(Activation::swiglu_oai))
        throw std::invalid_argument("unknown activation");
    size_t group = group_bytes(weights.type, weights.columns) + group_bytes(weights.up_type, weights.columns);
    gated->shares = &program.deal(weights.slices, group * UNIT_GROUPS, 1);
    gated->out = {};
    gated->out.activation = static_cast<Activation>(activation);
    gated->out.gate_bias = bias_of(program, gate_bias, weights.rows);
    gated->out.up_bias = bias_of(program, up_bias, weights.rows);
    if (gated->values) {
        shared_output(*gated->values, weights.rows, false, gated->taken);
        gated->out.ld = gated->values->ld;
    }
    if (gated->blocks) {
        shared_output(*gated->blocks, weights.rows, true, gated->taken);
        gated->out.blocks_per_token = static_cast<int>(gated->blocks->ld);
    }
    if (sites.gate != NONE) {
        record_gated_apart(program, {gated->x, gated->values, gated->blocks, gated->matrix, gated->out.activation,
                                     gated->out.gate_bias, gated->out.up_bias, sites.gate, sites.up});
        gated->on = On::plain;
    }
    program.add(std::move(gated));
}

void record_head(Program& program, int x, int matrix, float scale, float softcap) {
    auto head = std::make_unique<Head>();
    head->matrix = &program.matrix(matrix);
    head->x = &input_of(program, x, head->matrix->type, head->matrix->columns);
    head->shares = &program.deal(head->matrix->slices, head->matrix->stride, PAIR);
    head->scale = scale;
    head->softcap = softcap;
    head->taken = true;
    if (head->matrix->rows != program.limits.vocab_size) throw std::invalid_argument("the head has not one row per token id");
    if (!head->x->taken) throw std::invalid_argument("the head works on taken rows");
    program.use_head(head->matrix->rows);
    program.add(std::move(head));
}

}  // namespace localllm
