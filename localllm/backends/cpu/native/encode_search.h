// Scales for groups of values, a group in each lane: the same steps in the same order as quantize/search.py, so that
// the bytes are the same. Nothing here may be contracted to a fused multiply-add.

// Plain arithmetic on lanes; GCC's and Clang's vector extension makes what the machine has of it.
constexpr int W = ENCODE_LANES;
typedef float F __attribute__((vector_size(4 * ENCODE_LANES)));
typedef int32_t I __attribute__((vector_size(4 * ENCODE_LANES)));

inline F all(float x) { return F{} + x; }
inline F pick(I where, F a, F b) { return (F)((where & (I)a) | (~where & (I)b)); }
inline F smaller(F a, F b) { return a < b ? a : b; }
inline F larger(F a, F b) { return a > b ? a : b; }
inline F size_of(F x) { return (F)((I)x & 0x7fffffff); }

constexpr float TINY = 7.888609052210118e-31f;  // 2^-100

// 1 / x, and 0 where no scale comes of it
inline F inverse(F x) {
    I some = size_of(x) > TINY;
    return pick(some, all(1.0f) / pick(some, x, all(1.0f)), F{});
}

// The nearest whole number, ties to even, in [low, high]. Sums beyond 2^23 have no room for fractions.
inline F quantized(F x, float low, float high) {
    const F magic = all(12582912.0f);
    F clipped = smaller(larger(x, all(low)), all(high));
    return (clipped + magic) - magic;
}

// Sums by halves, as `total` in search.py: of values i, i + n, i + 2 n, ...
template <int G, int n, class Get>
inline auto total(const Get& get, int i = 0) -> decltype(get(0)) {
    if constexpr (n == G) return get(i);
    else return total<G, 2 * n>(get, i) + total<G, 2 * n>(get, i + n);
}

struct Two { F a, b; };
struct Three { F a, b, c; };
inline Two operator+(const Two& x, const Two& y) { return {x.a + y.a, x.b + y.b}; }
inline Three operator+(const Three& x, const Three& y) { return {x.a + y.a, x.b + y.b, x.c + y.c}; }

template <int G>
inline F extremes(const F* x) {
    F highest = x[0], lowest = x[0];
    for (int i = 1; i < G; ++i) {
        highest = larger(x[i], highest);
        lowest = smaller(x[i], lowest);
    }
    return pick(highest >= -lowest, highest, lowest);
}

inline F square_root(F x) {
    F y;
    for (int lane = 0; lane < W; ++lane) y[lane] = __builtin_sqrtf(x[lane]);
    return y;
}

// In: the importance of each value, where it is known. Out: what an error in it weighs.
template <int G>
inline void size_weights(const F* x, F* weights, bool has_importance) {
    F mean = total<G, 1>([&](int i) { return x[i] * x[i]; }) / all(float(G));
    if (has_importance) {
        for (int i = 0; i < G; ++i) weights[i] = weights[i] * square_root(mean + x[i] * x[i]);
    } else {
        F rms = square_root(mean);
        for (int i = 0; i < G; ++i) weights[i] = rms + size_of(x[i]);
    }
}

// Candidates are multiples `ends` of per_unit for 1 / scale; `nearest` rounds.
template <int G, class Nearest>
inline F scale_fit(const F* x, const F* weights, F per_unit, const float* ends, int count, const Nearest& nearest) {
    F best{}, best_gain{};
    for (int k = 0; k < count; ++k) {
        F candidate = per_unit * ends[k];
        Two sums = total<G, 1>([&](int i) {
            F point = nearest(x[i] * candidate), weighted = weights[i] * point;
            return Two{weighted * x[i], weighted * point};
        });
        F scale = sums.a * inverse(sums.b), gain = scale * sums.a;
        I better = gain > best_gain;
        best = pick(better, scale, best);
        best_gain = pick(better, gain, best_gain);
    }
    return best;
}

template <int G>
inline F squared_error(const F* x, const F* weights, const F* quants, F slope, F offset) {
    return total<G, 1>([&](int i) {
        F missed = x[i] - (quants[i] * slope + offset);
        return weights[i] * missed * missed;
    });
}

struct Affine { F scale, floor; };

// `reaches`: levels and what is added to them, how far the candidates' grids go.
template <int G>
inline Affine affine_fit(const F* x, const F* weights, float levels, const float* reaches, int steps) {
    F highest = x[0], lowest = x[0];
    for (int i = 1; i < G; ++i) {
        highest = larger(x[i], highest);
        lowest = smaller(x[i], lowest);
    }
    F floor = F{} - smaller(lowest, F{}), scale = (highest + floor) / all(levels), least = all(__builtin_inff());
    F count = total<G, 1>([&](int i) { return weights[i]; });
    F values = total<G, 1>([&](int i) { return weights[i] * x[i]; });
    F noise_of = all(1e-5f) * count;
    for (int k = 0; k < steps; ++k) {
        F per_unit = reaches[k] * inverse(highest + floor), quants[G];
        Three sums = total<G, 1>([&](int i) {
            quants[i] = quantized((x[i] + floor) * per_unit, 0.0f, levels);
            F weighted = weights[i] * quants[i];
            return Three{weighted, weighted * quants[i], weighted * x[i]};
        });
        F first = sums.a, second = sums.b, along = sums.c;
        F spread = count * second - first * first;
        F determinant = inverse(pick(spread > noise_of * second, spread, F{}));
        F slope = (count * along - first * values) * determinant;
        F offset = (second * values - first * along) * determinant;
        I above = offset > F{};
        slope = pick(above, along * inverse(second), slope);
        offset = pick(above, F{}, offset);
        F error = squared_error<G>(x, weights, quants, slope, offset);
        I better = (error < least) & (slope > F{});
        scale = pick(better, slope, scale);
        floor = pick(better, F{} - offset, floor);
        least = pick(better, error, least);
    }
    return {scale, floor};
}

// numpy's arange: the second value settles the step
inline int arange(double start, double step, int count, double added, float* out) {
    double delta = (start + step) - start;
    for (int i = 0; i < count; ++i) out[i] = static_cast<float>(added + (start + i * delta));
    return count;
}

// Where the value of largest size may land: on -reach, or up to 0.9 beside it
inline int symmetric_ends(int reach, float* out) {
    for (int step = -9; step < 10; ++step) out[step + 9] = static_cast<float>(-reach - step / 10.0);
    return 19;
}
