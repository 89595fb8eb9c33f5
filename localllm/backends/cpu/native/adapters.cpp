// Low-rank products beside the products of the model. They cost nothing in steps without an adapter: their instructions
// are walked only where a row has one, and what is added to a token does not depend on the other tokens of its step.
#include "adapters.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "half.h"
#include "record.h"
#include "sizes.h"

namespace localllm {

namespace {

constexpr int CHUNK = 16;  // tokens whose blocks are unpacked together
constexpr int MAX_RANK = 1 << 12;
constexpr size_t BEHIND = 256;  // bytes that kernels may load ahead

uint16_t bfloat_of(float value) { return static_cast<uint16_t>(float_to_bits(value) >> 16); }

// Most adapters were saved in 16 bits, and are read once for each token.
Type least_type(const float* values, size_t count) {
    bool is_bfloat = true, is_half = true;
    for (size_t i = 0; i < count && (is_bfloat || is_half); i++) {
        is_bfloat = is_bfloat && bfloat_to_float(bfloat_of(values[i])) == values[i];
        is_half = is_half && half_to_float(float_to_half(values[i])) == values[i];
    }
    return is_bfloat ? Type::BF16 : is_half ? Type::F16 : Type::F32;
}

template <class T, class Convert>
void pack_rows(const float* from, int rows, int columns, uint8_t* to, Convert convert) {
    size_t stride = static_cast<size_t>(columns) * LANES;
    for (int row = 0; row < rows; row++) {
        T* out = reinterpret_cast<T*>(to) + static_cast<size_t>(row / LANES) * stride + row % LANES;
        const float* in = from + static_cast<size_t>(row) * static_cast<size_t>(columns);
        for (int c = 0; c < columns; c++) out[static_cast<size_t>(c) * LANES] = convert(in[c]);
    }
}

// (rows, columns) to groups of eight rows, as Packer does.
Factor packed(const float* from, int rows, int columns) {
    Type type = least_type(from, checked_mul(static_cast<size_t>(rows), static_cast<size_t>(columns)));
    size_t bytes = checked_mul(group_bytes(type, columns), static_cast<size_t>(ceil_div(rows, LANES)));
    Mapping to(checked_add(bytes, BEHIND));
    if (type == Type::F32) pack_rows<float>(from, rows, columns, to.data(), [](float value) { return value; });
    if (type == Type::F16) pack_rows<uint16_t>(from, rows, columns, to.data(), float_to_half);
    if (type == Type::BF16) pack_rows<uint16_t>(from, rows, columns, to.data(), bfloat_of);
    return {type, std::move(to)};
}

// A quantized token as floats again. The AVX-512 set keeps the bits of a half's own scale where others keep its ratio.
void unpack(const Buffer& x, const ActBlock* tiles, int token, bool has_half_scales, float* out) {
    const ActBlock* tile = tiles + static_cast<size_t>(token / TILE) * x.ld;
    int lane = token % TILE;
    for (int b = 0; b < x.width / BLOCK; b++)
        for (int half = 0; half < BLOCK / HALF; half++) {
            const ActBlock& block = tile[b];
            float scale;
            if (has_half_scales)
                std::memcpy(&scale, &block.ratio[half][lane], sizeof scale);
            else
                scale = block.scale[lane] * static_cast<float>(once(block.ratio[half][lane]));
            const int8_t* q = block.q[lane] + half * HALF;
            for (int i = 0; i < HALF; i++) *out++ = scale * static_cast<float>(q[i]);
        }
}

const LowRank* part_of(const AdaptedRow& row, int site) {
    auto found = row.adapter->find(site);
    return found == row.adapter->end() ? nullptr : &found->second;
}

// A lone token is too little to share: every member does it for itself, and nobody waits.
bool is_alone(const Program& program) { return program.is_single(false, true); }

// A x for every row with an adapter, for one site or two that share x. Members share tokens and groups of ranks.
struct Shrink : Instruction {
    const Buffer* x;
    std::vector<int> sites;
    int turn;

    Shrink() {
        on = On::adapted;
        is_private = true;
    }

    void run(Program& program, int tid) override {
        int items = count(program);
        Span own = is_alone(program) ? Span{0, items} : share(items, tid, program.threads());
        int item = 0;
        for (const AdaptedRow& row : program.step().adapted)
            for (int first = row.first; first < row.last; first += CHUNK) {
                int last = std::min(first + CHUNK, row.last);
                bool is_ready = false;
                Inputs in;
                for (size_t which = 0; which < sites.size(); which++) {
                    const LowRank* part = part_of(row, sites[which]);
                    for (int group = 0; part && group < ceil_div(part->rank, LANES); group++, item++) {
                        if (item < own.first || item >= own.last) continue;
                        if (!is_ready) in = floats(program, first, last, tid);
                        is_ready = true;
                        product(program, *part, group, in, is_alone(program) ? tid : first, static_cast<int>(which));
                    }
                }
            }
    }

private:
    int count(const Program& program) const {
        int items = 0;
        for (const AdaptedRow& row : program.step().adapted)
            for (int site : sites)
                if (const LowRank* part = part_of(row, site))
                    items += ceil_div(row.last - row.first, CHUNK) * ceil_div(part->rank, LANES);
        return items;
    }

    Inputs floats(const Program& program, int first, int last, int tid) const {
        Inputs in;
        in.count = last - first;
        if (!x->quantized) {
            in.values = program.row(*x, first, tid);
            in.ld = x->ld;
            return in;
        }
        const ActBlock* tiles = program.inputs(*x, tid).blocks;
        float* out = program.scratch(tid);
        in.values = out;
        in.ld = static_cast<size_t>(x->width);
        bool has_half_scales = std::strcmp(program.kernels.name, "avx512") == 0;
        for (int token = first; token < last; token++, out += in.ld) unpack(*x, tiles, token, has_half_scales, out);
        return in;
    }

    void product(const Program& program, const LowRank& part, int group, const Inputs& in, int row, int which) const {
        Type type = part.a.type;
        Slice slice{part.a.data.data() + static_cast<size_t>(group) * group_bytes(type, x->width), group, 1};
        LinearOut to{};
        to.y = program.adapters.low(turn, row, which);
        to.ld = program.adapters.low_ld();
        program.kernels.linear(slice, type, x->width, in, to);
    }
};

// Gate and up one after the other, so that something can be added before they meet: a unit of rows at a time.
struct GatedApart : Instruction {
    const Buffer *x, *values, *blocks;
    const GatedMatrix* matrix;
    Activation activation;
    const float *gate_bias, *up_bias;
    int gate_site, up_site, turn;

    GatedApart() { on = On::adapted; }

    void run(Program& program, int tid) override {
        const Slice& own = matrix->slices[static_cast<size_t>(tid)];
        Inputs all = program.inputs(*x, tid);
        for (int first = 0; first < all.count; first += PANEL_TOKENS) {
            int last = std::min(first + PANEL_TOKENS, all.count);
            const uint8_t* at = own.data;
            for (int unit = own.first_group; unit < own.first_group + own.num_groups; unit++) {
                int size = std::min(UNIT_GROUPS, matrix->groups - unit * UNIT_GROUPS);
                float *gates = program.scratch(tid), *ups = gates + PANEL_TOKENS * BLOCK;
                Inputs in = part(all, first, last);
                Expand gate{gate_site, turn, 0, gates, BLOCK, unit * UNIT_GROUPS, size, true, 1.0f, first, last, tid};
                Expand up{up_site, turn, 1, ups, BLOCK, unit * UNIT_GROUPS, size, true, 1.0f, first, last, tid};
                at = side(program, at, matrix->type, in, gate_bias, gate);
                at = side(program, at, matrix->up_type, in, up_bias, up);
                for (int t = first; t < last; t++) join(program, gates, ups, size, unit, t, first, tid);
            }
        }
    }

private:
    Inputs part(const Inputs& all, int first, int last) const {
        Inputs in = all;
        if (in.values) in.values += static_cast<size_t>(first) * in.ld;
        if (in.blocks) in.blocks += static_cast<size_t>(first / TILE) * in.ld;
        in.count = last - first;
        return in;
    }

    // Returns where the next groups of the unit begin.
    const uint8_t* side(const Program& program, const uint8_t* at, Type type, const Inputs& in, const float* bias,
                        const Expand& added) const {
        LinearOut to{};
        to.y = added.y;
        to.ld = added.ld;
        to.bias = bias ? bias + static_cast<size_t>(added.first_group) * LANES : nullptr;
        program.kernels.linear({at, 0, added.num_groups}, type, matrix->columns, in, to);
        if (added.site != NONE) expand(program, added);
        return at + group_bytes(type, matrix->columns) * static_cast<size_t>(added.num_groups);
    }

    void join(const Program& program, float* gates, const float* ups, int size, int unit, int token, int first, int tid) {
        size_t at = static_cast<size_t>(token - first) * BLOCK;
        program.kernels.gate_mul(gates + at, ups + at, size * LANES, activation, gates + at);
        if (blocks)
            program.kernels.quantize(gates + at, BLOCK, blocks->memory.as<ActBlock>(), static_cast<int>(blocks->ld), unit,
                                     token);
        if (values)
            std::memcpy(program.row(*values, token, tid) + static_cast<size_t>(unit) * BLOCK, gates + at,
                        static_cast<size_t>(size) * LANES * sizeof(float));
    }
};

}  // namespace

int Adapters::add_site(int rows, int columns) {
    sites_.push_back({rows, columns});
    return static_cast<int>(sites_.size()) - 1;
}

const Site& Adapters::site(int id) const {
    if (id < 0 || static_cast<size_t>(id) >= sites_.size())
        throw std::invalid_argument("there is no matrix " + std::to_string(id) + " to add to");
    return sites_[static_cast<size_t>(id)];
}

void Adapters::add_part(int number, int id, const float* a, const float* b, int rank, float scale) {
    const Site& to = site(id);
    auto found = adapters_.find(number);
    if (found == adapters_.end()) throw std::invalid_argument("there is no adapter " + std::to_string(number));
    if (rank < 1 || rank > MAX_RANK) throw std::invalid_argument("an adapter cannot have that rank");
    need_low(rank);
    found->second[id] = LowRank{rank, scale, packed(a, rank, to.columns), packed(b, to.rows, rank)};
}

const Adapter& Adapters::find(int number) const {
    auto found = adapters_.find(number);
    if (found == adapters_.end())
        throw std::invalid_argument("a row names the adapter " + std::to_string(number) + ", which is not loaded");
    return found->second;
}

float* Adapters::low(int turn, int row, int which) const {
    return low_[turn].as<float>() + static_cast<size_t>(row) * low_ld() + static_cast<size_t>(which) * low_width_;
}

void Adapters::need_low(int rank) {
    size_t width = round_up(static_cast<size_t>(rank), 16);
    if (width <= low_width_) return;
    low_width_ = width;
    for (Mapping& low : low_)
        low = Mapping(checked_mul(checked_mul(static_cast<size_t>(num_rows_), low_ld()), sizeof(float)));
}

void expand(const Program& program, const Expand& to) {
    for (const AdaptedRow& row : program.step().adapted) {
        int first = std::max(row.first, to.first), last = std::min(row.last, to.last);
        const LowRank* part = first < last ? part_of(row, to.site) : nullptr;
        if (!part) continue;
        size_t stride = group_bytes(part->b.type, part->rank);
        Slice slice{part->b.data.data() + static_cast<size_t>(to.first_group) * stride, to.is_apart ? 0 : to.first_group,
                    to.num_groups};
        Inputs in;
        in.values = program.adapters.low(to.turn, is_alone(program) ? to.tid : first, to.which);
        in.ld = program.adapters.low_ld();
        in.count = last - first;
        LinearOut out{};
        out.y = to.y + static_cast<size_t>(first - (to.is_apart ? to.first : 0)) * to.ld;
        out.ld = to.ld;
        out.residual = out.y;
        out.residual_ld = to.ld;
        out.scale = part->scale * row.scale * to.factor;
        program.kernels.linear(slice, part->b.type, part->rank, in, out);
    }
}

int record_shrink(Program& program, const Buffer& x, const std::vector<int>& sites) {
    auto shrink = std::make_unique<Shrink>();
    shrink->x = &x;
    for (int site : sites)
        if (program.adapters.site(site).columns != x.width)
            throw std::invalid_argument("an adapted matrix does not fit its input");
    shrink->sites = sites;
    shrink->turn = program.adapters.next_turn();
    if (x.taken) throw std::invalid_argument("adapters add to products of all tokens");
    if (x.quantized) program.need_scratch(checked_mul(CHUNK, static_cast<size_t>(x.width)));
    int turn = shrink->turn;
    program.add(std::move(shrink));
    return turn;
}

void record_gated_apart(Program& program, const GatedParts& parts) {
    auto gated = std::make_unique<GatedApart>();
    for (int site : {parts.gate_site, parts.up_site})
        if (program.adapters.site(site).rows != parts.matrix->rows)
            throw std::invalid_argument("an adapted matrix has other rows than its product");
    gated->turn = record_shrink(program, *parts.x, {parts.gate_site, parts.up_site});
    gated->x = parts.x, gated->values = parts.values, gated->blocks = parts.blocks;
    gated->matrix = parts.matrix;
    gated->activation = parts.activation;
    gated->gate_bias = parts.gate_bias, gated->up_bias = parts.up_bias;
    gated->gate_site = parts.gate_site, gated->up_site = parts.up_site;
    program.need_scratch(2 * PANEL_TOKENS * BLOCK);
    program.add(std::move(gated));
}

}  // namespace localllm
