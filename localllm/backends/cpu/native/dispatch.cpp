// Which kernels this machine runs.
#include <cstring>

#include "kernels.h"

#if defined(LOCALLLM_HAS_X86_SETS)
#include <cpuid.h>
#elif defined(LOCALLLM_HAS_NEON_SETS) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(LOCALLLM_HAS_NEON_SETS) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace localllm {

namespace {

#ifdef LOCALLLM_HAS_X86_SETS
// clang's and older GCC's __builtin_cpu_supports do not know this one
bool has_half_conversion() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_half_conversion();
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#ifdef LOCALLLM_HAS_NEON_SETS
// The base instruction set has no way to ask; the system is asked, and where it does not say the answer is no.
bool has_dotprod() {
#if defined(__linux__)
    constexpr unsigned long ASIMDDP = 1ul << 20;  // HWCAP_ASIMDDP, which older headers lack
    return (getauxval(AT_HWCAP) & ASIMDDP) != 0;
#elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) && has;
#else
    return false;
#endif
}
#endif

struct Set {
    const Kernels* kernels;
    bool runs;
};

}  // namespace

// Fastest first; a set that this machine does not run is passed over.
const Kernels* find_kernels(const char* name) {
#ifdef LOCALLLM_HAS_X86_SETS
    __builtin_cpu_init();
    const Set sets[] = {{&avx512_kernels(), has_avx512()}, {&avx2_kernels(), has_avx2()}, {&portable_kernels(), true}};
#elif defined(LOCALLLM_HAS_NEON_SETS)
    const Set sets[] = {{&neon_dotprod_kernels(), has_dotprod()}, {&neon_kernels(), true}, {&portable_kernels(), true}};
#else
    const Set sets[] = {{&portable_kernels(), true}};
#endif
    for (const Set& set : sets)
        if (set.runs && (!std::strcmp(name, "auto") || !std::strcmp(name, set.kernels->name))) return set.kernels;
    return nullptr;
}

}  // namespace localllm
