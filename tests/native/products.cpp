// Matrix products: each number against a sum in doubles, and the same bits for a row in any company.
#include "checks.h"

namespace localllm {

namespace {

Type one_of(Random& random, const std::vector<Type>& types) {
    return types[random.whole(0, static_cast<int>(types.size()) - 1)];
}

// Packed groups and what their rows mean to a set.
struct Weights {
    Type type;
    int columns, groups;
    std::vector<uint8_t> packed;

    size_t stride() const { return group_bytes(type, columns); }
    const uint8_t* group(int index) const { return packed.data() + stride() * index; }
    Slice slice(int first, int count, int first_group) const { return {group(first), first_group + first, count}; }
    std::vector<float> row(const Kernels& set, int index, float factor = 1.0f) const {
        std::vector<float> out(columns);
        set.unpack_row(group(index / LANES), type, columns, index % LANES, factor, out.data());
        return out;
    }
};

int draw_columns(Random& random, Type type) {
    int values = shape_of(type).values;
    if (values == 1) return random.whole(1, 75);
    int more = random.chance(10) ? 2048 : 0;  // longer than the strips by which rows are read
    return more + values * random.whole(1, values == BLOCK ? 9 : 3);
}

Weights draw_weights(Random& random, Type type, int columns, int groups) {
    return {type, columns, groups, draw_groups(random, type, columns, groups)};
}

std::string words(Type type, int columns, int groups, int count) {
    return "type " + std::to_string(static_cast<int>(type)) + ", " + std::to_string(columns) + " columns, " +
           std::to_string(groups) + " groups, " + std::to_string(count) + " tokens";
}

std::vector<float> plain_linear(const Kernels& set, const Slice& slice, const Weights& w, const Tokens& tokens,
                                int rows) {
    std::vector<float> y(tokens.count * rows);
    LinearOut out{y.data(), size_t(rows), nullptr, nullptr, 0, 1.0f};
    set.linear(slice, w.type, w.columns, tokens.inputs(), out);
    return y;
}

// Every number against a sum in doubles of the same weights and the same activations.
void compare_with_doubles(Trial& trial, const Weights& w, const Tokens& tokens, const std::vector<float>& y) {
    const int rows = w.groups * LANES;
    for (int row = 0; row < rows; row++) {
        std::vector<float> weights = w.row(trial.set, row);
        for (int t = 0; t < tokens.count; t++) {
            double sum = 0, most = 0, magnitude = 0;
            for (int c = 0; c < w.columns; c++) {
                double x = tokens.value(trial.set, w.type, t, c), weight = weights[c];
                sum += weight * x;
                most = std::max(most, std::fabs(weight));
                magnitude += std::fabs(x);
            }
            trial.checks.near("linear", y[t * rows + row], sum,
                              2e-7 * (w.columns / 16 + 8) * most * magnitude);
        }
    }
}

void compare_unpacked(Trial& trial, const Weights& w) {
    for (int row = 0; row < w.groups * LANES; row++) {
        trial.checks.equal("unpack_row", w.row(trial.set, row), w.row(trial.portable, row));
        trial.checks.equal("unpack_row", w.row(trial.set, row, 1.5f), w.row(trial.portable, row, 1.5f));
    }
}

// Alone or with others, a token has the same bits; so has a group.
void compare_company(Trial& trial, const Weights& w, const Tokens& tokens, const std::vector<float>& y) {
    const int rows = w.groups * LANES;
    for (int t = 0; t < tokens.count; t++) {
        std::vector<float> alone = plain_linear(trial.set, w.slice(0, w.groups, 0), w, tokens.only(trial.set, t), rows);
        trial.checks.same("linear of one token", alone.data(), y.data() + t * rows, alone.size() * sizeof(float));
    }
    std::vector<float> piecewise(y.size());
    LinearOut out{piecewise.data(), size_t(rows), nullptr, nullptr, 0, 1.0f};
    for (int first = 0, count; first < w.groups; first += count) {
        count = trial.random.whole(1, w.groups - first);
        trial.set.linear(w.slice(first, count, 0), w.type, w.columns, tokens.inputs(), out);
    }
    trial.checks.same("linear of parts", piecewise, y);
}

void compare_epilogue(Trial& trial, const Weights& w, const Tokens& tokens, const std::vector<float>& y) {
    const int rows = w.groups * LANES, skipped = trial.random.whole(0, 2), ld = rows + (skipped + 1) * LANES;
    std::vector<float> bias = trial.random.floats(ld, 1.0f);
    std::vector<float> residual = trial.random.floats(ld * tokens.count, 1.0f), out(residual.size());
    float scale = trial.random.uniform(0.5f, 2.0f);
    LinearOut to{out.data(), size_t(ld), bias.data(), residual.data(), size_t(ld), scale};
    trial.set.linear(w.slice(0, w.groups, skipped), w.type, w.columns, tokens.inputs(), to);
    for (int t = 0; t < tokens.count; t++)
        for (int row = 0; row < rows; row++) {
            size_t at = t * ld + skipped * LANES + row;
            float sum = y[t * rows + row] + bias[skipped * LANES + row];
            float expected = residual[at] + sum * scale;
            trial.checks.same("linear with bias and residual", &out[at], &expected, sizeof expected);
        }
}

void compare_linear(Trial& trial, Type type) {
    Weights w = draw_weights(trial.random, type, draw_columns(trial.random, type), trial.random.whole(1, 5));
    Tokens tokens(trial.set, draw_values(trial.random, trial.random.whole(1, 9), w.columns), w.columns);
    trial.checks.about = words(type, w.columns, w.groups, tokens.count);
    std::vector<float> y = plain_linear(trial.set, w.slice(0, w.groups, 0), w, tokens, w.groups * LANES);
    compare_unpacked(trial, w);
    compare_with_doubles(trial, w, tokens, y);
    compare_company(trial, w, tokens, y);
    compare_epilogue(trial, w, tokens, y);
}

// More tokens than one pass over the weights takes.
void compare_passes(Trial& trial, Type type) {
    Weights w = draw_weights(trial.random, type, 10240, 1);
    Tokens tokens(trial.set, draw_values(trial.random, 37, w.columns), w.columns);
    trial.checks.about = words(type, w.columns, 1, tokens.count);
    compare_company(trial, w, tokens, plain_linear(trial.set, w.slice(0, 1, 0), w, tokens, LANES));
}

// Gate and up as units of up to four groups each; the same bits as two products and what joins them.
struct Gating {
    Weights gate, up;
    std::vector<uint8_t> units;

    Gating(Weights g, Weights u) : gate(std::move(g)), up(std::move(u)) {
        for (int first = 0; first < gate.groups; first += UNIT_GROUPS) {
            append(gate, first);
            append(up, first);
        }
    }
    void append(const Weights& w, int first) {
        int last = std::min(first + UNIT_GROUPS, w.groups);
        units.insert(units.end(), w.group(first), w.group(last));
    }
    Slice slice() const { return {units.data(), 0, (gate.groups + UNIT_GROUPS - 1) / UNIT_GROUPS}; }
};

std::vector<float> biased(const Kernels& set, const Weights& w, const Tokens& tokens, const float* bias) {
    const int rows = w.groups * LANES;
    std::vector<float> y(tokens.count * rows);
    LinearOut out{y.data(), size_t(rows), bias, nullptr, 0, 1.0f};
    set.linear(w.slice(0, w.groups, 0), w.type, w.columns, tokens.inputs(), out);
    return y;
}

void compare_gated(Trial& trial, Type type, Type up_type) {
    Random& random = trial.random;
    const int columns = is_quantized(type) ? 256 : draw_columns(random, type), groups = random.whole(1, 9);
    Gating w(draw_weights(random, type, columns, groups), draw_weights(random, up_type, columns, groups));
    Tokens tokens(trial.set, draw_values(random, random.whole(1, 9), columns), columns);
    trial.checks.about = words(type, columns, groups, tokens.count);
    trial.checks.about += ", up of type " + std::to_string(static_cast<int>(up_type));

    const int rows = groups * LANES;
    std::vector<float> bias = random.floats(rows, 0.5f), up_bias = random.floats(rows, 0.5f);
    std::vector<float> values(tokens.count * rows), expected(values.size());
    const bool quantized = groups % UNIT_GROUPS == 0;
    Tokens hidden(trial.set, values, rows);
    std::vector<ActBlock> blocks(hidden.blocks.size());
    Activation activation = static_cast<Activation>(random.whole(0, static_cast<int>(Activation::swiglu_oai)));
    GatedOut out{activation, bias.data(), up_bias.data(), values.data(), size_t(rows), nullptr, rows / BLOCK};
    if (quantized) out.blocks = blocks.data();
    trial.set.gated(w.slice(), type, up_type, columns, groups, tokens.inputs(), out);

    std::vector<float> gates = biased(trial.set, w.gate, tokens, bias.data());
    std::vector<float> ups = biased(trial.set, w.up, tokens, up_bias.data());
    trial.set.gate_mul(gates.data(), ups.data(), tokens.count * rows, activation, expected.data());
    trial.checks.same("gated", values, expected);
    if (!quantized) return;
    hidden = Tokens(trial.set, expected, rows);
    trial.checks.same("gated, quantized", blocks.data(), hidden.blocks.data(), blocks.size() * sizeof(ActBlock));
}

// The largest logit of each lane and the first group that has it; a lane of no row keeps what was there.
void compare_best(Trial& trial, const std::vector<float>& logits, const HeadOut& out, int groups, int first_group,
                  int t) {
    for (int lane = 0; lane < LANES; lane++) {
        float best = -INFINITY;
        int32_t best_group = 0;
        for (int g = first_group; g < first_group + groups; g++) {
            float logit = logits[t * out.ld + g * LANES + lane];
            if (g * LANES + lane >= out.num_rows || !(logit > best)) continue;
            best = logit;
            best_group = g;
        }
        trial.checks.same("best logit", &best, out.best + t * LANES + lane, sizeof best);
        trial.checks.same("best group", &best_group, out.best_group + t * LANES + lane, sizeof best_group);
    }
}

void compare_head(Trial& trial, Type type) {
    Random& random = trial.random;
    Weights w = draw_weights(random, type, draw_columns(random, type), random.whole(1, 7));
    Tokens tokens(trial.set, draw_values(random, random.whole(1, 9), w.columns), w.columns);
    trial.checks.about = words(type, w.columns, w.groups, tokens.count);
    const int first = random.whole(0, 2), ld = (first + w.groups) * LANES;
    const size_t lanes = tokens.count * LANES;
    std::vector<float> logits(tokens.count * ld), best(lanes, -INFINITY);
    std::vector<int32_t> best_group(lanes, 0);
    bool stored[16];
    for (bool& wanted : stored) wanted = true;
    float scale = random.chance(50) ? 1.0f : 0.5f, softcap = random.chance(50) ? 0.0f : 20.0f;
    int num_rows = ld - random.whole(0, LANES - 1);
    HeadOut out{scale, softcap, num_rows, logits.data(), size_t(ld), stored, best.data(), best_group.data()};
    // parts in whatever order, as members take them
    const int cut = random.whole(0, w.groups);
    trial.set.head(w.slice(cut, w.groups - cut, first), type, w.columns, tokens.inputs(), out);
    trial.set.head(w.slice(0, cut, first), type, w.columns, tokens.inputs(), out);

    std::vector<float> y = plain_linear(trial.set, w.slice(0, w.groups, 0), w, tokens, w.groups * LANES);
    for (int t = 0; t < tokens.count; t++) {
        for (int row = 0; row < w.groups * LANES; row++) {
            double cap = out.softcap, expected = y[t * w.groups * LANES + row] * out.scale;
            if (cap != 0) expected = std::tanh(expected / cap) * cap;
            double logit = logits[t * ld + first * LANES + row];
            trial.checks.near("logit", logit, expected, 1e-6 * (std::fabs(expected) + cap));
        }
        compare_best(trial, logits, out, w.groups, first, t);
    }

    std::vector<float> some(logits.size(), -1.0f), expected = logits;
    for (int t = 0; t < tokens.count; t++) {
        stored[t] = random.chance(50);
        for (int i = 0; i < ld; i++)
            if (!stored[t] || i < first * LANES) expected[t * ld + i] = -1.0f;
    }
    out.logits = some.data();
    trial.set.head(w.slice(0, w.groups, first), type, w.columns, tokens.inputs(), out);
    trial.checks.same("logits that somebody wants", some, expected);
}

}  // namespace

void compare_products(Trial& trial) {
    std::vector<Type> types = all_types();
    for (Type type : types) {
        compare_linear(trial, type);
        compare_head(trial, type);
        Type other = one_of(trial.random, types);
        compare_gated(trial, type, is_quantized(other) == is_quantized(type) ? other : type);
        compare_gated(trial, type, type);
    }
    compare_passes(trial, one_of(trial.random, types));
}

}  // namespace localllm
