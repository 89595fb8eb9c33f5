#include "team.h"

#include <algorithm>
#include <climits>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace localllm {

namespace {

using Clock = std::chrono::steady_clock;

// Parking at once costs a quarter of the decode rate, spinning for ever starves whoever else needs the core.
constexpr auto SPIN = std::chrono::microseconds(30);
constexpr int PAUSES_PER_LOOK_AT_THE_CLOCK = 32;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

#if defined(__x86_64__)
FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(static_cast<unsigned>(saved_) | 0x8040); }
FlushDenormals::~FlushDenormals() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__)
FlushDenormals::FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (uint64_t{1} << 24)));
}
FlushDenormals::~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
FlushDenormals::FlushDenormals() : saved_(0) {}
FlushDenormals::~FlushDenormals() {}
#endif

#ifdef __linux__
void Team::Gate::wake() {
    if (parked.load(std::memory_order_seq_cst))
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX, nullptr,
                nullptr, 0);
}
void Team::Gate::park(uint32_t seen) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT | FUTEX_PRIVATE_FLAG, seen, nullptr, nullptr, 0);
}
#else
void Team::Gate::wake() {
    if (!parked.load(std::memory_order_seq_cst)) return;
    { std::lock_guard<std::mutex> hold(mutex); }
    changed.notify_all();
}
void Team::Gate::park(uint32_t seen) {
    std::unique_lock<std::mutex> hold(mutex);
    changed.wait(hold, [&] { return word.load(std::memory_order_seq_cst) != seen; });
}
#endif

Team::Team(int size) : size_(size), members_(static_cast<size_t>(size)) {
    try {
        for (int tid = 1; tid < size; tid++) threads_.emplace_back([this, tid] { serve(tid); });
    } catch (...) {
        stopping_ = true;
        start_.word.fetch_add(1, std::memory_order_seq_cst);
        start_.wake();
        for (auto& thread : threads_) thread.join();
        throw;
    }
}

Team::~Team() {
    stopping_ = true;
    start_.word.fetch_add(1, std::memory_order_seq_cst);
    start_.wake();
    for (auto& thread : threads_) thread.join();
}

template <class Ready>
std::chrono::nanoseconds Team::wait(Gate& gate, Ready ready) {
    // the first looks are free of clock calls: most waits end within them
    Clock::time_point first_look{};
    for (int turn = 1;; turn++) {
        if (ready(gate.word.load(std::memory_order_acquire)))
            return first_look == Clock::time_point{} ? Clock::duration::zero() : Clock::now() - first_look;
        pause();
        if (turn % PAUSES_PER_LOOK_AT_THE_CLOCK) continue;
        auto now = Clock::now();
        if (first_look == Clock::time_point{}) first_look = now;
        if (now - first_look < SPIN) continue;
        gate.parked.fetch_add(1, std::memory_order_seq_cst);
        uint32_t seen = gate.word.load(std::memory_order_seq_cst);
        if (!ready(seen)) gate.park(seen);
        gate.parked.fetch_sub(1, std::memory_order_seq_cst);
    }
}

void Team::serve(int tid) {
    FlushDenormals flush;
    uint32_t generation = 0;
    for (;;) {
        wait(start_, [&](uint32_t word) { return word != generation; });
        generation = start_.word.load(std::memory_order_acquire);
        if (stopping_) return;
        work_(argument_, tid);
        barrier(tid);
    }
}

void Team::barrier(int tid) {
    if (size_ == 1) return;
    // the counter only rises, so a late reader can never mistake one meeting for the next
    uint32_t target = (++members_[static_cast<size_t>(tid)].phase) * static_cast<uint32_t>(size_);
    arrived_.word.fetch_add(1, std::memory_order_seq_cst);
    arrived_.wake();
    auto waited = wait(arrived_, [&](uint32_t word) { return static_cast<int32_t>(word - target) >= 0; });
    members_[static_cast<size_t>(tid)].waited += waited;
}

std::chrono::nanoseconds Team::longest_wait() const {
    std::chrono::nanoseconds longest{0};
    for (const Member& member : members_) longest = std::max(longest, member.waited);
    return longest;
}

void Team::run(void (*work)(void*, int), void* argument) {
    FlushDenormals flush;
    work_ = work;
    argument_ = argument;
    for (Member& member : members_) member.waited = std::chrono::nanoseconds{0};
    if (size_ > 1) {
        start_.word.fetch_add(1, std::memory_order_seq_cst);
        start_.wake();
    }
    work(argument, 0);
    barrier(0);
}

}  // namespace localllm
