// Sizes that cannot wrap: every product of numbers from a file goes through here before it becomes an allocation.
#pragma once
#include <cstddef>
#include <stdexcept>

namespace localllm {

inline size_t checked_mul(size_t a, size_t b) {
    size_t product;
    if (__builtin_mul_overflow(a, b, &product)) throw std::length_error("a size does not fit in memory");
    return product;
}

inline size_t checked_add(size_t a, size_t b) {
    size_t sum;
    if (__builtin_add_overflow(a, b, &sum)) throw std::length_error("a size does not fit in memory");
    return sum;
}

inline size_t round_up(size_t value, size_t step) { return checked_add(value, step - 1) / step * step; }

inline int ceil_div(int value, int step) { return (value + step - 1) / step; }

// The part of `count` things that member `tid` of `n` takes: [first, last), neighbours in order, sizes differ by one.
struct Span {
    int first, last;
};
inline Span share(int count, int tid, int n) {
    return {static_cast<int>(static_cast<long long>(count) * tid / n),
            static_cast<int>(static_cast<long long>(count) * (tid + 1) / n)};
}

}  // namespace localllm
