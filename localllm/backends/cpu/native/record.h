// What the recorder may append to a program. Ids name buffers, matrices and vectors of the program; NONE: not there.
// Every function checks that shapes agree and throws std::invalid_argument otherwise, so replay does not have to.
#pragma once
#include "program.h"

namespace localllm {

constexpr int NONE = -1;

// Where a row goes: as floats, as quantized blocks, or both.
struct Outputs {
    int values = NONE;
    int blocks = NONE;
};

// rows.cpp
void record_embed(Program&, int matrix, int of, float scale, int out);
// Rows for tokens of a table that is used in place: its bytes outlive the program.
void record_lookup(Program&, const RawMatrix& table, float scale, int out);
void record_rms_norm(Program&, int x, int weight, int length, float eps, Outputs out);
void record_layer_norm(Program&, int x, int weight, int bias, float eps, int length, Outputs out);
void record_activate(Program&, int x, int activation, Outputs out);
// Values of up from `first` on, as many as gate has.
void record_gate_mul(Program&, int gate, int up, int activation, int first, Outputs out);
void record_add(Program&, int x, int y, float scale, Outputs out);
void record_scale(Program&, int x, float factor, Outputs out);
void record_softcap(Program&, int x, float cap, Outputs out);
void record_gate_rows(Program&, int x, int gate, Outputs out);
void record_join(Program&, int x, int y, int heads, Outputs out);
// Over runs of `run` values; the weight is as wide as the row, or as a run. NONE for a weight: the gate alone.
struct GatedNormSpec {
    int run;
    bool is_wide;
    float eps;
    bool gate_first;
};
void record_gated_norm(Program&, int x, int gate, int weight, const GatedNormSpec& spec, Outputs out);
void record_quantize(Program&, int x, int blocks);
void record_take_rows(Program&, int x, Outputs out);
void record_rope(Program&, int x, int head_dim, int angles, Outputs out);
void record_pool(Program&, int x);

// streams.cpp
void record_columns(Program&, int x, int first, int count, Outputs out);
void record_mul_columns(Program&, int x, int weight, Outputs out);
void record_add_streams(Program&, int x, int y, int coefs, int size, float plus, int first, Outputs out);
void record_as_long_as(Program&, int x, int y, Outputs out);
void record_cut_low(Program&, int x, float spread, Outputs out);

// products.cpp
struct LinearSpec {
    int x, matrix;
    int bias = NONE;
    int residual = NONE;  // y = residual + product * scale
    float scale = 1.0f;
    int out;
    bool sync = true;  // false where the next instruction reads none of it
    int site = NONE;   // where adapters add
};
void record_linear(Program&, const LinearSpec& spec);
// One matrix per head, each on its own part of a row.
void record_linear_heads(Program&, int x, const std::vector<int>& matrices, int out);
// Sites: where adapters add to gate and up; both or none.
struct GatedSites {
    int gate = NONE, up = NONE;
};
void record_gated(Program&, int x, int matrix, int activation, int gate_bias, int up_bias, Outputs out,
                  GatedSites sites = {});
void record_head(Program&, int x, int matrix, float scale, float softcap);

// adapters.cpp
// A x of the adapters, for sites that share x; the number that their `expand` needs.
int record_shrink(Program&, const Buffer& x, const std::vector<int>& sites);
struct GatedParts {
    const Buffer *x, *values, *blocks;
    const GatedMatrix* matrix;
    Activation activation;
    const float *gate_bias, *up_bias;
    int gate_site, up_site;
};
void record_gated_apart(Program&, const GatedParts& parts);

// attention.cpp
struct AttentionSpec {
    int num_heads, num_kv_heads, head_dim, value_dim;
    float scale, softcap;
    int window;  // 0: all
    bool causal;
    int group;                // of page tables
    size_t offset;            // bytes from a page's start to this layer's room
    int query_angles = NONE;  // rotations done while pages are written, or none
    int key_angles = NONE;
    int sinks = NONE;
};
// Without k and v nothing is written: another layer has done so.
void record_attention(Program&, int q, int k, int v, int turned_q, const AttentionSpec& spec, Outputs out);

// convolve.cpp
// `kept`: a buffer as wide as the channels, for Recurrent.
void record_short_conv(Program&, int x, int weight, int kernel, int channels, size_t state_offset, int kept, int out);
// silu(convolution + bias); bias may be none.
void record_causal_conv(Program&, int x, int weight, int bias, int kernel, int channels, size_t state_offset, int kept, int out);

// delta_net.cpp
struct DeltaNetSpec {
    int num_key_heads, num_value_heads, key_dim, value_dim;
    bool tiled;           // value heads share key heads modulo their number, not as neighbours
    size_t state_offset;  // floats before this layer's matrices in a slot
};
// `kept`: a buffer as wide as x, beta and decay together, for Recurrent.
void record_delta_net(Program&, int x, int beta, int decay, int rate, int bias, const DeltaNetSpec& spec, int kept, int out);

// state_space.cpp
struct StateSpaceSpec {
    int num_heads, head_dim, num_groups, state_dim;
    float least, most;    // of a step
    size_t state_offset;  // of the matrices in a slot
};
// x: values of all heads, then what groups write and what they read; rate, bias and skip: a number per head.
void record_state_space(Program&, int x, int step, int rate, int bias, int skip, const StateSpaceSpec& spec, int kept, int out);

// experts.cpp
struct RouteSpec {
    int num_experts, num_used;
    int scoring;  // 0: softmax, 1: sigmoid, 2: softmax over the chosen
    bool normalize;
    float scale;
    int num_groups = 1, num_used_groups = 1;  // experts of the best groups only
    int group_best = 1;                       // a group is worth the sum of so many of its best
    int scales = NONE;                        // of experts: their weights are multiplied at the end
};
void record_route(Program&, int logits, int bias, const RouteSpec& spec, int out);
// One matrix per expert; biases are (experts, out) or none. `up`: gated matrices, or plain ones.
struct ExpertsSpec {
    std::vector<int> up, down;
    int gate_bias = NONE, up_bias = NONE, down_bias = NONE;
    int activation;
};
void record_experts(Program&, int x, int routing, const ExpertsSpec& spec, int out);
void record_plain_experts(Program&, int x, int routing, const ExpertsSpec& spec, int out);

}  // namespace localllm
