// The door to Python: plain numbers and numpy arrays in, arrays out. Long work runs without the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <thread>

#include "record.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace localllm;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatTable = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntTable = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bools = nb::ndarray<const bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatTable = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatView = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using FloatLine = nb::ndarray<nb::numpy, float, nb::ndim<1>>;

constexpr int MOST_THREADS = 256;

KvType kv_type_of(const std::string& name) {
    if (name == "f16") return KvType::f16;
    if (name == "f32") return KvType::f32;
    if (name == "q8_0") return KvType::q8_0;
    throw std::invalid_argument("keys and values are f16, f32 or q8_0");
}

Program* make_program(int threads, const std::string& kernels, int max_tokens, int context_length, int vocab_size,
                      int page_size, const std::string& kv_type, size_t page_bytes, std::vector<int> windows,
                      size_t state_floats) {
    if (threads < 1 || threads > MOST_THREADS) throw std::invalid_argument("threads must be between 1 and 256");
    if (max_tokens < 1 || context_length < 1 || vocab_size < 1 || page_size < 1 || max_tokens > (1 << 24))
        throw std::invalid_argument("a program needs room for at least one token");
    Limits limits;
    limits.max_tokens = max_tokens;
    limits.context_length = context_length;
    limits.vocab_size = vocab_size;
    limits.page_size = page_size;
    limits.kv_type = kv_type_of(kv_type);
    limits.page_bytes = page_bytes;
    limits.windows = std::move(windows);
    limits.state_floats = state_floats;
    return new Program(threads, kernels, std::move(limits));
}

RawMatrix raw_of(const Bytes& bytes, int type, long rows, long columns) {
    return checked_raw(bytes.data(), bytes.size(), type, rows, columns);
}

int add_matrix(Program& program, const Bytes& bytes, int type, long rows, long columns) {
    RawMatrix raw = raw_of(bytes, type, rows, columns);
    nb::gil_scoped_release released;
    return program.add_matrix(raw);
}

int add_gated(Program& program, const Bytes& gate, const Bytes& up, int gate_type, int up_type, long rows, long columns) {
    RawMatrix raw_gate = raw_of(gate, gate_type, rows, columns), raw_up = raw_of(up, up_type, rows, columns);
    nb::gil_scoped_release released;
    return program.add_gated_matrix(raw_gate, raw_up);
}

void expect(size_t size, size_t wanted, const char* what) {
    if (size != wanted) throw std::invalid_argument(std::string(what) + " has the wrong length");
}

// Of the tokens of the next step: which text of a pair they are of.
void set_types(Program& program, const Ints& types) {
    for (size_t i = 0; i < types.size(); i++)
        if (types.data()[i] < 0 || types.data()[i] > 1) throw std::invalid_argument("a pair has two texts");
    program.types.assign(types.data(), types.data() + types.size());
}

std::vector<int32_t> run_step(Program& program, const Ints& token_ids, const Ints& positions, const Ints& row_starts,
                              const std::vector<IntTable>& tables, const Ints& slots, const Bools& atomic,
                              const Ints& taken, const Bools& needs_logits, bool wants_hidden, bool keeps_inputs,
                              const std::optional<Ints>& adapters, const std::optional<Floats>& scales) {
    size_t rows = slots.size();
    expect(positions.size(), token_ids.size(), "positions");
    expect(row_starts.size(), rows + 1, "row_starts");
    expect(atomic.size(), rows, "atomic");
    expect(needs_logits.size(), taken.size(), "needs_logits");
    if (std::max({token_ids.size(), rows, taken.size()}) > (size_t{1} << 24))
        throw std::invalid_argument("a step has too many tokens");
    Step step;
    step.num_tokens = static_cast<int>(token_ids.size());
    step.num_rows = static_cast<int>(rows);
    step.num_taken = static_cast<int>(taken.size());
    step.token_ids = token_ids.data();
    step.positions = positions.data();
    step.row_starts = row_starts.data();
    step.slots = slots.data();
    step.taken = taken.data();
    step.atomic = atomic.data();
    step.needs_logits = needs_logits.data();
    step.wants_hidden = wants_hidden;
    step.keeps_inputs = keeps_inputs;
    if (adapters && scales) {
        expect(adapters->size(), rows, "adapters");
        expect(scales->size(), rows, "adapter_scales");
        step.adapters = adapters->data();
        step.adapter_scales = scales->data();
    }
    for (const IntTable& table : tables) {
        expect(table.shape(0), rows, "a page table");
        step.tables.push_back({table.data(), static_cast<int>(table.shape(1))});
    }
    nb::gil_scoped_release released;
    program.run(step);
    return program.argmax();
}

void add_part(Program& program, int adapter, int site, const FloatTable& a, const FloatTable& b, float scale) {
    const Site& to = program.adapters.site(site);
    expect(a.shape(1), static_cast<size_t>(to.columns), "a row of A");
    expect(b.shape(0), static_cast<size_t>(to.rows), "B");
    expect(b.shape(1), a.shape(0), "a row of B");
    if (a.shape(0) > (size_t{1} << 20)) throw std::invalid_argument("an adapter cannot have that rank");
    int rank = static_cast<int>(a.shape(0));
    nb::gil_scoped_release released;
    program.adapters.add_part(adapter, site, a.data(), b.data(), rank, scale);
}

// Views live as long as the program, and show what the last step left.
FloatView view(nb::handle owner, float* data, size_t rows, size_t width, size_t ld) {
    return FloatView(data, {rows, width}, owner, {static_cast<int64_t>(ld), 1});
}

FloatView view_values(nb::handle self, int id, int rows) {
    Program& program = nb::cast<Program&>(self);
    const Buffer& buffer = program.buffer(id);
    if (buffer.quantized || buffer.is_private) throw std::invalid_argument("only shared floats can be seen");
    if (rows < 0 || rows > program.limits.max_tokens) throw std::invalid_argument("a buffer has fewer rows");
    return view(self, buffer.memory.as<float>(), static_cast<size_t>(rows), static_cast<size_t>(buffer.width), buffer.ld);
}

FloatView view_logits(nb::handle self, int rows) {
    Program& program = nb::cast<Program&>(self);
    if (!program.logits_ld() || rows < 0 || rows > program.limits.max_tokens)
        throw std::invalid_argument("there are no such logits");
    return view(self, const_cast<float*>(program.logits()), static_cast<size_t>(rows),
                static_cast<size_t>(program.limits.vocab_size), program.logits_ld());
}

FloatView view_hidden(nb::handle self, int rows, int width) {
    Program& program = nb::cast<Program&>(self);
    size_t bytes = static_cast<size_t>(std::max(rows, 0)) * static_cast<size_t>(std::max(width, 0)) * sizeof(float);
    if (rows < 0 || width < 1 || bytes > program.hidden().bytes()) throw std::invalid_argument("there are no such rows");
    return view(self, program.hidden().as<float>(), static_cast<size_t>(rows), static_cast<size_t>(width),
                static_cast<size_t>(width));
}

FloatLine view_slot(nb::handle self, int index) {
    Program& program = nb::cast<Program&>(self);
    return FloatLine(program.slot(index), {program.limits.state_floats}, self);
}

void replay(Program& program, int recurrent, int slot, const FloatTable& inputs) {
    if (inputs.shape(0) > INT32_MAX || inputs.shape(1) > INT32_MAX)
        throw std::invalid_argument("there are too many kept inputs");
    program.replay(recurrent, slot, inputs.data(), static_cast<int>(inputs.shape(0)), static_cast<int>(inputs.shape(1)));
}

Outputs outputs(int values, int blocks) { return {values, blocks}; }

void bind_recording(nb::class_<Program>& program) {
    program
        .def("buffer", &Program::add_buffer, "width"_a, "quantized"_a, "is_private"_a, "taken"_a)
        .def("matrix", &add_matrix, "raw"_a, "type"_a, "rows"_a, "columns"_a)
        .def("gated_matrix", &add_gated, "gate"_a, "up"_a, "gate_type"_a, "up_type"_a, "rows"_a,
             "columns"_a)
        .def("vector", [](Program& p, const Floats& v) { return p.add_vector(v.data(), v.size()); }, "values"_a)
        .def("angles",
             [](Program& p, const Doubles& f, double factor, double beta, int every) {
                 return p.add_angles(f.data(), f.size(), factor, {beta, every});
             },
             "frequencies"_a, "factor"_a, "beta"_a = 0.0, "every"_a = 1)
        .def("embed", &record_embed, "matrix"_a, "of"_a, "scale"_a, "out"_a)
        .def("lookup",
             [](Program& p, const Bytes& table, int type, long rows, long columns, float scale, int out) {
                 record_lookup(p, raw_of(table, type, rows, columns), scale, out);
             },
             "table"_a, "type"_a, "rows"_a, "columns"_a, "scale"_a, "out"_a, nb::keep_alive<1, 2>())
        .def("rms_norm",
             [](Program& p, int x, int weight, int length, float eps, int values, int blocks) {
                 record_rms_norm(p, x, weight, length, eps, outputs(values, blocks));
             },
             "x"_a, "weight"_a, "length"_a, "eps"_a, "values"_a, "blocks"_a)
        .def("layer_norm",
             [](Program& p, int x, int weight, int bias, float eps, int length, int values, int blocks) {
                 record_layer_norm(p, x, weight, bias, eps, length, outputs(values, blocks));
             },
             "x"_a, "weight"_a, "bias"_a, "eps"_a, "length"_a = 0, nb::kw_only(), "values"_a, "blocks"_a)
        .def("activate",
             [](Program& p, int x, int activation, int values, int blocks) {
                 record_activate(p, x, activation, outputs(values, blocks));
             },
             "x"_a, "activation"_a, "values"_a, "blocks"_a)
        .def("gate_mul",
             [](Program& p, int gate, int up, int activation, int first, int values, int blocks) {
                 record_gate_mul(p, gate, up, activation, first, outputs(values, blocks));
             },
             "gate"_a, "up"_a, "activation"_a, "first"_a = 0, nb::kw_only(), "values"_a, "blocks"_a)
        .def("add",
             [](Program& p, int x, int y, float scale, int values, int blocks) {
                 record_add(p, x, y, scale, outputs(values, blocks));
             },
             "x"_a, "y"_a, "scale"_a, "values"_a, "blocks"_a)
        .def("scale",
             [](Program& p, int x, float factor, int values, int blocks) {
                 record_scale(p, x, factor, outputs(values, blocks));
             },
             "x"_a, "factor"_a, "values"_a, "blocks"_a)
        .def("softcap",
             [](Program& p, int x, float cap, int values, int blocks) {
                 record_softcap(p, x, cap, outputs(values, blocks));
             },
             "x"_a, "cap"_a, "values"_a, "blocks"_a)
        .def("gate_rows",
             [](Program& p, int x, int gate, int values, int blocks) {
                 record_gate_rows(p, x, gate, outputs(values, blocks));
             },
             "x"_a, "gate"_a, "values"_a, "blocks"_a)
        .def("join",
             [](Program& p, int x, int y, int heads, int values, int blocks) {
                 record_join(p, x, y, heads, outputs(values, blocks));
             },
             "x"_a, "y"_a, "heads"_a, "values"_a, "blocks"_a)
        .def("gated_norm",
             [](Program& p, int x, int gate, int weight, int run, bool is_wide, float eps, bool gate_first, int values,
                int blocks) {
                 record_gated_norm(p, x, gate, weight, {run, is_wide, eps, gate_first}, outputs(values, blocks));
             },
             "x"_a, "gate"_a, "weight"_a, "run"_a, "is_wide"_a, "eps"_a, "gate_first"_a, "values"_a, "blocks"_a)
        .def("columns",
             [](Program& p, int x, int first, int count, int values, int blocks) {
                 record_columns(p, x, first, count, outputs(values, blocks));
             },
             "x"_a, "first"_a, "count"_a, "values"_a, "blocks"_a)
        .def("mul_columns",
             [](Program& p, int x, int weight, int values, int blocks) {
                 record_mul_columns(p, x, weight, outputs(values, blocks));
             },
             "x"_a, "weight"_a, "values"_a, "blocks"_a)
        .def("add_streams",
             [](Program& p, int x, int y, int coefs, int size, float plus, int first, int values, int blocks) {
                 record_add_streams(p, x, y, coefs, size, plus, first, outputs(values, blocks));
             },
             "x"_a, "y"_a, "coefs"_a, "size"_a, "plus"_a, "first"_a, "values"_a, "blocks"_a)
        .def("as_long_as",
             [](Program& p, int x, int y, int values, int blocks) {
                 record_as_long_as(p, x, y, outputs(values, blocks));
             },
             "x"_a, "y"_a, "values"_a, "blocks"_a)
        .def("cut_low",
             [](Program& p, int x, float spread, int values, int blocks) {
                 record_cut_low(p, x, spread, outputs(values, blocks));
             },
             "x"_a, "spread"_a, "values"_a, "blocks"_a)
        .def("linear_heads", &record_linear_heads, "x"_a, "matrices"_a, "out"_a)
        .def("quantize", &record_quantize, "x"_a, "blocks"_a)
        .def("take_rows",
             [](Program& p, int x, int values, int blocks) { record_take_rows(p, x, outputs(values, blocks)); }, "x"_a,
             "values"_a, "blocks"_a)
        .def("rope",
             [](Program& p, int x, int head_dim, int angles, int values, int blocks) {
                 record_rope(p, x, head_dim, angles, outputs(values, blocks));
             },
             "x"_a, "head_dim"_a, "angles"_a, "values"_a, "blocks"_a)
        .def("pool", &record_pool, "x"_a)
        .def("linear",
             [](Program& p, int x, int matrix, int bias, int residual, float scale, int out, bool sync, int site) {
                 LinearSpec spec{};
                 spec.x = x, spec.matrix = matrix, spec.bias = bias, spec.residual = residual;
                 spec.scale = scale, spec.out = out, spec.sync = sync, spec.site = site;
                 record_linear(p, spec);
             },
             "x"_a, "matrix"_a, "bias"_a, "residual"_a, "scale"_a, "out"_a, "sync"_a, "site"_a = NONE)
        .def("gated",
             [](Program& p, int x, int matrix, int activation, int gate_bias, int up_bias, int values, int blocks,
                int gate_site, int up_site) {
                 record_gated(p, x, matrix, activation, gate_bias, up_bias, outputs(values, blocks), {gate_site, up_site});
             },
             "x"_a, "matrix"_a, "activation"_a, "gate_bias"_a, "up_bias"_a, "values"_a, "blocks"_a, "gate_site"_a = NONE,
             "up_site"_a = NONE)
        .def("head", &record_head, "x"_a, "matrix"_a, "scale"_a, "softcap"_a)
        .def("attention",
             [](Program& p, int q, int k, int v, int turned_q, int num_heads, int num_kv_heads, int head_dim,
                int value_dim, float scale, float softcap, int window, bool causal, int group, size_t offset,
                int query_angles, int key_angles, int sinks, int values, int blocks) {
                 AttentionSpec spec{num_heads, num_kv_heads, head_dim, value_dim, scale,        softcap,    window,
                                    causal,    group,        offset,   query_angles, key_angles, sinks};
                 record_attention(p, q, k, v, turned_q, spec, outputs(values, blocks));
             },
             "q"_a, "k"_a, "v"_a, "turned_q"_a, nb::kw_only(), "num_heads"_a, "num_kv_heads"_a, "head_dim"_a,
             "value_dim"_a, "scale"_a, "softcap"_a, "window"_a, "causal"_a, "group"_a, "offset"_a, "query_angles"_a,
             "key_angles"_a, "sinks"_a, "values"_a, "blocks"_a)
        .def("short_conv", &record_short_conv, "x"_a, "weight"_a, "kernel"_a, "channels"_a, "state_offset"_a, "kept"_a,
             "out"_a)
        .def("delta_net",
             [](Program& p, int x, int beta, int decay, int rate, int bias, int num_key_heads, int num_value_heads, int key_dim,
                int value_dim, bool tiled, size_t state_offset, int kept, int out) {
                 DeltaNetSpec spec{num_key_heads, num_value_heads, key_dim, value_dim, tiled, state_offset};
                 record_delta_net(p, x, beta, decay, rate, bias, spec, kept, out);
             },
             "x"_a, "beta"_a, "decay"_a, "rate"_a, "bias"_a, "num_key_heads"_a, "num_value_heads"_a, "key_dim"_a,
             "value_dim"_a, "tiled"_a, "state_offset"_a, "kept"_a, "out"_a)
        .def("causal_conv", &record_causal_conv, "x"_a, "weight"_a, "bias"_a, "kernel"_a, "channels"_a, "state_offset"_a,
             "kept"_a, "out"_a)
        .def("state_space",
             [](Program& p, int x, int step, int rate, int bias, int skip, int num_heads, int head_dim, int num_groups,
                int state_dim, float least, float most, size_t state_offset, int kept, int out) {
                 StateSpaceSpec spec{num_heads, head_dim, num_groups, state_dim, least, most, state_offset};
                 record_state_space(p, x, step, rate, bias, skip, spec, kept, out);
             },
             "x"_a, "step"_a, "rate"_a, "bias"_a, "skip"_a, nb::kw_only(), "num_heads"_a, "head_dim"_a, "num_groups"_a,
             "state_dim"_a, "least"_a, "most"_a, "state_offset"_a, "kept"_a, "out"_a)
        .def("route",
             [](Program& p, int logits, int bias, int num_experts, int num_used, int scoring, bool normalize, float scale,
                int out, int num_groups, int num_used_groups, int group_best, int scales) {
                 RouteSpec spec{num_experts, num_used,   scoring,         normalize, scale,
                                num_groups,  num_used_groups, group_best, scales};
                 record_route(p, logits, bias, spec, out);
             },
             "logits"_a, "bias"_a, "num_experts"_a, "num_used"_a, "scoring"_a, "normalize"_a, "scale"_a, "out"_a,
             "num_groups"_a = 1, "num_used_groups"_a = 1, "group_best"_a = 1, "scales"_a = NONE)
        .def("experts",
             [](Program& p, int x, int routing, std::vector<int> gated, std::vector<int> down, int gate_bias, int up_bias,
                int down_bias, int activation, int out) {
                 ExpertsSpec spec{std::move(gated), std::move(down), gate_bias, up_bias, down_bias, activation};
                 record_experts(p, x, routing, spec, out);
             },
             "x"_a, "routing"_a, "gated"_a, "down"_a, "gate_bias"_a, "up_bias"_a, "down_bias"_a, "activation"_a, "out"_a)
        .def("plain_experts",
             [](Program& p, int x, int routing, std::vector<int> up, std::vector<int> down, int up_bias, int down_bias,
                int activation, int out) {
                 ExpertsSpec spec{std::move(up), std::move(down), NONE, up_bias, down_bias, activation};
                 record_plain_experts(p, x, routing, spec, out);
             },
             "x"_a, "routing"_a, "up"_a, "down"_a, "up_bias"_a, "down_bias"_a, "activation"_a, "out"_a);
}

void bind_replay(nb::class_<Program>& program) {
    program.def("allocate", &Program::allocate, "num_pages"_a, "num_slots"_a)
        .def("resize_pages", &Program::resize_pages, "num_pages"_a)
        .def("copy_page", &Program::copy_page, "source"_a, "target"_a)
        .def("slot", &view_slot, "index"_a)
        .def("replay", &replay, "recurrent"_a, "slot"_a, "inputs"_a)
        .def("types", &set_types, "types"_a)
        .def("step", &run_step, "token_ids"_a, "positions"_a, "row_starts"_a, "tables"_a, "slots"_a, "atomic"_a, "taken"_a,
             "needs_logits"_a, "wants_hidden"_a, "keeps_inputs"_a, "adapters"_a = nb::none(),
             "adapter_scales"_a = nb::none())
        .def("add_site", [](Program& p, int rows, int columns) { return p.adapters.add_site(rows, columns); }, "rows"_a,
             "columns"_a)
        .def("add_adapter", [](Program& p) { return p.adapters.add(); })
        .def("add_part", &add_part, "adapter"_a, "site"_a, "a"_a, "b"_a, "scale"_a)
        .def("drop_adapter", [](Program& p, int adapter) { p.adapters.drop(adapter); }, "adapter"_a)
        .def("go_alone", &Program::go_alone, "steps"_a)
        .def("values", &view_values, "buffer"_a, "rows"_a)
        .def("logits", &view_logits, "rows"_a)
        .def("hidden", &view_hidden, "rows"_a, "width"_a)
        .def_prop_ro("kernels", [](const Program& p) { return std::string(p.kernels.name); })
        .def_prop_ro("threads", &Program::threads)
        .def_prop_ro("weight_bytes", &Program::weight_bytes);
}

}  // namespace

NB_MODULE(_native, m) {
    nb::class_<Program> program(m, "Program");
    program.def(nb::new_([](int threads, const std::string& kernels, int max_tokens, int context_length, int vocab_size,
                            int page_size, const std::string& kv_type, size_t page_bytes, std::vector<int> windows,
                            size_t state_floats) {
                    return make_program(threads, kernels, max_tokens, context_length, vocab_size, page_size, kv_type,
                                        page_bytes, std::move(windows), state_floats);
                }),
                nb::kw_only(), "threads"_a, "kernels"_a, "max_tokens"_a, "context_length"_a, "vocab_size"_a,
                "page_size"_a, "kv_type"_a, "page_bytes"_a, "windows"_a, "state_floats"_a);
    bind_recording(program);
    bind_replay(program);
    m.def("has_kernels", [](const std::string& name) { return find_kernels(name.c_str()) != nullptr; }, "name"_a);
}
