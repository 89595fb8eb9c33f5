// Depthwise causal convolutions: of each channel over the last few tokens of a row, the past in the row's slot.
//
// Every member has channels of its own and goes through the tokens in their order, so how a prompt was cut changes no bit.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "record.h"
#include "sizes.h"

namespace localllm {
namespace {

constexpr int STEP = 64;  // channels whose sums stay in the first-level cache

struct Convolution : Recurrent {
    const Buffer *x, *out;
    std::vector<float> taps;  // (kernel, channels), oldest first
    int kernel, channels;
    size_t state_offset;

    void run(Program& program, int tid) override {
        const Step& step = program.step();
        Span span = share(channels, tid, program.threads());
        for (int row = 0; row < step.num_rows; row++) {
            float* state = program.state(row) + state_offset;
            for (int token = step.row_starts[row]; token < step.row_starts[row + 1]; token++)
                for (int c = span.first; c < span.last; c += STEP)
                    some(program, token, c, std::min(STEP, span.last - c), state, tid);
        }
    }

    void replay(const Program&, float* slot, const float* inputs, int num_tokens) override {
        for (int token = 0; token < num_tokens; token++, inputs += channels) shift(slot + state_offset, inputs, 0, channels);
    }

protected:
    // `count` channels from `first` on of one token: what the convolution takes in, and what becomes of its sums.
    virtual void take(const float* in, int first, int count, float* newest) const = 0;
    virtual void give(const float* in, const float* sums, int first, int count, float* to) const = 0;

private:
    void some(Program& program, int token, int first, int count, float* state, int tid) const {
        float newest[STEP], sums[STEP];
        const float* in = program.row(*x, token, tid);
        take(in, first, count, newest);
        for (int c = 0; c < count; c++) sums[c] = 0.0f;
        for (int i = 0; i + 1 < kernel; i++) {
            const float *past = input(state, i) + first, *tap = weights(i) + first;
            for (int c = 0; c < count; c++) sums[c] += past[c] * tap[c];
        }
        const float* last = weights(kernel - 1) + first;
        for (int c = 0; c < count; c++) sums[c] += newest[c] * last[c];
        shift(state, newest, first, count);
        if (program.step().keeps_inputs)
            std::memcpy(program.row(*kept, token, tid) + first, newest, static_cast<size_t>(count) * sizeof(float));
        give(in, sums, first, count, program.row(*out, token, tid) + first);
    }

    // `newest`: of the channels from `first` on.
    void shift(float* state, const float* newest, int first, int count) const {
        size_t bytes = static_cast<size_t>(count) * sizeof(float);
        for (int i = 0; i + 2 < kernel; i++) std::memcpy(input(state, i) + first, input(state, i + 1) + first, bytes);
        if (kernel > 1) std::memcpy(input(state, kernel - 2) + first, newest, bytes);
    }

    // Of the last kernel - 1, oldest first.
    float* input(float* state, int i) const { return state + static_cast<size_t>(i) * static_cast<size_t>(channels); }

    const float* weights(int i) const { return taps.data() + static_cast<size_t>(i) * static_cast<size_t>(channels); }
};

// x: before, after, inner, `channels` of each; out = after * convolution(before * inner).
struct ShortConv : Convolution {
    void take(const float* in, int first, int count, float* newest) const override {
        for (int c = 0; c < count; c++) newest[c] = in[first + c] * in[2 * channels + first + c];
    }
    void give(const float* in, const float* sums, int first, int count, float* to) const override {
        for (int c = 0; c < count; c++) to[c] = in[channels + first + c] * sums[c];
    }
};

struct CausalConv : Convolution {
    const float* bias = nullptr;
    const Kernels* kernels;

    void take(const float* in, int first, int count, float* newest) const override {
        std::memcpy(newest, in + first, static_cast<size_t>(count) * sizeof(float));
    }
    void give(const float*, const float* sums, int first, int count, float* to) const override {
        float biased[STEP] = {}, activated[STEP];
        for (int c = 0; c < count; c++) biased[c] = bias ? sums[c] + bias[first + c] : sums[c];
        kernels->activate(biased, STEP, Activation::silu, activated);
        std::memcpy(to, activated, static_cast<size_t>(count) * sizeof(float));
    }
};

bool is_float(const Buffer& buffer, bool may_be_private) {
    return !buffer.quantized && !buffer.taken && (may_be_private || !buffer.is_private);
}

// What both kinds need; `parts` of channels make the input.
void prepare(Program& program, Convolution& conv, int x, int weight, int kernel, int channels, size_t state_offset, int kept,
             int out, int parts) {
    conv.x = &program.buffer(x);
    conv.kept = &program.buffer(kept);
    conv.out = &program.buffer(out);
    conv.kernel = kernel;
    conv.channels = channels;
    conv.state_offset = state_offset;
    if (kernel < 1 || channels < 1) throw std::invalid_argument("a convolution needs a width");
    size_t count = checked_mul(static_cast<size_t>(kernel), static_cast<size_t>(channels));
    const std::vector<float>& taps = program.vector(weight);
    if (taps.size() < count) throw std::invalid_argument("a convolution's kernel is too short");
    conv.taps.resize(count);
    for (size_t c = 0; c < static_cast<size_t>(channels); c++)
        for (size_t i = 0; i < static_cast<size_t>(kernel); i++)
            conv.taps[i * static_cast<size_t>(channels) + c] = taps[c * static_cast<size_t>(kernel) + i];
    size_t state = checked_mul(static_cast<size_t>(kernel - 1), static_cast<size_t>(channels));
    if (checked_add(state_offset, state) > program.limits.state_floats)
        throw std::invalid_argument("a layer's state does not fit in its slot");
    bool fits = conv.x->width / parts == channels && conv.x->width % parts == 0;
    fits = fits && conv.kept->width == channels && conv.out->width == channels;
    if (!fits || !is_float(*conv.x, true) || !is_float(*conv.kept, false) || !is_float(*conv.out, false))
        throw std::invalid_argument("the inputs of a convolution have the wrong shape");
}

}  // namespace

void record_short_conv(Program& program, int x, int weight, int kernel, int channels, size_t state_offset, int kept,
                       int out) {
    auto conv = std::make_unique<ShortConv>();
    prepare(program, *conv, x, weight, kernel, channels, state_offset, kept, out, 3);
    program.add_recurrent(std::move(conv));
}

void record_causal_conv(Program& program, int x, int weight, int bias, int kernel, int channels, size_t state_offset,
                        int kept, int out) {
    auto conv = std::make_unique<CausalConv>();
    prepare(program, *conv, x, weight, kernel, channels, state_offset, kept, out, 1);
    conv->kernels = &program.kernels;
    if (bias != NONE) {
        if (program.vector(bias).size() < static_cast<size_t>(channels))
            throw std::invalid_argument("a convolution's bias is too short");
        conv->bias = program.vector(bias).data();
    }
    program.add_recurrent(std::move(conv));
}

}  // namespace localllm
