// Rows that hold several streams of equal width side by side: parts of them, sums over them, and their lengths.
#include <algorithm>
#include <cmath>

#include "row_wise.h"

namespace localllm {

namespace {

constexpr float LEAST_SQUARE = 1e-5f;  // of a stream that is made longer

struct Columns : RowWise {
    const Buffer* x;
    int first;
    void compute(Program& program, int index, int tid, float* out) override {
        std::memcpy(out, program.row(*x, index, tid) + first, static_cast<size_t>(width) * sizeof(float));
    }
};

struct MulColumns : RowWise {
    const Buffer* x;
    const float* weight;
    void compute(Program& program, int index, int tid, float* out) override {
        const float* in = program.row(*x, index, tid);
        for (int i = 0; i < width; i++) out[i] = in[i] * weight[i];
    }
};

// Stream n of x plus those of y, each times its coefficient and `plus`; streams before `first` stay as they are.
struct AddStreams : RowWise {
    const Buffer *x, *y, *coefs;
    int size, first;  // values of a stream, and the first that something is added to
    float plus;
    void compute(Program& program, int index, int tid, float* out) override {
        const float *in = program.row(*x, index, tid), *others = program.row(*y, index, tid);
        const float* factors = coefs ? program.row(*coefs, index, tid) : nullptr;
        const int count = y->width / size;
        std::memcpy(out, in, static_cast<size_t>(width) * sizeof(float));
        for (int n = first; n < width / size; n++)
            for (int m = 0; m < count; m++)
                add(others + m * size, (factors ? factors[n * count + m] : 0.0f) + plus, out + n * size);
    }

private:
    void add(const float* from, float factor, float* to) const {
        for (int i = 0; i < size; i++) to[i] += from[i] * factor;
    }
};

float mean_square(const float* x, int count) {
    float sum = 0.0f;
    for (int i = 0; i < count; i++) sum += x[i] * x[i];
    return sum / static_cast<float>(count);
}

// Every stream of x as long as y is.
struct AsLongAs : RowWise {
    const Buffer *x, *y;
    void compute(Program& program, int index, int tid, float* out) override {
        const float* in = program.row(*x, index, tid);
        const int size = y->width;
        const float wanted = std::sqrt(mean_square(program.row(*y, index, tid), size));
        for (int first = 0; first < width; first += size) {
            float factor = wanted / std::sqrt(std::max(mean_square(in + first, size), LEAST_SQUARE));
            program.kernels.scale(in + first, factor, size, out + first);
        }
    }
};

// What is above the mean by `spread` standard deviations, less that; nothing of the rest.
struct CutLow : RowWise {
    const Buffer* x;
    float spread;
    void compute(Program& program, int index, int tid, float* out) override {
        const float* in = program.row(*x, index, tid);
        float sum = 0.0f, squares = 0.0f;
        for (int i = 0; i < width; i++) sum += in[i];
        const float mean = sum / static_cast<float>(width);
        for (int i = 0; i < width; i++) squares += (in[i] - mean) * (in[i] - mean);
        const float border = mean + spread * std::sqrt(squares / static_cast<float>(width));
        for (int i = 0; i < width; i++) out[i] = std::max(in[i] - border, 0.0f);
    }
};

}  // namespace

void record_columns(Program& program, int x, int first, int count, Outputs out) {
    auto columns = std::make_unique<Columns>();
    columns->x = &floats(program, x);
    columns->first = first;
    if (first < 0 || count < 1 || first > columns->x->width - count) throw std::invalid_argument("a row has fewer columns");
    same_rows(*columns->x, program, out);
    bind(program, std::move(columns), count, out);
}

void record_mul_columns(Program& program, int x, int weight, Outputs out) {
    auto mul = std::make_unique<MulColumns>();
    mul->x = &floats(program, x);
    int width = mul->x->width;
    mul->weight = weights(program, weight, width);
    if (!mul->weight) throw std::invalid_argument("columns need factors");
    same_rows(*mul->x, program, out);
    bind(program, std::move(mul), width, out);
}

void record_add_streams(Program& program, int x, int y, int coefs, int size, float plus, int first, Outputs out) {
    auto add = std::make_unique<AddStreams>();
    add->x = &floats(program, x);
    add->y = &floats(program, y);
    add->coefs = coefs == NONE ? nullptr : &floats(program, coefs);
    add->size = size;
    add->plus = plus;
    add->first = first;
    int width = add->x->width;
    if (size < 1 || width % size || add->y->width % size) throw std::invalid_argument("rows are no whole streams");
    if (first < 0 || first > width / size) throw std::invalid_argument("there are fewer streams");
    if (add->coefs && add->coefs->width != width / size * (add->y->width / size))
        throw std::invalid_argument("streams need a coefficient each");
    same_rows(*add->x, program, out);
    same_rows(*add->y, program, out);
    if (add->coefs) same_rows(*add->coefs, program, out);
    bind(program, std::move(add), width, out);
}

void record_as_long_as(Program& program, int x, int y, Outputs out) {
    auto lengthen = std::make_unique<AsLongAs>();
    lengthen->x = &floats(program, x);
    lengthen->y = &floats(program, y);
    int width = lengthen->x->width;
    if (width % lengthen->y->width) throw std::invalid_argument("rows are no whole streams");
    same_rows(*lengthen->x, program, out);
    same_rows(*lengthen->y, program, out);
    bind(program, std::move(lengthen), width, out);
}

void record_cut_low(Program& program, int x, float spread, Outputs out) {
    auto cut = std::make_unique<CutLow>();
    cut->x = &floats(program, x);
    cut->spread = spread;
    int width = cut->x->width;
    same_rows(*cut->x, program, out);
    bind(program, std::move(cut), width, out);
}

}  // namespace localllm
