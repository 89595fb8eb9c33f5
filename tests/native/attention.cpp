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

    size_t key_bytes() const { return bytes_of(type) * static_cast<size_t>(page_size * head_dim); }
    size_t page_bytes() const { return key_bytes() + bytes_of(type) * static_cast<size_t>(page_size * value_dim); }
    uint8_t* page(int position) { return pool.data() + static_cast<size_t>(table[static_cast<size_t>(position / page_size)]) * page_bytes(); }
};

Cache draw_cache(Random& random) {
    static const int page_sizes[] = {3, 4, 8, 12, 16, 32, 48, 64, 128}, dims[] = {4, 8, 20, 32, 64, 80, 128};
    Cache cache{random.chance(50) ? KvType::f16 : KvType::f32, page_sizes[random.whole(0, 8)], dims[random.whole(0, 6)],
                dims[random.whole(0, 6)], random.whole(1, 300), {}, {}};
    const int num_pages = (cache.length + cache.page_size - 1) / cache.page_size;
    for (int i = 0; i < num_pages; i++) cache.table.push_back(i);
    for (int i = num_pages - 1; i > 0; i--) std::swap(cache.table[static_cast<size_t>(i)], cache.table[static_cast<size_t>(random.whole(0, i))]);
    cache.pool.assign(cache.page_bytes() * static_cast<size_t>(num_pages), 0xff);
    return cache;
}

double stored(const Cache& cache, const uint8_t* numbers, int index) {
    uint32_t bits = 0;
    std::memcpy(&bits, numbers + bytes_of(cache.type) * static_cast<size_t>(index), bytes_of(cache.type));
    return static_cast<double>(cache.type == KvType::f32 ? bits_to_float(bits) : half_to_float(static_cast<uint16_t>(bits)));
}

void fill(const Kernels& set, Cache& cache, const std::vector<float>& keys, const std::vector<float>& values) {
    for (int i = 0; i < cache.length; i++) {
        uint8_t* page = cache.page(i);
        set.write_keys(keys.data() + i * cache.head_dim, cache.head_dim, cache.page_size, i % cache.page_size, cache.type, page);
        set.write_values(values.data() + i * cache.value_dim, cache.value_dim, i % cache.page_size, cache.type,
                         page + cache.key_bytes());
    }
}

// What one query head shall get.
std::vector<double> expected_head(Cache& cache, const AttentionTask& task, int head, const float* sinks) {
    std::vector<double> scores, out(static_cast<size_t>(cache.value_dim));
    double most = sinks ? static_cast<double>(sinks[head]) : -INFINITY, sum = 0;
    for (int i = task.first; i < task.last; i++) {
        double score = 0;
        for (int d = 0; d < cache.head_dim; d++)
            score += static_cast<double>(task.q[head * cache.head_dim + d]) * stored(cache, cache.page(i), d * cache.page_size + i % cache.page_size);
        double cap = static_cast<double>(task.softcap);
        scores.push_back(cap != 0 ? std::tanh(score / cap) * cap : score);
        most = std::max(most, scores.back());
    }
    for (double& score : scores) sum += score = std::exp(score - most);
    if (sinks) sum += std::exp(static_cast<double>(sinks[head]) - most);
    for (int i = task.first; i < task.last; i++)
        for (int d = 0; d < cache.value_dim; d++)
            out[static_cast<size_t>(d)] += scores[static_cast<size_t>(i - task.first)] / sum *
                                           stored(cache, cache.page(i) + cache.key_bytes(), i % cache.page_size * cache.value_dim + d);
    return out;
}

std::vector<float> attention_of(const Kernels& set, const AttentionTask& task, const float* sinks) {
    const size_t floats = static_cast<size_t>(task.num_shared * value_stride(task.value_dim));
    std::vector<float> state(floats), partial(floats), out(static_cast<size_t>(task.num_shared * task.value_dim));
    const int first = task.first / SPLIT;
    set.attend(task, first, state.data());
    for (int split = first + 1; split * SPLIT < task.last; split++) {
        set.attend(task, split, partial.data());
        set.merge(state.data(), partial.data(), task.num_shared, task.value_dim);
    }
    set.finish(state.data(), task.num_shared, task.value_dim, sinks, out.data());
    return out;
}

void compare_window(Trial& trial, Cache& cache) {
    Random& random = trial.random;
    const int num_shared = random.whole(1, 9), last = random.whole(1, cache.length);
    const int first = random.chance(50) ? 0 : random.whole(0, last - 1);
    std::vector<float> q = random.floats(static_cast<size_t>(num_shared * cache.head_dim), 4.0f / std::sqrt(static_cast<float>(cache.head_dim)));
    std::vector<float> sinks = random.floats(static_cast<size_t>(num_shared), 2.0f);
    const bool has_sinks = random.chance(30);
    AttentionTask task{q.data(), num_shared, cache.head_dim, cache.value_dim, random.chance(30) ? 5.0f : 0.0f, cache.type, cache.page_size,
                       cache.pool.data(), cache.pool.data() + cache.key_bytes(), cache.page_bytes(), cache.table.data(), first, last};
    trial.checks.about = "heads " + std::to_string(num_shared) + ", dimensions " + std::to_string(cache.head_dim) + " and " +
                         std::to_string(cache.value_dim) + ", page " + std::to_string(cache.page_size) + ", positions " +
                         std::to_string(first) + " to " + std::to_string(last);
    std::vector<float> out = attention_of(trial.set, task, has_sinks ? sinks.data() : nullptr);
    for (int head = 0; head < num_shared; head++) {
        std::vector<double> expected = expected_head(cache, task, head, has_sinks ? sinks.data() : nullptr);
        const float* own = out.data() + head * cache.value_dim;
        trial.checks.near("attention", std::vector<float>(own, own + cache.value_dim), expected, 1e-5);
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
