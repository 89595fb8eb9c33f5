// State spaces: columns over tokens of a row, against the same in doubles; tokens one by one are the same bits.
#include "checks.h"
#include "state_space_kernels.h"

namespace localllm {

namespace {

struct Space {
    int state_dim, columns, tokens;
    std::vector<float> state, x, kept, steps;  // x: per token what is written, what is read, and the columns' values
    float skip;

    size_t x_ld() const { return 2 * static_cast<size_t>(state_dim) + static_cast<size_t>(columns); }

    StateSpaceTask task(std::vector<float>& at, std::vector<float>& out, int first, int count) const {
        const float* from = x.data() + static_cast<size_t>(first) * x_ld();
        size_t wide = static_cast<size_t>(columns), dim = static_cast<size_t>(state_dim);
        return {at.data(),
                wide,
                state_dim,
                columns,
                count,
                from,
                from + dim,
                from + 2 * dim,
                x_ld(),
                kept.data() + first,
                steps.data() + first,
                skip,
                out.data() + static_cast<size_t>(first) * wide,
                wide};
    }
};

Space draw_space(Random& random) {
    Space space;
    space.state_dim = random.whole(1, 70);
    space.columns = random.whole(1, 100);
    space.tokens = random.whole(1, 9);
    space.state = random.floats(static_cast<size_t>(space.state_dim) * static_cast<size_t>(space.columns), 1.0f);
    space.x = random.floats(static_cast<size_t>(space.tokens) * space.x_ld(), 1.0f);
    space.steps = random.floats(static_cast<size_t>(space.tokens), 1.0f);
    space.kept.resize(static_cast<size_t>(space.tokens));
    for (float& each : space.kept) each = random.uniform(0.0f, 1.0f);
    space.skip = random.uniform(-1.0f, 1.0f);
    return space;
}

void compare_one(Trial& trial) {
    Space space = draw_space(trial.random);
    const StateSpaceKernels& loops = find_state_space_kernels(trial.set.name);
    size_t dim = static_cast<size_t>(space.state_dim), wide = static_cast<size_t>(space.columns);
    size_t count = static_cast<size_t>(space.tokens);
    std::vector<float> state = space.state, out(count * wide), alone = space.state, apart(count * wide);
    loops.run(space.task(state, out, 0, space.tokens));
    for (int t = 0; t < space.tokens; t++) loops.run(space.task(alone, apart, t, 1));
    trial.checks.about = std::to_string(dim) + " by " + std::to_string(wide) + ", " + std::to_string(count) + " tokens";
    trial.checks.same("a state after tokens one by one", state, alone);
    trial.checks.same("what is read of tokens one by one", out, apart);
    std::vector<double> exact(space.state.begin(), space.state.end());
    for (size_t t = 0; t < count; t++) {
        const float *written = space.x.data() + t * space.x_ld(), *read = written + dim, *values = read + dim;
        for (size_t c = 0; c < wide; c++) {
            double sum = static_cast<double>(space.skip) * values[c];
            for (size_t r = 0; r < dim; r++) {
                double& at = exact[r * wide + c];
                at = at * space.kept[t] + static_cast<double>(written[r]) * values[c] * space.steps[t];
                sum += read[r] * at;
            }
            trial.checks.near("what is read of a state", out[t * wide + c], sum, 3e-4);
        }
    }
    for (size_t i = 0; i < exact.size(); i++) trial.checks.near("a state", state[i], exact[i], 1e-5);
}

}  // namespace

void compare_state_spaces(Trial& trial) { compare_one(trial); }

}  // namespace localllm
