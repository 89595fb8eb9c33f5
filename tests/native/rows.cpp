// Work on one row: quantizing, norms, activations, sums and rotation, against the same in doubles.
#include "checks.h"

namespace localllm {

namespace {

using Doubles = std::vector<double>;

Doubles doubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }

void compare_quantize(Trial& trial) {
    const Kernels& set = trial.set;
    const int columns = trial.random.whole(1, 5) * BLOCK, count = trial.random.whole(1, 6);
    std::vector<float> x = draw_values(trial.random, count, columns);
    for (int i = 0; i < HALF; i++) x[i] *= 1e-36f;  // too small for a scale
    Tokens tokens(set, x, columns), twin(trial.portable, x, columns);
    trial.checks.about = std::to_string(columns) + " columns, token of " + std::to_string(count);
    for (int token = 0; token < count; token++)
        for (int c = 0; c < columns; c++) {
            const ActBlock &block = tokens.block(token, c), &other = twin.block(token, c);
            int t = token % TILE, at = c % BLOCK;
            double scale = half_scale(set, block, at / HALF, t);
            trial.checks.is("a quantized value is the portable set's", block.q[t][at] == other.q[t][at]);
            trial.checks.near("a quantized value", scale * block.q[t][at], x[token * columns + c],
                              0.501 * scale + 1e-30);
            if (at) continue;
            trial.checks.same("scale of a block", &block.scale[t], &other.scale[t], sizeof(float));
            trial.checks.same("sum of a block", &block.sum[t], &other.sum[t], sizeof(float));
            if (std::strcmp(set.name, "avx512"))
                for (int half = 0; half < 2; half++) {
                    trial.checks.is("ratio of a half", block.ratio[half][t] == other.ratio[half][t]);
                    trial.checks.is("sum of a half", block.sums[half][t] == other.sums[half][t]);
                }
        }
}

// No number is undefined behaviour; what becomes of them does not matter, but the rows beside them are untouched.
void survive_infinities(Trial& trial) {
    std::vector<float> x = draw_values(trial.random, 3, BLOCK);
    Tokens before(trial.set, x, BLOCK);
    x[BLOCK + 3] = NAN;
    x[BLOCK + 17] = -INFINITY;
    x[2 * BLOCK + 9] = INFINITY;
    Tokens after(trial.set, x, BLOCK);
    trial.checks.same("a row beside one of NaNs", before.blocks[0].q[0], after.blocks[0].q[0], BLOCK);
    trial.checks.same("its scale", before.blocks[0].scale, after.blocks[0].scale, sizeof(float));
}

void compare_norms(Trial& trial) {
    Random& random = trial.random;
    const int length = random.whole(1, 70), runs = random.whole(1, 4), width = length * runs;
    trial.checks.about = std::to_string(runs) + " runs of " + std::to_string(length);
    std::vector<float> x = random.floats(width, 3.0f), weight = random.floats(width, 1.0f);
    std::vector<float> bias = random.floats(width, 1.0f), out(x.size());
    const float eps = 1e-5f;
    Doubles expected(x.size());
    for (int i = 0; i < width; i++) {
        double squares = 0;
        for (int j = i / length * length; j < i / length * length + length; j++) squares += std::pow(x[j], 2);
        expected[i] = x[i] / std::sqrt(squares / length + eps) * weight[i % length];
    }
    trial.set.rms_norm(x.data(), width, length, weight.data(), eps, out.data());
    trial.checks.near("rms_norm", out, expected, 2e-6);

    double mean = 0, variance = 0;
    for (float value : x) mean += double(value) / width;
    for (float value : x) variance += std::pow(value - mean, 2) / width;
    for (bool with_bias : {false, true}) {
        for (size_t i = 0; i < x.size(); i++) {
            expected[i] = (x[i] - mean) / std::sqrt(variance + eps) * weight[i];
            if (with_bias) expected[i] += bias[i];
        }
        trial.set.layer_norm(x.data(), width, weight.data(), with_bias ? bias.data() : nullptr, eps, out.data());
        // a single value is its own mean: what is left of it is rounding, and nothing divides it
        trial.checks.near("layer_norm", out, expected, width == 1 ? 1e-3 : 1e-5);
    }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double activated(double x, Activation activation) {
    switch (activation) {
        case Activation::silu: return x * sigmoid(x);
        case Activation::gelu: return x * (1 + std::erf(x * std::sqrt(0.5))) / 2;
        case Activation::gelu_tanh: return x * (1 + std::tanh(0.7978845608 * (x + 0.044715 * x * x * x))) / 2;
        case Activation::relu: return x > 0 ? x : 0;
        case Activation::relu2: return x > 0 ? x * x : 0;
        default: return x;
    }
}

double gated(double gate, double up, Activation activation) {
    if (activation != Activation::swiglu_oai) return activated(gate, activation) * up;
    gate = std::min(gate, 7.0);
    return gate * sigmoid(1.702 * gate) * (std::max(-7.0, std::min(up, 7.0)) + 1);
}

void compare_activations(Trial& trial) {
    const int width = trial.random.whole(1, 9) * LANES;
    std::vector<float> x = trial.random.floats(width, 12.0f), up = trial.random.floats(width, 9.0f);
    x[0] = 100.0f;
    x[1] = -100.0f;
    x[2] = 0.0f;
    std::vector<float> out(x.size());
    for (int number = 0; number <= static_cast<int>(Activation::swiglu_oai); number++) {
        Activation activation = static_cast<Activation>(number);
        trial.checks.about = "activation " + std::to_string(number);
        Doubles plain(x.size()), product(x.size());
        for (size_t i = 0; i < x.size(); i++) {
            plain[i] = activated(x[i], activation);
            product[i] = gated(x[i], up[i], activation);
        }
        trial.set.activate(x.data(), width, activation, out.data());
        trial.checks.near("activate", out, plain, 3e-6);
        trial.set.gate_mul(x.data(), up.data(), width, activation, out.data());
        trial.checks.near("gate_mul", out, product, 2e-5);
    }
}

void compare_sums(Trial& trial) {
    const int width = trial.random.whole(1, 9) * LANES;
    trial.checks.about = std::to_string(width) + " columns";
    std::vector<float> x = trial.random.floats(width, 50.0f), y = trial.random.floats(width, 2.0f);
    std::vector<float> out(x.size());
    float factor = trial.random.uniform(0.1f, 3.0f);
    Doubles sum(x.size()), scaled(x.size()), capped(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        double a = x[i], f = factor;
        sum[i] = a + y[i] * f;
        scaled[i] = a * f;
        capped[i] = std::tanh(a / 30) * 30;
    }
    trial.set.add_scaled(x.data(), y.data(), factor, width, out.data());
    trial.checks.near("add_scaled", out, sum, 2e-7);
    trial.set.scale(x.data(), factor, width, out.data());
    trial.checks.near("scale", out, scaled, 2e-7);
    trial.set.softcap(x.data(), 30.0f, width, out.data());
    trial.checks.near("softcap", out, capped, 1e-6);
}

void compare_rope(Trial& trial) {
    Random& random = trial.random;
    const int half = random.whole(1, 40), dims = 2 * half, head_dim = dims + random.whole(0, 20);
    trial.checks.about = std::to_string(dims) + " of " + std::to_string(head_dim) + " dimensions";
    std::vector<float> x = random.floats(head_dim, 4.0f), cosines(half), sines(cosines);
    const float factor = random.uniform(0.1f, 2.0f);
    Doubles expected = doubles(x);
    for (int i = 0; i < half; i++) {
        double angle = random.uniform(0.0f, 6.0f);
        int left = i, right = half + i;
        cosines[left] = static_cast<float>(std::cos(angle));
        sines[left] = static_cast<float>(std::sin(angle));
        expected[left] = x[left] * std::cos(angle) - x[right] * std::sin(angle);
        expected[right] = x[right] * std::cos(angle) + x[left] * std::sin(angle);
    }
    for (double& value : expected) value *= factor;
    trial.set.rope(x.data(), head_dim, dims, cosines.data(), sines.data(), factor, x.data());  // in place
    trial.checks.near("rope", x, expected, 2e-6);
}

}  // namespace

void compare_rows(Trial& trial) {
    for (int i = 0; i < 8; i++) {
        compare_quantize(trial);
        survive_infinities(trial);
        compare_norms(trial);
        compare_activations(trial);
        compare_sums(trial);
        compare_rope(trial);
    }
}

}  // namespace localllm
