// Instructions that multiply by a matrix.
#include <stdexcept>

#include "record.h"

namespace localllm {

namespace {

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
    void run(Program& program, int tid) override {
        LinearOut to{};
        to.y = program.row(*out, 0, tid);
        to.ld = out->ld;
        to.bias = bias;
        to.residual = residual ? program.row(*residual, 0, tid) : nullptr;
        to.residual_ld = residual ? residual->ld : 0;
        to.scale = scale;
        program.kernels.linear(matrix->slices[static_cast<size_t>(tid)], matrix->type, matrix->columns,
                               program.inputs(*x, tid), to);
    }
};

struct Gated : Instruction {
    const Buffer *x, *values, *blocks;
    const GatedMatrix* matrix;
    GatedOut out;
    void run(Program& program, int tid) override {
        GatedOut to = out;
        if (values) to.values = program.row(*values, 0, tid);
        if (blocks) to.blocks = blocks->memory.as<ActBlock>();
        program.kernels.gated(matrix->slices[static_cast<size_t>(tid)], matrix->type, matrix->up_type,
                              matrix->columns, matrix->groups, program.inputs(*x, tid), to);
    }
};

struct Head : Instruction {
    const Buffer* x;
    const Matrix* matrix;
    float scale, softcap;
    void run(Program& program, int tid) override {
        HeadOut out = program.head_out(tid);
        out.scale = scale;
        out.softcap = softcap;
        program.kernels.head(matrix->slices[static_cast<size_t>(tid)], matrix->type, matrix->columns,
                             program.inputs(*x, tid), out);
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
    program.add(std::move(linear));
}

void record_gated(Program& program, int x, int matrix, int activation, int gate_bias, int up_bias, Outputs out) {
    auto gated = std::make_unique<Gated>();
    gated->matrix = &program.gated_matrix(matrix);
    const GatedMatrix& weights = *gated->matrix;
    gated->x = &input_of(program, x, weights.type, weights.columns);
    gated->values = out.values == NONE ? nullptr : &program.buffer(out.values);
    gated->blocks = out.blocks == NONE ? nullptr : &program.buffer(out.blocks);
    gated->taken = gated->x->taken;
    if (activation < 0 || activation > static_cast<int>(Activation::swiglu_oai))
        throw std::invalid_argument("unknown activation");
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
    program.add(std::move(gated));
}

void record_head(Program& program, int x, int matrix, float scale, float softcap) {
    auto head = std::make_unique<Head>();
    head->matrix = &program.matrix(matrix);
    head->x = &input_of(program, x, head->matrix->type, head->matrix->columns);
    head->scale = scale;
    head->softcap = softcap;
    head->taken = true;
    if (head->matrix->rows != program.limits.vocab_size) throw std::invalid_argument("the head has not one row per token id");
    if (!head->x->taken) throw std::invalid_argument("the head works on taken rows");
    program.use_head(head->matrix->rows);
    program.add(std::move(head));
}

}  // namespace localllm
