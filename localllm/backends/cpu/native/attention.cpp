// Instructions that read and write a sequence's memory: pages of keys and values, slots of recurrent state.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "record.h"
#include "sizes.h"

namespace localllm {

namespace {

constexpr int MAX_HEAD_DIM = 1024;

// Byte offsets of one KV head in a page.
struct Room {
    size_t keys, values;
};
size_t bytes_of(const Limits& limits, int dims, int num_heads) {
    size_t one = room_bytes(limits.kv_type, static_cast<size_t>(dims), static_cast<size_t>(limits.page_size));
    return checked_mul(one, static_cast<size_t>(num_heads));
}
Room room_of(const AttentionSpec& spec, const Limits& limits, int kv_head) {
    size_t all_keys = bytes_of(limits, spec.head_dim, spec.num_kv_heads);
    return {spec.offset + bytes_of(limits, spec.head_dim, kv_head),
            spec.offset + all_keys + bytes_of(limits, spec.value_dim, kv_head)};
}

// Rotates and scales q, rotates k, and puts k and v into their pages, where there are any.
struct WriteKv : Instruction {
    const Buffer *q, *k, *v, *turned_q;
    const Angles *query_angles, *key_angles;
    AttentionSpec spec;

    void run(Program& program, int tid) override {
        const int units = spec.num_heads + (k ? 2 * spec.num_kv_heads : 0);
        Span span = share(program.step().num_tokens * units, tid, program.threads());
        for (int unit = span.first; unit < span.last; unit++) {
            int token = unit / units, head = unit % units;
            if (head < spec.num_heads)
                turn_query(program, token, head, tid);
            else if (head < spec.num_heads + spec.num_kv_heads)
                write_key(program, token, head - spec.num_heads, tid);
            else
                write_value(program, token, head - spec.num_heads - spec.num_kv_heads, tid);
        }
    }

private:
    void turn(Program& program, const Angles* angles, const float* x, int token, float scale, float* out) const {
        int dims = angles ? 2 * angles->half() : 0;
        const float *cos = angles ? angles->cos(token) : nullptr, *sin = angles ? angles->sin(token) : nullptr;
        program.kernels.rope(x, spec.head_dim, dims, cos, sin, scale, out);
    }
    void turn_query(Program& program, int token, int head, int tid) const {
        const int first = head * spec.head_dim;
        float* out = program.row(*turned_q, token, tid) + first;
        turn(program, query_angles, program.row(*q, token, tid) + first, token, spec.scale, out);
    }
    uint8_t* page(Program& program, int token, int* slot) const {
        const Step& step = program.step();
        const Table& table = step.tables[static_cast<size_t>(spec.group)];
        int position = step.positions[token], size = program.limits.page_size;
        size_t row = static_cast<size_t>(step.row_of[static_cast<size_t>(token)]) * static_cast<size_t>(table.width);
        *slot = position % size;
        size_t id = static_cast<size_t>(table.pages[row + static_cast<size_t>(position / size)]);
        return program.pages() + id * program.limits.page_bytes;
    }
    void write_key(Program& program, int token, int head, int tid) const {
        float turned[MAX_HEAD_DIM];
        turn(program, key_angles, program.row(*k, token, tid) + head * spec.head_dim, token, 1.0f, turned);
        int slot;
        const Limits& limits = program.limits;
        uint8_t* at = page(program, token, &slot) + room_of(spec, limits, head).keys;
        program.kernels.write_keys(turned, spec.head_dim, limits.page_size, slot, limits.kv_type, at);
    }
    void write_value(Program& program, int token, int head, int tid) const {
        int slot;
        uint8_t* at = page(program, token, &slot) + room_of(spec, program.limits, head).values;
        const float* own = program.row(*v, token, tid) + head * spec.value_dim;
        const Limits& limits = program.limits;
        program.kernels.write_values(own, spec.value_dim, limits.page_size, slot, limits.kv_type, at);
    }
};

// Neighbouring tokens of a sequence; their queries of one KV head go through the kernel together.
struct Tile {
    int row, token, count;
};

// So many queries fill the largest tile of a kernel.
constexpr int QUERIES = 12;

// Tokens whose queries fill the kernel's tiles, and no more than a few of them: later ones see more than early ones.
int tokens_of_tile(int num_shared) {
    int tokens = QUERIES / std::gcd(QUERIES, num_shared);
    return tokens * num_shared <= 4 * QUERIES ? tokens : std::max(1, 2 * QUERIES / num_shared);
}

// Splits of a query are computed and merged in order. A lone token's splits are spread over the members; then every
// member merges them for itself (Merge), in the same order.
struct Attend : Instruction {
    const Buffer *q, *values, *blocks;
    const float* sinks;
    AttentionSpec spec;
    int num_shared, tile_tokens;
    size_t stride;         // floats of a partial of one query
    Mapping partials;      // of a lone token: (kv_heads, splits, num_shared)
    size_t max_splits;

    // A tile's queries, its state, and the partials of a split, whose place the results take.
    size_t scratch_floats() const {
        size_t queries = static_cast<size_t>(tile_tokens * num_shared);
        return queries * (static_cast<size_t>(spec.head_dim) + 2 * stride);
    }

    void run(Program& program, int tid) override {
        const Step& step = program.step();
        if (step.num_tokens == 1) return lone_token(program, tid);
        int unit = 0;
        for (int row = 0; row < step.num_rows; row++) {
            const int end = step.row_starts[row + 1];
            for (int token = step.row_starts[row]; token < end; token += tile_tokens)
                for (int head = 0; head < spec.num_kv_heads; head++)
                    // interleaved, so that early and late tokens of a prompt balance
                    if (unit++ % program.threads() == tid)
                        attend(program, {row, token, std::min(tile_tokens, end - token)}, head, tid);
        }
    }

    void merge_lone(Program& program, int tid) {
        Visible seen = visible_to(program, 0, 0);
        float* state = program.scratch(tid);
        for (int head = 0; head < spec.num_kv_heads; head++) {
            int first = seen.first / SPLIT;
            std::memcpy(state, partial_of(head, 0), stride * static_cast<size_t>(num_shared) * sizeof(float));
            for (int split = first + 1; split * SPLIT < seen.last; split++)
                program.kernels.merge(state, partial_of(head, split - first), num_shared, spec.value_dim);
            deliver(program, state, state + stride * static_cast<size_t>(num_shared), 0, head, tid);
        }
    }

private:
    float* partial_of(int head, int split, int query = 0) const {
        size_t index = static_cast<size_t>(head) * max_splits + static_cast<size_t>(split);
        return partials.as<float>() + (index * static_cast<size_t>(num_shared) + static_cast<size_t>(query)) * stride;
    }

    Visible visible_to(Program& program, int row, int token) const {
        const Step& step = program.step();
        int position = step.positions[token];
        Visible seen{spec.window ? std::max(0, position - spec.window + 1) : 0, position + 1};
        if (!spec.causal || step.atomic[row]) {
            int end = step.positions[step.row_starts[row + 1] - 1] + 1;
            seen.last = spec.window ? std::min(end, position + spec.window) : end;
        }
        return seen;
    }

    // Without its queries.
    AttentionTask task_of(Program& program, int row, int head) const {
        const Table& table = program.step().tables[static_cast<size_t>(spec.group)];
        Room room = room_of(spec, program.limits, head);
        AttentionTask task{};
        task.head_dim = spec.head_dim;
        task.value_dim = spec.value_dim;
        task.softcap = spec.softcap;
        task.kv_type = program.limits.kv_type;
        task.page_size = program.limits.page_size;
        task.keys = program.pages() + room.keys;
        task.values = program.pages() + room.values;
        task.page_bytes = program.limits.page_bytes;
        task.queries_per_token = num_shared;
        task.table = table.pages + static_cast<size_t>(row) * static_cast<size_t>(table.width);
        return task;
    }

    // The queries of a tile to (head_dim, count * num_shared), a token's next to each other.
    void gather(Program& program, const Tile& tile, int head, int tid, float* out) const {
        const int queries = tile.count * num_shared;
        for (int t = 0; t < tile.count; t++) {
            const float* rows = program.row(*q, tile.token + t, tid) + head * num_shared * spec.head_dim;
            for (int r = 0; r < num_shared; r++)
                for (int d = 0; d < spec.head_dim; d++)
                    out[d * queries + t * num_shared + r] = rows[r * spec.head_dim + d];
        }
    }

    void attend(Program& program, const Tile& tile, int head, int tid) {
        const size_t queries = static_cast<size_t>(tile.count * num_shared);
        const size_t token_floats = stride * static_cast<size_t>(num_shared);
        float* gathered = program.scratch(tid);
        float *state = gathered + queries * static_cast<size_t>(spec.head_dim), *partial = state + queries * stride;
        Visible visible[QUERIES];
        int first = visible_to(program, tile.row, tile.token).first / SPLIT, last = 0;
        for (int t = 0; t < tile.count; t++) {
            visible[t] = visible_to(program, tile.row, tile.token + t);
            last = std::max(last, visible[t].last);
        }
        gather(program, tile, head, tid, gathered);
        AttentionTask task = task_of(program, tile.row, head);
        task.q = gathered;
        task.q_ld = task.num_queries = static_cast<int>(queries);
        task.visible = visible;
        for (int split = first; split * SPLIT < last; split++) {
            program.kernels.attend(task, split, partial);
            for (int t = 0; t < tile.count; t++)
                take_in(program, visible[t], split, partial + static_cast<size_t>(t) * token_floats,
                        state + static_cast<size_t>(t) * token_floats);
        }
        for (int t = 0; t < tile.count; t++)
            deliver(program, state + static_cast<size_t>(t) * token_floats, partial, tile.token + t, head, tid);
    }

    // One token's partials of a split into its state.
    void take_in(Program& program, const Visible& seen, int split, const float* partial, float* state) const {
        const int first = seen.first / SPLIT;
        if (split < first || split * SPLIT >= seen.last) return;
        if (split == first)
            std::memcpy(state, partial, stride * static_cast<size_t>(num_shared) * sizeof(float));
        else
            program.kernels.merge(state, partial, num_shared, spec.value_dim);
    }

    // Every member takes as many positions as the others, of neighbouring splits of a head: it fetches the next while it
    // works on one. The queries of a split at the border of two members' parts are shared out.
    void lone_token(Program& program, int tid) {
        const Visible seen = visible_to(program, 0, 0);
        const Span part = share((seen.last - seen.first) * spec.num_heads, tid, program.threads());
        float* gathered = program.scratch(tid);
        int done = 0;  // positions, once for each query
        for (int head = 0; head < spec.num_kv_heads; head++) {
            bool is_gathered = false;
            AttentionTask task = task_of(program, 0, head);
            task.visible = &seen;
            task.q_ld = num_shared;
            for (int split = seen.first / SPLIT; split * SPLIT < seen.last; split++) {
                int length = std::min(seen.last, (split + 1) * SPLIT) - std::max(seen.first, split * SPLIT);
                int from = queries_before(part.first - done, length), to = queries_before(part.last - done, length);
                done += length * num_shared;
                if (from == to) continue;
                if (!is_gathered) gather(program, {0, 0, 1}, head, tid, gathered);
                is_gathered = true;
                task.q = gathered + from;
                task.num_queries = to - from;
                program.kernels.attend(task, split, partial_of(head, split - seen.first / SPLIT, from));
            }
        }
    }

    // Of a split whose queries have so many positions each: those that begin before `border`.
    int queries_before(int border, int length) const {
        return std::min(ceil_div(std::max(border, 0), length), num_shared);
    }

    void deliver(Program& program, float* state, float* own, int token, int head, int tid) const {
        int width = num_shared * spec.value_dim;
        float* out = values ? program.row(*values, token, tid) + head * width : own;
        program.kernels.finish(state, num_shared, spec.value_dim, sinks ? sinks + head * num_shared : nullptr, out);
        if (blocks) program.quantize(out, width, *blocks, head * width / BLOCK, token, tid);
    }
};

struct Merge : Instruction {
    Attend* attend;
    void run(Program& program, int tid) override {
        if (program.step().num_tokens == 1) attend->merge_lone(program, tid);
    }
};

bool is_float(const Buffer& buffer, int width, bool may_be_private) {
    return !buffer.quantized && !buffer.taken && buffer.width == width && (may_be_private || !buffer.is_private);
}

void check_heads(const AttentionSpec& spec) {
    if (spec.num_heads <= 0 || spec.num_kv_heads <= 0 || spec.num_heads % spec.num_kv_heads)
        throw std::invalid_argument("query heads are no multiple of KV heads");
    if (spec.head_dim <= 0 || spec.head_dim > MAX_HEAD_DIM || spec.value_dim <= 0 || spec.value_dim > MAX_HEAD_DIM)
        throw std::invalid_argument("a head has more dimensions than the kernels hold");
    if (spec.num_heads > (1 << 16)) throw std::invalid_argument("there are too many heads");
}

void check_room(const Program& program, const AttentionSpec& spec) {
    size_t keys = bytes_of(program.limits, spec.head_dim, spec.num_kv_heads);
    size_t bytes = checked_add(keys, bytes_of(program.limits, spec.value_dim, spec.num_kv_heads));
    if (checked_add(spec.offset, bytes) > program.limits.page_bytes)
        throw std::invalid_argument("a layer does not fit in its page");
    if (spec.group < 0 || static_cast<size_t>(spec.group) >= program.limits.windows.size())
        throw std::invalid_argument("a layer names a group that does not exist");
    int window = program.limits.windows[static_cast<size_t>(spec.group)];
    // what a layer sees must be what the check of pages covers
    if (window && (!spec.window || spec.window > window)) throw std::invalid_argument("a layer sees more than its group");
}

const Angles* angles_of(Program& program, int id, int head_dim) {
    if (id == NONE) return nullptr;
    const Angles& angles = program.angles(id);
    if (2 * angles.half() > head_dim) throw std::invalid_argument("a head turns too far");
    return &angles;
}

std::unique_ptr<WriteKv> write_of(Program& program, int q, int k, int v, int turned_q, const AttentionSpec& spec) {
    auto write = std::make_unique<WriteKv>();
    write->q = &program.buffer(q);
    write->k = k == NONE ? nullptr : &program.buffer(k);
    write->v = v == NONE ? nullptr : &program.buffer(v);
    if (!write->k != !write->v) throw std::invalid_argument("keys and values are written together");
    write->turned_q = &program.buffer(turned_q);
    write->query_angles = angles_of(program, spec.query_angles, spec.head_dim);
    write->key_angles = angles_of(program, spec.key_angles, spec.head_dim);
    write->spec = spec;
    if (!is_float(*write->q, spec.num_heads * spec.head_dim, true) ||
        (write->k && !is_float(*write->k, spec.num_kv_heads * spec.head_dim, true)) ||
        (write->v && !is_float(*write->v, spec.num_kv_heads * spec.value_dim, true)) ||
        !is_float(*write->turned_q, spec.num_heads * spec.head_dim, false))
        throw std::invalid_argument("the inputs of an attention have the wrong shape");
    return write;
}

}  // namespace

void record_attention(Program& program, int q, int k, int v, int turned_q, const AttentionSpec& spec, Outputs out) {
    check_heads(spec);
    check_room(program, spec);
    auto write = write_of(program, q, k, v, turned_q, spec);
    auto attend = std::make_unique<Attend>();
    attend->q = write->turned_q;
    attend->spec = spec;
    attend->num_shared = spec.num_heads / spec.num_kv_heads;
    attend->values = out.values == NONE ? nullptr : &program.buffer(out.values);
    attend->blocks = out.blocks == NONE ? nullptr : &program.buffer(out.blocks);
    attend->sinks = spec.sinks == NONE ? nullptr : program.vector(spec.sinks).data();
    if (spec.sinks != NONE && program.vector(spec.sinks).size() < static_cast<size_t>(spec.num_heads))
        throw std::invalid_argument("there are fewer sinks than heads");
    int width = attend->num_shared * spec.value_dim;
    for (const Buffer* buffer : {attend->values, attend->blocks})
        if (buffer && (buffer->taken || !buffer->is_private || buffer->width != spec.num_heads * spec.value_dim))
            throw std::invalid_argument("the output of an attention has the wrong shape or place");
    if (!attend->values && !attend->blocks) throw std::invalid_argument("attention must go somewhere");
    if (attend->blocks && width % BLOCK) throw std::invalid_argument("a KV head's values are no whole number of blocks");
    attend->tile_tokens = tokens_of_tile(attend->num_shared);
    attend->stride = static_cast<size_t>(value_stride(spec.value_dim));
    attend->max_splits = static_cast<size_t>(program.limits.context_length / SPLIT + 2);
    size_t count = checked_mul(static_cast<size_t>(spec.num_heads), attend->max_splits);
    attend->partials = Mapping(checked_mul(count, attend->stride * sizeof(float)));
    program.need_scratch(attend->scratch_floats());
    auto merge = std::make_unique<Merge>();
    merge->attend = attend.get();
    merge->is_private = true;
    program.add(std::move(write));
    program.add(std::move(attend));
    program.add(std::move(merge));
}

}  // namespace localllm
