// Attention over pages of keys and values against a softmax in doubles: windows, splits, sinks, all kinds of pages.
#include "checks.h"

namespace localllm {

namespace {

// One KV head's pages, in any order, with numbers that must not be read where nothing was written.
struct Cache {
    KvType type;
    int page_size, head_dim, value_dim, length;
    std::vector<int32_t> table;
    std::vector<uint8_t> pool;

    size_t room(int dims) const { return room_bytes(type, static_cast<size_t>(dims), static_cast<size_t>(page_size)); }
    size_t key_bytes() const { return room(head_dim); }
    size_t page_bytes() const { return key_bytes() + room(value_dim); }
    uint8_t* page(int position) { return pool.data() + static_cast<size_t>(table[static_cast<size_t>(position / page_size)]) * page_bytes(); }
};

Cache draw_cache(Random& random) {
    static const int page_sizes[] = {3, 4, 8, 12, 16, 32, 48, 64, 128}, dims[] = {4, 8, 20, 32, 64, 80, 128};
    static const KvType types[] = {KvType::f16, KvType::f32, KvType::q8_0};
    Cache cache{types[random.whole(0, 2)], page_sizes[random.whole(0, 8)], dims[random.whole(0, 6)],
                dims[random.whole(0, 6)], random.whole(1, 300), {}, {}};
    const int num_pages = (cache.length + cache.page_size - 1) / cache.page_size;
    for (int i = 0; i < num_pages; i++) cache.table.push_back(i);
    for (int i = num_pages - 1; i > 0; i--) std::swap(cache.table[static_cast<size_t>(i)], cache.table[static_cast<size_t>(random.whole(0, i))]);
    cache.pool.assign(cache.page_bytes() * static_cast<size_t>(num_pages), 0xff);
    return cache;
}

// Number `index` of a room, which is of dimension `dim` and lies in slot `slot` of the page.
double stored(const Cache& cache, const uint8_t* room, int index, int dims, int dim, int slot) {
    auto half_at = [&](size_t offset) {
        uint16_t bits;
        std::memcpy(&bits, room + offset, sizeof bits);
        return static_cast<double>(half_to_float(bits));
    };
    if (cache.type == KvType::f16) return half_at(2 * static_cast<size_t>(index));
    if (cache.type == KvType::q8_0) {
        size_t scales = number_bytes(cache.type, static_cast<size_t>(dims), static_cast<size_t>(cache.page_size));
        double scale = half_at(scales + 2 * static_cast<size_t>(dim / BLOCK * cache.page_size + slot));
        return static_cast<int8_t>(room[index]) * scale;
    }
    float number;
    std::memcpy(&number, room + 4 * static_cast<size_t>(index), sizeof number);
    return static_cast<double>(number);
}
double stored_key(Cache& cache, int position, int d) {
    int slot = position % cache.page_size;
    return stored(cache, cache.page(position), d * cache.page_size + slot, cache.head_dim, d, slot);
}
double stored_value(Cache& cache, int position, int d) {
    int slot = position % cache.page_size;
    return stored(cache, cache.page(position) + cache.key_bytes(), slot * cache.value_dim + d, cache.value_dim, d, slot);
}

void fill(const Kernels& set, Cache& cache, const std::vector<float>& keys, const std::vector<float>& values) {
    for (int i = 0; i < cache.length; i++) {
        uint8_t* page = cache.page(i);
        set.write_keys(keys.data() + i * cache.head_dim, cache.head_dim, cache.page_size, i % cache.page_size, cache.type, page);
        set.write_values(values.data() + i * cache.value_dim, cache.value_dim, cache.page_size, i % cache.page_size, cache.type,
                         page + cache.key_bytes());
    }
}

// Queries of several tokens, each of which sees a window of its own.
struct Asked {
    std::vector<float> q;  // (head_dim, queries)
    std::vector<Visible> visible;
    int num_shared;
    float softcap;
    std::vector<float> sinks;

    int num_queries() const { return num_shared * static_cast<int>(visible.size()); }
};

Asked draw_asked(Random& random, const Cache& cache) {
    Asked asked;
    asked.num_shared = random.whole(1, 9);
    const int num_tokens = random.whole(1, 5), window = random.chance(50) ? cache.length : random.whole(1, cache.length);
    int last = random.whole(1, cache.length);
    for (int t = 0; t < num_tokens && last <= cache.length; t++, last++) asked.visible.push_back({std::max(0, last - window), last});
    const float most = 4.0f / std::sqrt(static_cast<float>(cache.head_dim));
    asked.q = random.floats(static_cast<size_t>(asked.num_queries() * cache.head_dim), most);
    asked.softcap = random.chance(30) ? 5.0f : 0.0f;
    if (random.chance(30)) asked.sinks = random.floats(static_cast<size_t>(asked.num_shared), 2.0f);
    return asked;
}

AttentionTask task_of(const Cache& cache, const Asked& asked) {
    AttentionTask task{};
    task.q = asked.q.data();
    task.q_ld = task.num_queries = asked.num_queries();
    task.queries_per_token = asked.num_shared;
    task.head_dim = cache.head_dim;
    task.value_dim = cache.value_dim;
    task.visible = asked.visible.data();
    task.softcap = asked.softcap;
    task.kv_type = cache.type;
    task.page_size = cache.page_size;
    task.keys = cache.pool.data();
    task.values = cache.pool.data() + cache.key_bytes();
    task.page_bytes = cache.page_bytes();
    task.table = cache.table.data();
    return task;
}

// What one query shall get.
std::vector<double> expected_of(Cache& cache, const Asked& asked, int query) {
    std::vector<double> scores, out(static_cast<size_t>(cache.value_dim));
    const Visible seen = asked.visible[static_cast<size_t>(query / asked.num_shared)];
    const bool has_sinks = !asked.sinks.empty();
    const double sink = has_sinks ? static_cast<double>(asked.sinks[static_cast<size_t>(query % asked.num_shared)]) : 0;
    double most = has_sinks ? sink : -INFINITY, sum = 0, cap = static_cast<double>(asked.softcap);
    for (int i = seen.first; i < seen.last; i++) {
        double score = 0;
        for (int d = 0; d < cache.head_dim; d++)
            score += static_cast<double>(asked.q[static_cast<size_t>(d * asked.num_queries() + query)]) * stored_key(cache, i, d);
        scores.push_back(cap != 0 ? std::tanh(score / cap) * cap : score);
        most = std::max(most, scores.back());
    }
    for (double& score : scores) sum += score = std::exp(score - most);
    if (has_sinks) sum += std::exp(sink - most);
    for (int i = seen.first; i < seen.last; i++)
        for (int d = 0; d < cache.value_dim; d++)
            out[static_cast<size_t>(d)] += scores[static_cast<size_t>(i - seen.first)] / sum * stored_value(cache, i, d);
    return out;
}

// The queries [from, to) of one token, computed by themselves.
std::vector<float> attention_of(const Kernels& set, AttentionTask task, int from, int to, const float* sinks) {
    const Visible seen = task.visible[from / task.queries_per_token];
    const size_t floats = static_cast<size_t>((to - from) * value_stride(task.value_dim));
    std::vector<float> state(floats), partial(floats), out(static_cast<size_t>((to - from) * task.value_dim));
    task.q += from;
    task.num_queries = to - from;
    task.queries_per_token = to - from;
    task.visible = &seen;
    const int first = seen.first / SPLIT;
    set.attend(task, first, state.data());
    for (int split = first + 1; split * SPLIT < seen.last; split++) {
        set.attend(task, split, partial.data());
        set.merge(state.data(), partial.data(), to - from, task.value_dim);
    }
    set.finish(state.data(), to - from, task.value_dim, sinks, out.data());
    return out;
}

// A partial holds the same bits whoever else is in the tile.
void compare_tiles(Trial& trial, const AttentionTask& task, int split) {
    const int stride = value_stride(task.value_dim);
    std::vector<float> together(static_cast<size_t>(task.num_queries * stride)), alone(static_cast<size_t>(stride));
    trial.set.attend(task, split, together.data());
    for (int query = 0; query < task.num_queries; query++) {
        const Visible& seen = task.visible[query / task.queries_per_token];
        if (seen.first >= (split + 1) * SPLIT || seen.last <= split * SPLIT) continue;
        AttentionTask one = task;
        one.q += query;
        one.num_queries = one.queries_per_token = 1;
        one.visible = &seen;
        trial.set.attend(one, split, alone.data());
        const float* own = together.data() + query * stride;
        trial.checks.same("maximum and sum", own, alone.data(), 2 * sizeof(float));
        trial.checks.same("partial", own + PARTIAL_HEAD, alone.data() + PARTIAL_HEAD, static_cast<size_t>(task.value_dim) * sizeof(float));
    }
}

void compare_window(Trial& trial, Cache& cache) {
    Asked asked = draw_asked(trial.random, cache);
    AttentionTask task = task_of(cache, asked);
    trial.checks.about = "heads " + std::to_string(asked.num_shared) + ", tokens " + std::to_string(asked.visible.size()) +
                         ", dimensions " + std::to_string(cache.head_dim) + " and " + std::to_string(cache.value_dim) + ", page " +
                         std::to_string(cache.page_size) + ", from " + std::to_string(asked.visible[0].first) + " to " +
                         std::to_string(asked.visible.back().last);
    for (int split = 0; split * SPLIT < cache.length; split++) compare_tiles(trial, task, split);
    for (int query = 0; query < asked.num_queries(); query++) {
        const float* sink = asked.sinks.empty() ? nullptr : asked.sinks.data() + query % asked.num_shared;
        std::vector<float> out = attention_of(trial.set, task, query, query + 1, sink);
        trial.checks.near("attention", out, expected_of(cache, asked, query), 1e-5);
    }
}

}  // namespace

void compare_attention(Trial& trial) {
    for (int i = 0; i < 12; i++) {
        Cache cache = draw_cache(trial.random), twin = cache;
        std::vector<float> keys = trial.random.floats(static_cast<size_t>(cache.length * cache.head_dim), 1.0f);
        std::vector<float> values = trial.random.floats(static_cast<size_t>(cache.length * cache.value_dim), 1.0f);
        fill(trial.set, cache, keys, values);
        fill(trial.portable, twin, keys, values);
        trial.checks.about = "page " + std::to_string(cache.page_size);
        trial.checks.same("pages", cache.pool.data(), twin.pool.data(), cache.pool.size());
        for (int window = 0; window < 3; window++) compare_window(trial, cache);
    }
}

}  // namespace localllm
