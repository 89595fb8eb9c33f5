// Which kernels this machine runs.
#include <cstring>

#include "kernels.h"

#ifdef LOCALLLM_HAS_AVX2
#include <cpuid.h>
#endif

namespace localllm {

namespace {

#ifdef LOCALLLM_HAS_AVX2
// clang's and older GCC's __builtin_cpu_supports do not know this one
bool has_half_conversion() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool has_avx2() {
#ifdef LOCALLLM_HAS_AVX2
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_half_conversion();
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
