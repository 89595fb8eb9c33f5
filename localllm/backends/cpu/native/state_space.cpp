// State spaces (Mamba-2): a matrix per head that decays and takes tokens in. Members share heads and their columns;
// tokens of a row follow each other. A head's matrix is (state_dim, head_dim) in the slot: columns are its values.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "record.h"
#include "sizes.h"
#include "state_space_kernels.h"

namespace localllm {

const StateSpaceKernels& find_state_space_kernels(const char* name) {
#if defined(LOCALLLM_HAS_X86_SETS)
    if (!std::strcmp(name, "avx512")) return avx512_state_space_kernels();
    if (!std::strcmp(name, "avx2")) return avx2_state_space_kernels();
#elif defined(LOCALLLM_HAS_NEON_SETS)
    if (!std::strncmp(name, "neon", 4)) return neon_state_space_kernels();
#endif
    (void)name;
    return portable_state_space_kernels();
}

namespace {

constexpr int TOKENS = 64;  // whose factors a member keeps at hand

// What a row's tokens bring: rows of floats, so far apart.
struct Rows {
    const float* first;
    size_t ld;
    const float* at(int token) const { return first + static_cast<size_t>(token) * ld; }
};

struct StateSpace : Recurrent {
    const Buffer *x, *step, *out;
    const float *rate, *bias, *skip;  // (num_heads,)
    const StateSpaceKernels* loops;
    StateSpaceSpec spec;

    int inner() const { return spec.num_heads * spec.head_dim; }
    int written_width() const { return spec.num_groups * spec.state_dim; }
    int kept_width() const { return inner() + written_width() + spec.num_heads; }
    int blocks_of_head() const { return ceil_div(spec.head_dim, STATE_SPACE_COLUMNS); }
    int num_blocks() const { return spec.num_heads * blocks_of_head(); }

    void run(Program& program, int tid) override {
        const Step& now = program.step();
        if (now.keeps_inputs) keep(program, tid);
        Span mine = share(num_blocks(), tid, program.threads());
        for (int row = 0; row < now.num_rows; row++) {
            int first = now.row_starts[row], count = now.row_starts[row + 1] - first;
            Rows in{program.row(*x, first, tid), x->ld}, steps{program.row(*step, first, tid), step->ld};
            walk(program.state(row) + spec.state_offset, in, in.first + inner() + written_width(), steps, count, mine,
                 program.row(*out, first, tid), out->ld);
        }
    }

    // What would be read of the matrix is not kept, and nobody wants it: what is written stands in for it.
    void replay(const Program&, float* slot, const float* inputs, int num_tokens) override {
        std::vector<float> unread(static_cast<size_t>(inner()));
        size_t ld = static_cast<size_t>(kept->width);
        Rows in{inputs, ld}, steps{inputs + inner() + written_width(), ld};
        walk(slot + spec.state_offset, in, inputs + inner(), steps, num_tokens, {0, num_blocks()}, unread.data(), 0);
    }

private:
    void walk(float* state, const Rows& in, const float* read, const Rows& steps, int count, Span mine, float* to,
              size_t to_ld) const {
        float sizes[TOKENS], left[TOKENS];
        int per_head = blocks_of_head();
        for (int block = mine.first; block < mine.last;) {
            int head = block / per_head, end = std::min(mine.last, (head + 1) * per_head);
            for (int token = 0; token < count; token += TOKENS) {
                int some = std::min(TOKENS, count - token);
                for (int t = 0; t < some; t++) {
                    sizes[t] = size_of(steps.at(token + t)[head], head);
                    left[t] = std::exp(rate[head] * sizes[t]);
                }
                size_t at = static_cast<size_t>(token);
                for (int b = block; b < end; b++)
                    columns(state, {in.at(token), in.ld}, read + at * in.ld, head, (b - head * per_head) * STATE_SPACE_COLUMNS,
                            some, sizes, left, to + at * to_ld, to_ld);
            }
            block = end;
        }
    }

    float size_of(float projected, int head) const {
        float raw = projected + bias[head];
        float size = raw > 20.0f ? raw : std::log1p(std::exp(raw));
        return std::min(std::max(size, spec.least), spec.most);
    }

    void columns(float* state, const Rows& in, const float* read, int head, int column, int count, const float* sizes,
                 const float* left, float* to, size_t to_ld) const {
        int group = head / (spec.num_heads / spec.num_groups), at = head * spec.head_dim + column;
        StateSpaceTask task;
        task.state = state + static_cast<size_t>(head) * static_cast<size_t>(spec.state_dim) * static_cast<size_t>(spec.head_dim) + column;
        task.ld = static_cast<size_t>(spec.head_dim);
        task.state_dim = spec.state_dim;
        task.columns = std::min(STATE_SPACE_COLUMNS, spec.head_dim - column);
        task.num_tokens = count;
        task.written = in.first + inner() + group * spec.state_dim;
        task.read = read + group * spec.state_dim;
        task.values = in.first + at;
        task.x_ld = in.ld;
        task.kept = left;
        task.steps = sizes;
        task.skip = skip[head];
        task.out = to + at;
        task.out_ld = to_ld;
        loops->run(task);
    }

    void keep(Program& program, int tid) const {
        Span span = share(program.step().num_tokens, tid, program.threads());
        int wide = inner() + written_width();
        for (int token = span.first; token < span.last; token++) {
            float* to = program.row(*kept, token, tid);
            std::memcpy(to, program.row(*x, token, tid), static_cast<size_t>(wide) * sizeof(float));
            std::memcpy(to + wide, program.row(*step, token, tid), static_cast<size_t>(spec.num_heads) * sizeof(float));
        }
    }
};

bool is_float(const Buffer& buffer, int width) { return !buffer.quantized && !buffer.taken && buffer.width == width; }

const float* per_head(Program& program, int id, int heads) {
    const std::vector<float>& vector = program.vector(id);
    if (vector.size() < static_cast<size_t>(heads)) throw std::invalid_argument("a state space has fewer numbers than heads");
    return vector.data();
}

void check(const Program& program, const StateSpace& space) {
    const StateSpaceSpec& spec = space.spec;
    if (spec.num_groups < 1 || spec.num_heads < 1 || spec.num_heads % spec.num_groups || spec.num_heads > (1 << 16))
        throw std::invalid_argument("heads of a state space are no multiple of its groups");
    if (spec.head_dim < 1 || spec.head_dim > (1 << 12) || spec.state_dim < 1 || spec.state_dim > (1 << 12))
        throw std::invalid_argument("a head of a state space has too many dimensions, or none");
    size_t matrices = checked_mul(static_cast<size_t>(space.inner()), static_cast<size_t>(spec.state_dim));
    if (checked_add(spec.state_offset, matrices) > program.limits.state_floats)
        throw std::invalid_argument("a layer's state does not fit in its slot");
    if (!is_float(*space.x, space.inner() + 2 * space.written_width()) || !is_float(*space.step, spec.num_heads) ||
        !is_float(*space.out, space.inner()) || space.out->is_private || !is_float(*space.kept, space.kept_width()) ||
        space.kept->is_private)
        throw std::invalid_argument("the inputs of a state space have the wrong shape");
}

}  // namespace

void record_state_space(Program& program, int x, int step, int rate, int bias, int skip, const StateSpaceSpec& spec, int kept,
                        int out) {
    auto space = std::make_unique<StateSpace>();
    space->x = &program.buffer(x);
    space->step = &program.buffer(step);
    space->kept = &program.buffer(kept);
    space->out = &program.buffer(out);
    space->spec = spec;
    space->loops = &find_state_space_kernels(program.kernels.name);
    check(program, *space);
    space->rate = per_head(program, rate, spec.num_heads);
    space->bias = per_head(program, bias, spec.num_heads);
    space->skip = per_head(program, skip, spec.num_heads);
    program.add_recurrent(std::move(space));
}

}  // namespace localllm
