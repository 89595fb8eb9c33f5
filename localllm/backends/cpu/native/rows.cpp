// Instructions that work token by token.
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "delta_kernels.h"
#include "record.h"
#include "row_wise.h"
#include "sizes.h"

namespace localllm {

namespace {

void check_activation(int activation) {
    if (activation < 0 || activation > static_cast<int>(Activation::swiglu_oai))
        throw std::invalid_argument("unknown activation");
}

struct Embed : RowWise {
    const Matrix* matrix;
    int of;  // tokens, positions, or types: which text of a pair
    float scale;
    int row_of(Program& program, int index) const {
        if (of == 2) return static_cast<size_t>(index) < program.types.size() ? program.types[static_cast<size_t>(index)] : 0;
        return (of ? program.step().positions : program.step().token_ids)[index];
    }
    void compute(Program& program, int index, int, float* out) override {
        int row = row_of(program, index);
        program.kernels.unpack_row(matrix->group(row / LANES), matrix->type, matrix->columns, row % LANES, scale, out);
    }
};

// Rows of a table that lies where its file does: eight lanes are made of the one that is wanted. Ids beyond the table
// have its first row.
struct Lookup : RowWise {
    RawMatrix table;
    float scale;
    Mapping groups;  // one for each member
    void compute(Program& program, int index, int tid, float* out) override {
        uint8_t* group = groups.data() + static_cast<size_t>(tid) * stride();
        const int id = program.step().token_ids[index];
        pack_row(table, id < table.rows ? id : 0, group);
        program.kernels.unpack_row(group, table.type, table.columns, 0, scale, out);
    }
    size_t stride() const { return round_up(group_bytes(table.type, table.columns), 64); }
};

struct RmsNorm : RowWise {
    const Buffer* x;
    const float* weight;
    int length;
    float eps;
    void compute(Program& program, int index, int tid, float* out) override {
        program.kernels.rms_norm(program.row(*x, index, tid), width, length, weight, eps, out);
    }
};

// Mean and variance of each run of `length` values; weight and bias are as wide as the row.
struct LayerNorm : RowWise {
    const Buffer* x;
    const float *weight, *bias;
    int length;
    float eps;
    void compute(Program& program, int index, int tid, float* out) override {
        const float* in = program.row(*x, index, tid);
        for (int first = 0; first < width; first += length)
            program.kernels.layer_norm(in + first, length, weight + first, bias ? bias + first : nullptr, eps, out + first);
    }
};

struct Activate : RowWise {
    const Buffer* x;
    Activation activation;
    void compute(Program& program, int index, int tid, float* out) override {
        program.kernels.activate(program.row(*x, index, tid), width, activation, out);
    }
};

struct GateMul : RowWise {
    const Buffer *gate, *up;
    Activation activation;
    int first;  // of up
    void compute(Program& program, int index, int tid, float* out) override {
        const float* values = program.row(*up, index, tid) + first;
        program.kernels.gate_mul(program.row(*gate, index, tid), values, width, activation, out);
    }
};

struct Add : RowWise {
    const Buffer *x, *y;
    float scale;
    void compute(Program& program, int index, int tid, float* out) override {
        program.kernels.add_scaled(program.row(*x, index, tid), program.row(*y, index, tid), scale, width, out);
    }
};

struct Scale : RowWise {
    const Buffer* x;
    float factor;
    void compute(Program& program, int index, int tid, float* out) override {
        program.kernels.scale(program.row(*x, index, tid), factor, width, out);
    }
};

// Rows times the sigmoid of one value each.
struct GateRows : RowWise {
    const Buffer *x, *gate;
    const DeltaKernels* loops;
    void compute(Program& program, int index, int tid, float* out) override {
        if (gate->width > 1) return loops->gate(program.row(*x, index, tid), program.row(*gate, index, tid), width, out);
        float factor = 1.0f / (1.0f + std::exp(-*program.row(*gate, index, tid)));
        program.kernels.scale(program.row(*x, index, tid), factor, width, out);
    }
};

// An RMS norm over runs, and times silu(gate): before it or after it.
struct GatedNorm : RowWise {
    const Buffer *x, *gate;
    const float* weight;
    GatedNormSpec spec;
    void compute(Program& program, int index, int tid, float* out) override {
        const float *in = program.row(*x, index, tid), *opening = program.row(*gate, index, tid);
        if (spec.gate_first || !weight) {
            program.kernels.gate_mul(opening, in, width, Activation::silu, out);
            in = out;
        }
        if (!weight) return;
        for (int first = 0; first < width; first += spec.run)
            program.kernels.rms_norm(in + first, spec.run, spec.run, weight + (spec.is_wide ? first : 0), spec.eps,
                                     out + first);
        if (!spec.gate_first) program.kernels.gate_mul(opening, out, width, Activation::silu, out);
    }
};

// Per head the values of x, then those of y.
struct Join : RowWise {
    const Buffer *x, *y;
    int heads;
    void compute(Program& program, int index, int tid, float* out) override {
        copy(program.row(*x, index, tid), x->width / heads, out);
        copy(program.row(*y, index, tid), y->width / heads, out + x->width / heads);
    }

private:
    void copy(const float* from, int part, float* to) const {
        for (int head = 0; head < heads; head++)
            std::memcpy(to + static_cast<size_t>(head) * static_cast<size_t>(width / heads),
                        from + static_cast<size_t>(head) * static_cast<size_t>(part),
                        static_cast<size_t>(part) * sizeof(float));
    }
};

struct Softcap : RowWise {
    const Buffer* x;
    float cap;
    void compute(Program& program, int index, int tid, float* out) override {
        program.kernels.softcap(program.row(*x, index, tid), cap, width, out);
    }
};

struct TakeRows : RowWise {
    const Buffer* x;  // of tokens; ours are the taken rows
    void compute(Program& program, int index, int tid, float* out) override {
        const float* token = program.row(*x, program.step().taken[index], tid);
        std::memcpy(out, token, static_cast<size_t>(width) * sizeof(float));
    }
};

struct Quantize : Instruction {
    const Buffer *x, *blocks;
    void run(Program& program, int tid) override {
        Span span = share(program.count(taken), tid, program.threads());
        if (program.is_single(taken, is_private)) span = {0, 1};
        for (int index = span.first; index < span.last; index++)
            program.quantize(program.row(*x, index, tid), x->width, *blocks, 0, index, tid);
    }
};

struct Rope : RowWise {
    const Buffer* x;
    const Angles* angles;
    int head_dim;
    void compute(Program& program, int index, int tid, float* out) override {
        const float* in = program.row(*x, index, tid);
        for (int first = 0; first < width; first += head_dim)
            program.kernels.rope(in + first, head_dim, 2 * angles->half(), angles->cos(index), angles->sin(index), 1.0f,
                                 out + first);
    }
};

struct Pool : Instruction {
    const Buffer* x;
    void run(Program& program, int tid) override { program.keep_hidden(*x, tid); }
};

}  // namespace

void record_embed(Program& program, int matrix, int of, float scale, int out) {
    if (of < 0 || of > 2) throw std::invalid_argument("there is no such index of rows");
    auto embed = std::make_unique<Embed>();
    embed->matrix = &program.matrix(matrix);
    embed->of = of;
    embed->scale = scale;
    int needed = of == 2 ? 2 : of ? program.limits.context_length : program.limits.vocab_size;
    if (embed->matrix->rows < needed) throw std::invalid_argument("the embedding has fewer rows than there are ids");
    int width = embed->matrix->columns;
    bind(program, std::move(embed), width, {out, NONE});
}

void record_lookup(Program& program, const RawMatrix& table, float scale, int out) {
    auto lookup = std::make_unique<Lookup>();
    lookup->table = table;
    lookup->scale = scale;
    lookup->groups = Mapping(checked_mul(lookup->stride(), static_cast<size_t>(program.threads())));
    bind(program, std::move(lookup), table.columns, {out, NONE});
}

void record_rms_norm(Program& program, int x, int weight, int length, float eps, Outputs out) {
    auto norm = std::make_unique<RmsNorm>();
    norm->x = &floats(program, x);
    norm->weight = weights(program, weight, length);
    norm->length = length;
    norm->eps = eps;
    if (length <= 0 || norm->x->width % length) throw std::invalid_argument("a norm does not divide its input");
    same_rows(*norm->x, program, out);
    int width = norm->x->width;
    bind(program, std::move(norm), width, out);
}

void record_layer_norm(Program& program, int x, int weight, int bias, float eps, int length, Outputs out) {
    auto norm = std::make_unique<LayerNorm>();
    norm->x = &floats(program, x);
    norm->weight = weights(program, weight, norm->x->width);
    norm->bias = weights(program, bias, norm->x->width);
    norm->eps = eps;
    norm->length = length ? length : norm->x->width;
    if (norm->length <= 0 || norm->x->width % norm->length) throw std::invalid_argument("a norm does not divide its input");
    same_rows(*norm->x, program, out);
    int width = norm->x->width;
    bind(program, std::move(norm), width, out);
}

void record_activate(Program& program, int x, int activation, Outputs out) {
    check_activation(activation);
    auto activate = std::make_unique<Activate>();
    activate->x = &floats(program, x);
    activate->activation = static_cast<Activation>(activation);
    same_rows(*activate->x, program, out);
    int width = activate->x->width;
    bind(program, std::move(activate), width, out);
}

void record_gate_mul(Program& program, int gate, int up, int activation, int first, Outputs out) {
    check_activation(activation);
    auto mul = std::make_unique<GateMul>();
    mul->gate = &floats(program, gate);
    mul->up = &floats(program, up);
    mul->activation = static_cast<Activation>(activation);
    mul->first = first;
    if (first < 0 || first > mul->up->width - mul->gate->width) throw std::invalid_argument("up is not as wide as its gate");
    same_rows(*mul->gate, program, out);
    same_rows(*mul->up, program, out);
    int width = mul->gate->width;
    bind(program, std::move(mul), width, out);
}

void record_add(Program& program, int x, int y, float scale, Outputs out) {
    auto add = std::make_unique<Add>();
    add->x = &floats(program, x);
    add->y = &floats(program, y);
    add->scale = scale;
    if (add->x->width != add->y->width) throw std::invalid_argument("the terms of a sum differ in width");
    same_rows(*add->x, program, out);
    same_rows(*add->y, program, out);
    int width = add->x->width;
    bind(program, std::move(add), width, out);
}

void record_scale(Program& program, int x, float factor, Outputs out) {
    auto scale = std::make_unique<Scale>();
    scale->x = &floats(program, x);
    scale->factor = factor;
    same_rows(*scale->x, program, out);
    int width = scale->x->width;
    bind(program, std::move(scale), width, out);
}

void record_gate_rows(Program& program, int x, int gate, Outputs out) {
    auto rows = std::make_unique<GateRows>();
    rows->x = &floats(program, x);
    rows->gate = &floats(program, gate);
    if (rows->gate->width != 1 && rows->gate->width != rows->x->width)
        throw std::invalid_argument("a row takes one gate, or one for each of its values");
    rows->loops = &find_delta_kernels(program.kernels.name);
    same_rows(*rows->x, program, out);
    same_rows(*rows->gate, program, out);
    int width = rows->x->width;
    bind(program, std::move(rows), width, out);
}

void record_gated_norm(Program& program, int x, int gate, int weight, const GatedNormSpec& spec, Outputs out) {
    auto norm = std::make_unique<GatedNorm>();
    norm->x = &floats(program, x);
    norm->gate = &floats(program, gate);
    norm->spec = spec;
    int width = norm->x->width;
    if (norm->gate->width != width) throw std::invalid_argument("a row and its gate differ in width");
    if (spec.run <= 0 || width % spec.run) throw std::invalid_argument("a norm does not divide its input");
    norm->weight = weights(program, weight, spec.is_wide ? width : spec.run);
    same_rows(*norm->x, program, out);
    same_rows(*norm->gate, program, out);
    bind(program, std::move(norm), width, out);
}

void record_join(Program& program, int x, int y, int heads, Outputs out) {
    auto join = std::make_unique<Join>();
    join->x = &floats(program, x);
    join->y = &floats(program, y);
    join->heads = heads;
    if (heads < 1 || join->x->width % heads || join->y->width % heads) throw std::invalid_argument("heads do not divide a row");
    same_rows(*join->x, program, out);
    same_rows(*join->y, program, out);
    int width = join->x->width + join->y->width;
    bind(program, std::move(join), width, out);
}

void record_softcap(Program& program, int x, float cap, Outputs out) {
    auto softcap = std::make_unique<Softcap>();
    softcap->x = &floats(program, x);
    softcap->cap = cap;
    same_rows(*softcap->x, program, out);
    int width = softcap->x->width;
    bind(program, std::move(softcap), width, out);
}

void record_quantize(Program& program, int x, int blocks) {
    auto quantize = std::make_unique<Quantize>();
    quantize->x = &floats(program, x);
    quantize->blocks = &program.buffer(blocks);
    const Buffer& out = *quantize->blocks;
    if (!out.quantized || out.width != quantize->x->width || out.taken != quantize->x->taken)
        throw std::invalid_argument("quantized rows differ in shape from their floats");
    quantize->taken = out.taken;
    quantize->is_private = out.is_private;
    program.add(std::move(quantize));
}

void record_take_rows(Program& program, int x, Outputs out) {
    auto take = std::make_unique<TakeRows>();
    take->x = &floats(program, x);
    if (take->x->taken || !program.buffer(out.values != NONE ? out.values : out.blocks).taken)
        throw std::invalid_argument("rows are taken from tokens");
    int width = take->x->width;
    bind(program, std::move(take), width, out);
}

void record_rope(Program& program, int x, int head_dim, int angles, Outputs out) {
    auto rope = std::make_unique<Rope>();
    rope->x = &floats(program, x);
    rope->angles = &program.angles(angles);
    rope->head_dim = head_dim;
    if (head_dim <= 0 || rope->x->width % head_dim || 2 * rope->angles->half() > head_dim || rope->x->taken)
        throw std::invalid_argument("heads cannot be turned so");
    same_rows(*rope->x, program, out);
    int width = rope->x->width;
    bind(program, std::move(rope), width, out);
}

void record_pool(Program& program, int x) {
    auto pool = std::make_unique<Pool>();
    pool->x = &floats(program, x);
    if (pool->x->taken) throw std::invalid_argument("pooling needs all tokens");
    program.use_hidden(pool->x->width);
    program.add(std::move(pool));
}

}  // namespace localllm
