// Gated delta nets: columns over tokens of a row, against the same in doubles; tokens one by one are the same bits.
#include "checks.h"
#include "delta_kernels.h"

namespace localllm {

namespace {

using Doubles = std::vector<double>;

struct Head {
    int key_dim, columns, tokens;
    std::vector<float> state, queries, keys, values, kept, strength;

    Head(Random& random) {
        key_dim = random.whole(1, 40), columns = random.whole(1, 90), tokens = random.whole(1, 9);
        state = random.floats(key_dim * columns, 2.0f);
        queries = random.floats(tokens * key_dim, 0.5f), keys = random.floats(tokens * key_dim, 0.5f);
        values = random.floats(tokens * columns, 2.0f);
        for (int t = 0; t < tokens; t++) kept.push_back(random.uniform(0, 1)), strength.push_back(random.uniform(0, 1));
    }

    DeltaTask task(std::vector<float>& at, float* out, int first, int count) const {
        DeltaTask task;
        task.state = at.data(), task.ld = size_t(columns);
        task.key_dim = key_dim, task.columns = columns, task.num_tokens = count;
        task.queries = queries.data() + first * key_dim, task.keys = keys.data() + first * key_dim;
        task.kept = kept.data() + first, task.strength = strength.data() + first;
        task.values = values.data() + first * columns, task.values_ld = size_t(columns);
        task.out = out, task.out_ld = size_t(columns);
        return task;
    }
};

// The next state, then what was read of it token by token.
Doubles expected_of(const Head& head) {
    Doubles state(head.state.begin(), head.state.end()), out;
    for (int t = 0; t < head.tokens; t++)
        for (int c = 0; c < head.columns; c++) {
            double said = 0, read = 0;
            for (int r = 0; r < head.key_dim; r++)
                said += head.keys[t * head.key_dim + r] * (state[r * head.columns + c] *= head.kept[t]);
            double correction = (head.values[t * head.columns + c] - said) * head.strength[t];
            for (int r = 0; r < head.key_dim; r++) {
                state[r * head.columns + c] += head.keys[t * head.key_dim + r] * correction;
                read += head.queries[t * head.key_dim + r] * state[r * head.columns + c];
            }
            out.push_back(read);
        }
    state.insert(state.end(), out.begin(), out.end());
    return state;
}

void compare_columns(Trial& trial, const DeltaKernels& loops) {
    Head head(trial.random);
    trial.checks.about = std::to_string(head.key_dim) + " keys, " + std::to_string(head.columns) + " columns";
    std::vector<float> state = head.state, out(head.tokens * head.columns), again = head.state, one(out.size());
    loops.run(head.task(state, out.data(), 0, head.tokens));
    for (int t = 0; t < head.tokens; t++) loops.run(head.task(again, one.data() + t * head.columns, t, 1));
    trial.checks.same("a state after tokens one by one", state, again);
    trial.checks.same("what tokens read one by one", out, one);
    state.insert(state.end(), out.begin(), out.end());
    trial.checks.near("a state, and what is read of it", state, expected_of(head), 2e-4);
}

void compare_unit(Trial& trial, const DeltaKernels& loops) {
    const int width = trial.random.whole(1, 70);
    trial.checks.about = std::to_string(width) + " values";
    std::vector<float> x = trial.random.floats(width, 3.0f), out(width);
    loops.unit(x.data(), width, 1e-6f, 0.25f, out.data());
    double squares = 1e-6;
    for (float value : x) squares += std::pow(value, 2);
    Doubles expected;
    for (float value : x) expected.push_back(0.25 * value / std::sqrt(squares));
    trial.checks.near("a vector of length 1", out, expected, 1e-5);
}

void compare_gate(Trial& trial, const DeltaKernels& loops) {
    const int width = trial.random.whole(1, 70);
    std::vector<float> x = trial.random.floats(width, 3.0f), gate = trial.random.floats(width, 9.0f), out(width);
    loops.gate(x.data(), gate.data(), width, out.data());
    Doubles expected;
    for (int i = 0; i < width; i++) expected.push_back(x[i] / (1 + std::exp(-double(gate[i]))));
    trial.checks.near("a gated value", out, expected, 1e-5);
}

}  // namespace

void compare_delta_nets(Trial& trial) {
    const DeltaKernels& loops = find_delta_kernels(trial.set.name);
    compare_columns(trial, loops);
    compare_unit(trial, loops);
    compare_gate(trial, loops);
}

}  // namespace localllm
