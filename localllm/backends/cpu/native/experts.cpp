// Experts: choose per token, gather tokens per expert, multiply, and add up in the order of expert index.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "record.h"
#include "sizes.h"

namespace localllm {

namespace {

// Routing rows are (num_used) experts as floats, which hold them exactly, then (num_used) weights.
struct Route : Instruction {
    const Buffer *logits, *out;
    const float *bias, *scales;
    RouteSpec spec;

    void run(Program& program, int tid) override {
        Span span = share(program.step().num_tokens, tid, program.threads());
        std::vector<float> scores(static_cast<size_t>(spec.num_experts));
        for (int token = span.first; token < span.last; token++) {
            const float* row = program.row(*logits, token, tid);
            std::copy(row, row + spec.num_experts, scores.begin());
            choose(scores, program.row(*out, token, tid));
        }
    }

private:
    static void soften(float* values, int count) {
        float most = *std::max_element(values, values + count), sum = 0.0f;
        for (int i = 0; i < count; i++) sum += values[i] = std::exp(values[i] - most);
        for (int i = 0; i < count; i++) values[i] /= sum;
    }
    void choose(std::vector<float>& scores, float* row) const {
        float* weights = row + spec.num_used;
        if (spec.scoring == 0) soften(scores.data(), spec.num_experts);
        if (spec.scoring == 1)
            for (float& score : scores) score = 1.0f / (1.0f + std::exp(-score));
        std::vector<bool> used = left_out(scores);
        for (int place = 0; place < spec.num_used; place++) {
            int best = -1;
            for (int e = 0; e < spec.num_experts; e++)
                if (!used[static_cast<size_t>(e)] && (best < 0 || ranked(scores, e) > ranked(scores, best))) best = e;
            used[static_cast<size_t>(best)] = true;
            row[place] = static_cast<float>(best);
            weights[place] = scores[static_cast<size_t>(best)];
        }
        finish(weights);
        for (int i = 0; scales && i < spec.num_used; i++) weights[i] *= scales[static_cast<int>(row[i])];
    }
    // Experts of groups that are not among the best; all are in where there is one group.
    std::vector<bool> left_out(const std::vector<float>& scores) const {
        std::vector<bool> out(scores.size(), spec.num_groups > 1);
        if (spec.num_groups < 2) return out;
        int size = spec.num_experts / spec.num_groups;
        std::vector<float> worth(static_cast<size_t>(spec.num_groups));
        for (int g = 0; g < spec.num_groups; g++) worth[static_cast<size_t>(g)] = worth_of(scores, g * size, size);
        std::vector<bool> taken(worth.size(), false);
        for (int i = 0; i < spec.num_used_groups; i++) {
            size_t best = worth.size();
            for (size_t g = 0; g < worth.size(); g++)
                if (!taken[g] && (best == worth.size() || worth[g] > worth[best])) best = g;
            taken[best] = true;
            std::fill_n(out.begin() + static_cast<long>(best) * size, size, false);
        }
        return out;
    }
    float worth_of(const std::vector<float>& scores, int first, int size) const {
        std::vector<bool> counted(static_cast<size_t>(size), false);
        float sum = 0.0f;
        for (int i = 0; i < spec.group_best; i++) {
            int best = -1;
            for (int e = 0; e < size; e++)
                if (!counted[static_cast<size_t>(e)] &&
                    (best < 0 || ranked(scores, first + e) > ranked(scores, first + best)))
                    best = e;
            counted[static_cast<size_t>(best)] = true;
            sum += ranked(scores, first + best);
        }
        return sum;
    }
    float ranked(const std::vector<float>& scores, int e) const {
        return scores[static_cast<size_t>(e)] + (bias ? bias[e] : 0.0f);
    }
    void finish(float* weights) const {
        if (spec.scoring == 2) {
            soften(weights, spec.num_used);
        } else if (spec.normalize) {
            float sum = 0.0f;
            for (int i = 0; i < spec.num_used; i++) sum += weights[i];
            for (int i = 0; i < spec.num_used; i++) weights[i] /= sum;
        }
        for (int i = 0; i < spec.num_used; i++) weights[i] *= spec.scale;
    }
};

// Rows of chosen (token, expert) pairs, expert after expert; each expert starts a tile of its own.
struct Assignments {
    int num_experts, num_used;
    std::vector<int> start, count;  // per expert
    std::vector<int> slot;          // per (token, place)
    Mapping gathered, raw, hidden, outputs;  // raw: before an activation that has no gate
    size_t input_ld, raw_ld, hidden_ld, output_ld;
    bool quantized_in, quantized_hidden;

    Inputs part(const Mapping& memory, size_t ld, bool quantized, int expert) const {
        Inputs in;
        in.count = count[static_cast<size_t>(expert)];
        in.ld = ld;
        size_t first = static_cast<size_t>(start[static_cast<size_t>(expert)]);
        if (quantized)
            in.blocks = memory.as<ActBlock>() + first / TILE * ld;
        else
            in.values = memory.as<float>() + first * ld;
        return in;
    }
};

struct Plan : Instruction {
    const Buffer* routing;
    std::shared_ptr<Assignments> pairs;
    void run(Program& program, int tid) override {
        if (tid) return;
        Assignments& all = *pairs;
        int tokens = program.step().num_tokens;
        std::fill(all.count.begin(), all.count.end(), 0);
        each(program, tokens, [&](size_t, size_t expert) { all.count[expert]++; });
        int next = 0;
        for (size_t e = 0; e < all.count.size(); e++) {
            all.start[e] = next;
            next += ceil_div(all.count[e], TILE) * TILE;
        }
        std::vector<int> filled = all.start;
        each(program, tokens, [&](size_t place, size_t expert) { all.slot[place] = filled[expert]++; });
    }

private:
    template <class F>
    void each(Program& program, int tokens, F f) const {
        for (int token = 0; token < tokens; token++)
            for (int i = 0; i < pairs->num_used; i++)
                f(static_cast<size_t>(token * pairs->num_used + i),
                  std::min(static_cast<size_t>(program.row(*routing, token, 0)[i]), pairs->count.size() - 1));
    }
};

struct Gather : Instruction {
    const Buffer* x;
    std::shared_ptr<Assignments> pairs;
    void run(Program& program, int tid) override {
        Span span = share(program.step().num_tokens, tid, program.threads());
        Inputs in = program.inputs(*x, tid);
        for (int token = span.first; token < span.last; token++)
            for (int i = 0; i < pairs->num_used; i++)
                copy(in, token, pairs->slot[static_cast<size_t>(token * pairs->num_used + i)]);
    }

private:
    void copy(const Inputs& in, int token, int slot) const {
        size_t ld = pairs->input_ld;
        if (!pairs->quantized_in) {
            std::memcpy(pairs->gathered.as<float>() + static_cast<size_t>(slot) * ld,
                        in.values + static_cast<size_t>(token) * in.ld, static_cast<size_t>(x->width) * sizeof(float));
            return;
        }
        const ActBlock* from = in.blocks + static_cast<size_t>(token / TILE) * in.ld;
        ActBlock* to = pairs->gathered.as<ActBlock>() + static_cast<size_t>(slot / TILE) * ld;
        for (size_t b = 0; b < ld; b++) {
            to[b].scale[slot % TILE] = from[b].scale[token % TILE];
            to[b].sum[slot % TILE] = from[b].sum[token % TILE];
            for (int half = 0; half < BLOCK / HALF; half++) {
                to[b].ratio[half][slot % TILE] = from[b].ratio[half][token % TILE];
                to[b].sums[half][slot % TILE] = from[b].sums[half][token % TILE];
            }
            std::memcpy(to[b].q[slot % TILE], from[b].q[token % TILE], BLOCK);
        }
    }
};

// (experts, out), each expert's padded with zeros to what the kernels load; empty: none.
struct Biases {
    std::vector<float> values;
    size_t stride = 0;
    const float* of(int expert) const {
        return values.empty() ? nullptr : values.data() + static_cast<size_t>(expert) * stride;
    }
};

struct ExpertsUp : Instruction {
    std::vector<const GatedMatrix*> matrices;
    Biases gate_biases, up_biases;
    Activation activation;
    std::shared_ptr<Assignments> pairs;
    void run(Program& program, int tid) override {
        for (int e = 0; e < pairs->num_experts; e++) {
            if (!pairs->count[static_cast<size_t>(e)]) continue;
            const GatedMatrix& w = *matrices[static_cast<size_t>(e)];
            Inputs to = pairs->part(pairs->hidden, pairs->hidden_ld, pairs->quantized_hidden, e);
            GatedOut out{};
            out.activation = activation;
            out.gate_bias = gate_biases.of(e);
            out.up_bias = up_biases.of(e);
            out.values = const_cast<float*>(to.values);
            out.ld = to.ld;
            out.blocks = const_cast<ActBlock*>(to.blocks);
            out.blocks_per_token = static_cast<int>(pairs->hidden_ld);
            program.kernels.gated(w.slices[static_cast<size_t>(tid)], w.type, w.up_type, w.columns, w.groups,
                                  pairs->part(pairs->gathered, pairs->input_ld, pairs->quantized_in, e), out);
        }
    }
};

// One product per expert, from a room of rows to another.
struct ExpertsLinear : Instruction {
    std::vector<const Matrix*> matrices;
    Biases biases;
    std::shared_ptr<Assignments> pairs;
    void run(Program& program, int tid) override {
        for (int e = 0; e < pairs->num_experts; e++) {
            if (!pairs->count[static_cast<size_t>(e)]) continue;
            const Matrix& w = *matrices[static_cast<size_t>(e)];
            Inputs to = output(e);
            LinearOut out{};
            out.y = const_cast<float*>(to.values);
            out.bias = biases.of(e);
            out.ld = to.ld;
            program.kernels.linear(w.slices[static_cast<size_t>(tid)], w.type, w.columns, input(e), out);
        }
    }

protected:
    virtual Inputs input(int expert) const = 0;
    virtual Inputs output(int expert) const = 0;
};

struct ExpertsDown : ExpertsLinear {
    Inputs input(int expert) const override {
        return pairs->part(pairs->hidden, pairs->hidden_ld, pairs->quantized_hidden, expert);
    }
    Inputs output(int expert) const override { return pairs->part(pairs->outputs, pairs->output_ld, false, expert); }
};

struct ExpertsPlainUp : ExpertsLinear {
    Inputs input(int expert) const override {
        return pairs->part(pairs->gathered, pairs->input_ld, pairs->quantized_in, expert);
    }
    Inputs output(int expert) const override { return pairs->part(pairs->raw, pairs->raw_ld, false, expert); }
};

// What an up product made, activated; in blocks where the down product takes those.
struct ExpertsActivate : Instruction {
    int width;
    Activation activation;
    std::shared_ptr<Assignments> pairs;
    void run(Program& program, int tid) override {
        Span span = share(program.step().num_tokens * pairs->num_used, tid, program.threads());
        for (int i = span.first; i < span.last; i++) one(program, pairs->slot[static_cast<size_t>(i)]);
    }

private:
    void one(Program& program, int slot) const {
        size_t at = static_cast<size_t>(slot), ld = pairs->hidden_ld;
        float* raw = pairs->raw.as<float>() + at * pairs->raw_ld;
        float* to = pairs->quantized_hidden ? raw : pairs->hidden.as<float>() + at * ld;
        program.kernels.activate(raw, width, activation, to);
        if (pairs->quantized_hidden)
            program.kernels.quantize(to, width, pairs->hidden.as<ActBlock>(), static_cast<int>(ld), 0, slot);
    }
};

struct SumUp : Instruction {
    const Buffer *routing, *out;
    std::shared_ptr<Assignments> pairs;
    void run(Program& program, int tid) override {
        Span span = share(program.step().num_tokens, tid, program.threads());
        std::vector<int> order(static_cast<size_t>(pairs->num_used));
        for (int token = span.first; token < span.last; token++) {
            const float* chosen = program.row(*routing, token, tid);
            for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int>(i);
            std::sort(order.begin(), order.end(), [&](int a, int b) { return chosen[a] < chosen[b]; });
            float* sum = program.row(*out, token, tid);
            std::memset(sum, 0, out->ld * sizeof(float));
            for (int place : order) {
                int slot = pairs->slot[static_cast<size_t>(token * pairs->num_used + place)];
                const float* y = pairs->outputs.as<float>() + static_cast<size_t>(slot) * pairs->output_ld;
                program.kernels.add_scaled(sum, y, chosen[pairs->num_used + place], out->width, sum);
            }
        }
    }
};

Biases biases_of(Program& program, int id, size_t num_experts, int rows) {
    if (id == NONE) return {};
    const std::vector<float>& vector = program.vector(id);
    size_t width = static_cast<size_t>(rows);
    if (vector.size() < checked_mul(num_experts, width))
        throw std::invalid_argument("the biases of experts are too short");
    Biases biases;
    biases.stride = round_up(width, BLOCK);
    biases.values.resize(checked_mul(num_experts, biases.stride));
    for (size_t e = 0; e < num_experts; e++)
        std::memcpy(biases.values.data() + e * biases.stride, vector.data() + e * width, width * sizeof(float));
    return biases;
}

Mapping room(size_t slots, size_t ld, bool quantized) {
    return quantized ? Mapping(checked_mul(checked_mul(slots / TILE, ld), sizeof(ActBlock)))
                     : Mapping(checked_mul(checked_mul(slots, ld), sizeof(float)));
}

size_t stride_of(int width, bool quantized) {
    return quantized ? static_cast<size_t>(width) / BLOCK : round_up(static_cast<size_t>(width), 16);
}

std::shared_ptr<Assignments> room_for(const Program& program, const Buffer& x, int num_experts, int num_used,
                                      Type up, int width, const Matrix& down) {
    auto pairs = std::make_shared<Assignments>();
    pairs->num_experts = num_experts;
    pairs->num_used = num_used;
    pairs->start.resize(static_cast<size_t>(num_experts));
    pairs->count.resize(static_cast<size_t>(num_experts));
    size_t chosen = checked_mul(static_cast<size_t>(program.limits.max_tokens), static_cast<size_t>(num_used));
    pairs->slot.resize(chosen);
    size_t slots = round_up(chosen + static_cast<size_t>(num_experts) * (TILE - 1), TILE);
    pairs->quantized_in = is_quantized(up);
    pairs->quantized_hidden = is_quantized(down.type);
    pairs->input_ld = stride_of(x.width, pairs->quantized_in);
    pairs->hidden_ld = stride_of(width, pairs->quantized_hidden);
    pairs->output_ld = stride_of(down.rows, false);
    pairs->gathered = room(slots, pairs->input_ld, pairs->quantized_in);
    pairs->hidden = room(slots, pairs->hidden_ld, pairs->quantized_hidden);
    pairs->outputs = room(slots, pairs->output_ld, false);
    return pairs;
}

}  // namespace

void record_route(Program& program, int logits, int bias, const RouteSpec& spec, int out) {
    auto route = std::make_unique<Route>();
    route->logits = &program.buffer(logits);
    route->out = &program.buffer(out);
    route->spec = spec;
    route->bias = route->scales = nullptr;
    if (spec.num_used < 1 || spec.num_used > spec.num_experts || spec.num_experts > (1 << 16))
        throw std::invalid_argument("a token cannot use so many experts");
    if (spec.num_groups < 1 || spec.num_experts % spec.num_groups || spec.num_used_groups < 1 ||
        spec.num_used_groups > spec.num_groups || spec.group_best < 1 ||
        spec.group_best > spec.num_experts / spec.num_groups ||
        spec.num_used > spec.num_experts / spec.num_groups * spec.num_used_groups)
        throw std::invalid_argument("experts cannot be chosen by such groups");
    if (route->logits->quantized || route->logits->width != spec.num_experts || route->logits->taken ||
        route->out->quantized || route->out->taken || route->out->is_private || route->out->width != 2 * spec.num_used)
        throw std::invalid_argument("the rows of a router have the wrong shape");
    if (bias != NONE) {
        if (program.vector(bias).size() < static_cast<size_t>(spec.num_experts))
            throw std::invalid_argument("a router's bias is too short");
        route->bias = program.vector(bias).data();
    }
    if (spec.scales != NONE) {
        if (program.vector(spec.scales).size() < static_cast<size_t>(spec.num_experts))
            throw std::invalid_argument("there are fewer scales than experts");
        route->scales = program.vector(spec.scales).data();
    }
    program.add(std::move(route));
}

namespace {

void check_experts(const Buffer& x, const Buffer& routes, const Buffer& out, const ExpertsSpec& spec, Type up) {
    if (x.taken || out.taken || out.quantized || out.is_private || routes.quantized || routes.is_private || routes.taken ||
        routes.width % 2 || x.quantized != is_quantized(up))
        throw std::invalid_argument("the rows of experts have the wrong shape or place");
    if (spec.activation < 0 || spec.activation > static_cast<int>(Activation::swiglu_oai))
        throw std::invalid_argument("unknown activation");
}

// Matrices of one type, (rows, columns) each.
std::vector<const Matrix*> alike(Program& program, const std::vector<int>& ids, int rows, int columns) {
    std::vector<const Matrix*> matrices;
    for (int id : ids) matrices.push_back(&program.matrix(id));
    for (const Matrix* w : matrices)
        if (w->type != matrices[0]->type || w->rows != rows || w->columns != columns)
            throw std::invalid_argument("experts differ in type or shape");
    return matrices;
}

void begin_experts(Program& program, const Buffer& x, const Buffer& routes, const std::shared_ptr<Assignments>& pairs) {
    auto plan = std::make_unique<Plan>();
    plan->routing = &routes;
    plan->pairs = pairs;
    auto gather = std::make_unique<Gather>();
    gather->x = &x;
    gather->pairs = pairs;
    program.add(std::move(plan));
    program.add(std::move(gather));
}

void end_experts(Program& program, std::unique_ptr<ExpertsDown> down, const Buffer& routes, const Buffer& out) {
    auto sum = std::make_unique<SumUp>();
    sum->routing = &routes;
    sum->out = &out;
    sum->pairs = down->pairs;
    program.add(std::move(down));
    program.add(std::move(sum));
}

}  // namespace

void record_experts(Program& program, int x, int routing, const ExpertsSpec& spec, int out) {
    const Buffer &input = program.buffer(x), &routes = program.buffer(routing), &output = program.buffer(out);
    if (spec.up.empty() || spec.up.size() != spec.down.size()) throw std::invalid_argument("experts lack a matrix");
    auto up = std::make_unique<ExpertsUp>();
    auto down = std::make_unique<ExpertsDown>();
    for (int id : spec.up) up->matrices.push_back(&program.gated_matrix(id));
    const GatedMatrix& first = *up->matrices[0];
    for (const GatedMatrix* w : up->matrices)
        if (w->type != first.type || w->up_type != first.up_type || w->rows != first.rows || w->columns != input.width)
            throw std::invalid_argument("experts differ in type or shape");
    down->matrices = alike(program, spec.down, output.width, first.rows);
    check_experts(input, routes, output, spec, first.type);
    auto pairs = room_for(program, input, static_cast<int>(spec.up.size()), routes.width / 2, first.type, first.rows,
                          *down->matrices[0]);
    up->activation = static_cast<Activation>(spec.activation);
    up->gate_biases = biases_of(program, spec.gate_bias, spec.up.size(), first.rows);
    up->up_biases = biases_of(program, spec.up_bias, spec.up.size(), first.rows);
    down->biases = biases_of(program, spec.down_bias, spec.down.size(), output.width);
    up->pairs = down->pairs = pairs;
    begin_experts(program, input, routes, pairs);
    program.add(std::move(up));
    end_experts(program, std::move(down), routes, output);
}

void record_plain_experts(Program& program, int x, int routing, const ExpertsSpec& spec, int out) {
    const Buffer &input = program.buffer(x), &routes = program.buffer(routing), &output = program.buffer(out);
    if (spec.up.empty() || spec.up.size() != spec.down.size()) throw std::invalid_argument("experts lack a matrix");
    auto up = std::make_unique<ExpertsPlainUp>();
    auto down = std::make_unique<ExpertsDown>();
    auto activate = std::make_unique<ExpertsActivate>();
    const Matrix& first = program.matrix(spec.up[0]);
    up->matrices = alike(program, spec.up, first.rows, input.width);
    down->matrices = alike(program, spec.down, output.width, first.rows);
    check_experts(input, routes, output, spec, first.type);
    auto pairs = room_for(program, input, static_cast<int>(spec.up.size()), routes.width / 2, first.type, first.rows,
                          *down->matrices[0]);
    size_t slots = round_up(pairs->slot.size() + spec.up.size() * (TILE - 1), TILE);
    pairs->raw_ld = stride_of(first.rows, false);
    pairs->raw = room(slots, pairs->raw_ld, false);
    up->biases = biases_of(program, spec.up_bias, spec.up.size(), first.rows);
    down->biases = biases_of(program, spec.down_bias, spec.down.size(), output.width);
    activate->width = first.rows;
    activate->activation = static_cast<Activation>(spec.activation);
    up->pairs = down->pairs = activate->pairs = pairs;
    begin_experts(program, input, routes, pairs);
    program.add(std::move(up));
    program.add(std::move(activate));
    end_experts(program, std::move(down), routes, output);
}

}  // namespace localllm
