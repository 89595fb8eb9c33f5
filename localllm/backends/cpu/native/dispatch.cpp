// Which kernels this machine runs.
#include <cstring>

#include "kernels.h"

namespace localllm {

namespace {

bool has_avx2() {
#ifdef LOCALLLM_HAS_AVX2
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

const Kernels* best_kernels() {
#ifdef LOCALLLM_HAS_AVX2
    if (has_avx2()) return &avx2_kernels();
#endif
    return &portable_kernels();
}

}  // namespace

const Kernels* find_kernels(const char* name) {
    if (!std::strcmp(name, "auto")) return best_kernels();
    if (!std::strcmp(name, "portable")) return &portable_kernels();
    return !std::strcmp(name, "avx2") && has_avx2() ? best_kernels() : nullptr;
}

}  // namespace localllm
