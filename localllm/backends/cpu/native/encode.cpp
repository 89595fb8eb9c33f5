// The door to Python of the encoders: a matrix of floats in, its blocks out, rows shared among threads.
#include "encode.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace localllm {

size_t values_per_block(int kind) {
    switch (kind) {
        case Q2_K: case Q3_K: case Q4_K: case Q5_K: case Q6_K: case IQ4_XS: return 256;
        default: return 32;
    }
}

size_t bytes_per_block(int kind) {
    switch (kind) {
        case Q4_0: case IQ4_NL: return 18;
        case Q4_1: return 20;
        case Q5_0: return 22;
        case Q5_1: return 24;
        case Q8_0: return 34;
        case MXFP4: return 17;
        case Q2_K: return 84;
        case Q3_K: return 110;
        case Q4_K: return 144;
        case Q5_K: return 176;
        case Q6_K: return 210;
        case IQ4_XS: return 136;
        default: return 0;
    }
}

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr int MOST_THREADS = 256;
constexpr size_t PIECE_VALUES = 1 << 16;

EncodeBlocks set_named(const std::string& name) {
#ifdef LOCALLLM_HAS_X86_SETS
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    const bool middle = __builtin_cpu_supports("avx2");
    if (wide && (name.empty() || name == "avx512")) return avx512::encode_blocks;
    if (middle && (name.empty() || name == "avx2")) return avx2::encode_blocks;
#endif
    if (name.empty() || name == "portable") return portable::encode_blocks;
    return nullptr;
}

// The first block that is not held, or -1. Pieces are taken in order, so an earlier one is always looked at.
ptrdiff_t run(const EncodeJob& job, EncodeBlocks encode, int threads) {
    const size_t piece = std::max<size_t>(PIECE_VALUES / values_per_block(job.kind), 1);
    std::atomic<size_t> next{0};
    std::atomic<ptrdiff_t> refused{-1};
    auto work = [&] {
        auto room = std::make_unique<EncodeRoom>();
        while (refused.load() < 0) {
            const size_t first = next.fetch_add(piece);
            if (first >= job.num_blocks) return;
            const ptrdiff_t found = encode(job, first, std::min(first + piece, job.num_blocks), *room);
            ptrdiff_t before = refused.load();
            while (found >= 0 && (before < 0 || found < before) && !refused.compare_exchange_weak(before, found)) {}
        }
    };
    const size_t pieces = (job.num_blocks + piece - 1) / piece;
    std::vector<std::thread> others;
    for (size_t i = 1; i < std::min<size_t>(static_cast<size_t>(threads), pieces); ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
    return refused.load();
}

ptrdiff_t encode(int kind, int source, const Bytes& values, size_t columns, const Weights& importance, float limit,
                 const Out& out, int threads, const std::string& kernels) {
    const size_t per_block = values_per_block(kind), bytes = bytes_per_block(kind), width = source == 0 ? 4 : 2;
    if (!bytes) throw std::invalid_argument("there is no encoder for this type");
    if (source != 0 && source != 1 && source != 30) throw std::invalid_argument("values are F32, F16 or BF16");
    if (threads < 1 || threads > MOST_THREADS) throw std::invalid_argument("threads must be between 1 and 256");
    if (!columns || columns % per_block || values.size() % (columns * width))
        throw std::invalid_argument("rows must be whole blocks");
    if (importance.size() && importance.size() != columns)
        throw std::invalid_argument("there must be an importance for each column");
    EncodeBlocks blocks = set_named(kernels);
    if (!blocks) throw std::invalid_argument("this machine does not have these kernels");
    EncodeJob job;
    job.kind = kind;
    job.source = source == 0 ? Floats::f32 : source == 1 ? Floats::f16 : Floats::bf16;
    job.values = values.data();
    job.num_blocks = values.size() / width / per_block;
    job.blocks_per_row = columns / per_block;
    job.importance = importance.size() ? importance.data() : nullptr;
    job.limit = limit;
    job.out = out.data();
    if (out.size() != job.num_blocks * bytes) throw std::invalid_argument("the blocks have the wrong size");
    nb::gil_scoped_release released;
    return run(job, blocks, threads);
}

}  // namespace
}  // namespace localllm

NB_MODULE(_encoders, module) {
    module.def("encode", &localllm::encode, "kind"_a, "source"_a, "values"_a, "columns"_a, "importance"_a, "limit"_a,
               "out"_a, "threads"_a, "kernels"_a);
}
