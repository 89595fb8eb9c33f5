// Gated delta nets: a matrix per value head that each token corrects. Members share heads and their columns; tokens of a
// row follow each other.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "delta_kernels.h"
#include "record.h"
#include "sizes.h"

namespace localllm {

const DeltaKernels& find_delta_kernels(const char* name) {
#if defined(LOCALLLM_HAS_X86_SETS)
    if (!std::strcmp(name, "avx512")) return avx512_delta_kernels();
    if (!std::strcmp(name, "avx2")) return avx2_delta_kernels();
#elif defined(LOCALLLM_HAS_NEON_SETS)
    if (!std::strncmp(name, "neon", 4)) return neon_delta_kernels();
#endif
    (void)name;
    return portable_delta_kernels();
}

namespace {

constexpr int TOKENS = 32;  // whose queries and keys a member keeps at hand
constexpr int FEW = 4;      // that are worth no copy of a block of columns
constexpr float LENGTH_EPS = 1e-6f;

// What a row's tokens bring: rows of floats, so far apart.
struct Rows {
    const float* first;
    size_t ld;
    const float* at(int token) const { return first + static_cast<size_t>(token) * ld; }
};
struct Brought {
    Rows x, beta, decay;
};

// The columns that a member has: of all heads' blocks, one after another.
struct Mine {
    Span blocks;
    float* scratch;
};

struct DeltaNet : Recurrent {
    const Buffer *x, *beta, *decay, *out;
    const float *rate, *bias;  // (num_value_heads,)
    const DeltaKernels* loops;
    DeltaNetSpec spec;

    int width() const { return spec.num_value_heads * spec.value_dim; }
    int keys_width() const { return spec.num_key_heads * spec.key_dim; }
    int blocks_of_head() const { return ceil_div(spec.value_dim, DELTA_COLUMNS); }
    int num_blocks() const { return spec.num_value_heads * blocks_of_head(); }
    size_t scratch_floats() const {
        return static_cast<size_t>(TOKENS) * (2 * static_cast<size_t>(spec.key_dim) + 2) +
               static_cast<size_t>(spec.key_dim) * DELTA_COLUMNS;
    }

    void run(Program& program, int tid) override {
        const Step& step = program.step();
        if (step.keeps_inputs) keep(program, tid);
        Mine mine{share(num_blocks(), tid, program.threads()), program.scratch(tid)};
        for (int row = 0; row < step.num_rows; row++) {
            int first = step.row_starts[row], count = step.row_starts[row + 1] - first;
            Brought in{rows(program, *x, first, tid), rows(program, *beta, first, tid), rows(program, *decay, first, tid)};
            walk(program.state(row) + spec.state_offset, in, count, mine, program.row(*out, first, tid), out->ld);
        }
    }

    void replay(const Program&, float* slot, const float* inputs, int num_tokens) override {
        std::vector<float> scratch(scratch_floats()), unread(static_cast<size_t>(width()));
        size_t ld = static_cast<size_t>(kept->width);
        Brought in{{inputs, ld}, {inputs + x->width, ld}, {inputs + x->width + spec.num_value_heads, ld}};
        walk(slot + spec.state_offset, in, num_tokens, {{0, num_blocks()}, scratch.data()}, unread.data(), 0);
    }

private:
    static Rows rows(const Program& program, const Buffer& buffer, int first, int tid) {
        return {program.row(buffer, first, tid), buffer.ld};
    }

    void walk(float* state, const Brought& in, int count, const Mine& mine, float* to, size_t to_ld) const {
        int per_head = blocks_of_head();
        for (int block = mine.blocks.first; block < mine.blocks.last;) {
            int head = block / per_head, end = std::min(mine.blocks.last, (head + 1) * per_head);
            for (int token = 0; token < count; token += TOKENS) {
                int some = std::min(TOKENS, count - token);
                prepare(in, head, token, some, mine.scratch);
                for (int b = block; b < end; b++)
                    columns(state, in, head, (b - head * per_head) * DELTA_COLUMNS, token, some, mine.scratch,
                            to + static_cast<size_t>(token) * to_ld, to_ld);
            }
            block = end;
        }
    }

    // Queries, keys and factors of some tokens for one head.
    void prepare(const Brought& in, int head, int first, int count, float* scratch) const {
        int dim = spec.key_dim, shared = spec.num_value_heads / spec.num_key_heads;
        int at = (spec.tiled ? head % spec.num_key_heads : head / shared) * dim;
        float *queries = scratch, *keys = queries + TOKENS * dim;
        float *kept_of = keys + TOKENS * dim, *strength = kept_of + TOKENS;
        float scale = 1.0f / std::sqrt(static_cast<float>(dim));
        for (int t = 0; t < count; t++) {
            const float* from = in.x.at(first + t) + at;
            loops->unit(from, dim, LENGTH_EPS, scale, queries + t * dim);
            loops->unit(from + keys_width(), dim, LENGTH_EPS, 1.0f, keys + t * dim);
            float step = in.decay.at(first + t)[head] + bias[head];
            float softplus = step > 20.0f ? step : std::log1p(std::exp(step));
            kept_of[t] = std::exp(rate[head] * softplus);
            strength[t] = 1.0f / (1.0f + std::exp(-in.beta.at(first + t)[head]));
        }
    }

    void columns(float* state, const Brought& in, int head, int column, int first, int count, float* scratch, float* to,
                 size_t to_ld) const {
        int dim = spec.key_dim, at = head * spec.value_dim + column;
        DeltaTask task;
        task.state = state + static_cast<size_t>(head * dim) * static_cast<size_t>(spec.value_dim) + column;
        task.ld = static_cast<size_t>(spec.value_dim);
        task.key_dim = dim;
        task.columns = std::min(DELTA_COLUMNS, spec.value_dim - column);
        task.num_tokens = count;
        task.queries = scratch;
        task.keys = scratch + TOKENS * dim;
        task.kept = task.keys + TOKENS * dim;
        task.strength = task.kept + TOKENS;
        task.values = in.x.at(first) + 2 * keys_width() + at;
        task.values_ld = in.x.ld;
        task.out = to + at;
        task.out_ld = to_ld;
        count < FEW ? loops->run(task) : run_close(task, scratch + TOKENS * (2 * dim + 2));
    }

    // Rows of some columns are as far apart as a power of two, and share few places of a cache: many tokens work on a copy
    // whose rows lie close.
    void run_close(DeltaTask task, float* close) const {
        float* state = task.state;
        size_t ld = task.ld, bytes = static_cast<size_t>(task.columns) * sizeof(float);
        for (int row = 0; row < task.key_dim; row++)
            std::memcpy(close + row * DELTA_COLUMNS, state + static_cast<size_t>(row) * ld, bytes);
        task.state = close;
        task.ld = DELTA_COLUMNS;
        loops->run(task);
        for (int row = 0; row < task.key_dim; row++)
            std::memcpy(state + static_cast<size_t>(row) * ld, close + row * DELTA_COLUMNS, bytes);
    }

    void keep(Program& program, int tid) const {
        Span span = share(program.step().num_tokens, tid, program.threads());
        size_t heads = static_cast<size_t>(spec.num_value_heads) * sizeof(float);
        size_t wide = static_cast<size_t>(x->width) * sizeof(float);
        for (int token = span.first; token < span.last; token++) {
            float* to = program.row(*kept, token, tid);
            std::memcpy(to, program.row(*x, token, tid), wide);
            std::memcpy(to + x->width, program.row(*beta, token, tid), heads);
            std::memcpy(to + x->width + spec.num_value_heads, program.row(*decay, token, tid), heads);
        }
    }
};

bool is_float(const Buffer& buffer, int width) { return !buffer.quantized && !buffer.taken && buffer.width == width; }

void check(const Program& program, const DeltaNet& net) {
    const DeltaNetSpec& spec = net.spec;
    bool shares = spec.num_key_heads > 0 && spec.num_value_heads > 0 && spec.num_value_heads % spec.num_key_heads == 0;
    if (!shares || spec.num_value_heads > (1 << 16))
        throw std::invalid_argument("value heads are no multiple of key heads");
    if (spec.key_dim < 1 || spec.key_dim > (1 << 12) || spec.value_dim < 1 || spec.value_dim > (1 << 12))
        throw std::invalid_argument("a head of a gated delta net has too many dimensions, or none");
    size_t matrices = checked_mul(static_cast<size_t>(net.width()), static_cast<size_t>(spec.key_dim));
    if (checked_add(spec.state_offset, matrices) > program.limits.state_floats)
        throw std::invalid_argument("a layer's state does not fit in its slot");
    int channels = 2 * net.keys_width() + net.width();
    bool fits = is_float(*net.x, channels);
    for (const Buffer* buffer : {net.beta, net.decay}) fits = fits && is_float(*buffer, spec.num_value_heads);
    fits = fits && is_float(*net.out, net.width()) && !net.out->is_private;
    fits = fits && is_float(*net.kept, channels + 2 * spec.num_value_heads) && !net.kept->is_private;
    if (!fits) throw std::invalid_argument("the inputs of a gated delta net have the wrong shape");
}

}  // namespace

void record_delta_net(Program& program, int x, int beta, int decay, int rate, int bias, const DeltaNetSpec& spec, int kept,
                      int out) {
    auto net = std::make_unique<DeltaNet>();
    net->x = &program.buffer(x);
    net->beta = &program.buffer(beta);
    net->decay = &program.buffer(decay);
    net->kept = &program.buffer(kept);
    net->out = &program.buffer(out);
    net->spec = spec;
    net->loops = &find_delta_kernels(program.kernels.name);
    check(program, *net);
    for (int vector : {rate, bias})
        if (program.vector(vector).size() < static_cast<size_t>(spec.num_value_heads))
            throw std::invalid_argument("there are fewer rates than heads");
    net->rate = program.vector(rate).data();
    net->bias = program.vector(bias).data();
    program.need_scratch(net->scratch_floats());
    program.add_recurrent(std::move(net));
}

}  // namespace localllm
