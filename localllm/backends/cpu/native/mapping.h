// Anonymous memory straight from the system: zeroed, taken page by page when first touched, given back when dropped.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace localllm {

class Mapping {
public:
    Mapping() = default;
    // Throws std::bad_alloc. `huge`: large pages are worth it, as all of it will be touched.
    explicit Mapping(size_t bytes, bool huge = false);
    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping();

    uint8_t* data() const { return data_; }
    size_t bytes() const { return bytes_; }
    template <class T>
    T* as() const { return reinterpret_cast<T*>(data_); }

    // Keeps the first min(old, new) bytes; what is new is zero. Addresses change.
    void resize(size_t bytes);
    // The contents become zero and their memory goes back to the system.
    void discard();

private:
    uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
};

// Takes pieces of large mappings one after another, so that what is read in order lies in order.
class Arena {
public:
    // 64-byte aligned, lives as long as the arena.
    uint8_t* take(size_t bytes);
    size_t used() const { return used_; }

private:
    std::vector<Mapping> chunks_;
    size_t offset_ = 0;
    size_t used_ = 0;
};

}  // namespace localllm
