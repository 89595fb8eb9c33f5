#include "mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "sizes.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace localllm {

namespace {

constexpr size_t HUGE_PAGE_BYTES = size_t{2} << 20;
constexpr size_t CHUNK_BYTES = size_t{64} << 20;
// kernels prefetch past the end of their matrix; the mapping should still hold what they name
constexpr size_t TAIL_BYTES = 16384;

size_t whole_pages(size_t bytes) {
    return round_up(std::max<size_t>(bytes, 1), static_cast<size_t>(sysconf(_SC_PAGESIZE)));
}

uint8_t* map(size_t bytes) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    return static_cast<uint8_t*>(data);
}

}  // namespace

Mapping::Mapping(size_t bytes, bool huge) {
    size_t size = whole_pages(bytes);
    data_ = map(size);
    bytes_ = size;
#ifdef MADV_HUGEPAGE
    if (huge && bytes_ >= HUGE_PAGE_BYTES) madvise(data_, bytes_, MADV_HUGEPAGE);
#else
    (void)huge;
#endif
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

Mapping::~Mapping() {
    if (data_) munmap(data_, bytes_);
}

void Mapping::resize(size_t bytes) {
    if (!data_) {
        *this = Mapping(bytes);
        return;
    }
#ifdef __linux__
    size_t size = whole_pages(bytes);
    void* moved = mremap(data_, bytes_, size, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(moved);
    bytes_ = size;
#else
    Mapping grown(bytes);
    std::memcpy(grown.data_, data_, std::min(bytes_, grown.bytes_));
    *this = std::move(grown);
#endif
}

void Mapping::discard() {
    if (!data_) return;
    // mapping over the range works everywhere; MADV_DONTNEED zeroes on Linux only
    void* fresh = mmap(data_, bytes_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (fresh == MAP_FAILED) throw std::bad_alloc();
}

uint8_t* Arena::take(size_t bytes) {
    size_t size = round_up(bytes, 64);
    if (chunks_.empty() || checked_add(offset_, checked_add(size, TAIL_BYTES)) > chunks_.back().bytes()) {
        chunks_.emplace_back(std::max(CHUNK_BYTES, checked_add(size, TAIL_BYTES)), true);
        offset_ = 0;
    }
    uint8_t* piece = chunks_.back().data() + offset_;
    offset_ += size;
    used_ += size;
    return piece;
}

}  // namespace localllm
