// A team of threads that runs one function at a time and meets at barriers: it spins briefly, then parks.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>
#ifndef __linux__
#include <condition_variable>
#include <mutex>
#endif

namespace localllm {

// Denormals are slow and carry nothing here; the mode is per thread and the caller gets its own back.
class FlushDenormals {
public:
    FlushDenormals();
    ~FlushDenormals();

private:
    uint64_t saved_;
};

class Team {
public:
    // Member 0 is whoever calls run(); size - 1 threads are started.
    explicit Team(int size);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }

    // work(argument, tid) on every member; returns when all are done. `work` must not throw.
    void run(void (*work)(void*, int), void* argument);

    template <class F>
    void run(F&& f) {
        run([](void* p, int tid) { (*static_cast<std::remove_reference_t<F>*>(p))(tid); }, &f);
    }

    // Every member calls it the same number of times inside run().
    void barrier(int tid);

    // The longest that a member stood at the barriers of the last run(); short waits are not counted.
    std::chrono::nanoseconds longest_wait() const;

private:
    // A word that members wait to change.
    struct alignas(64) Gate {
        std::atomic<uint32_t> word{0};
        alignas(64) std::atomic<uint32_t> parked{0};
#ifndef __linux__
        std::mutex mutex;
        std::condition_variable changed;
#endif
        void wake();
        void park(uint32_t seen);
    };
    struct alignas(64) Member {
        uint32_t phase = 0;
        std::chrono::nanoseconds waited{0};
    };

    template <class Ready>
    std::chrono::nanoseconds wait(Gate& gate, Ready ready);
    void serve(int tid);

    const int size_;
    Gate start_, arrived_;
    void (*work_)(void*, int) = nullptr;
    void* argument_ = nullptr;
    std::atomic<bool> stopping_{false};
    std::vector<Member> members_;
    std::vector<std::thread> threads_;
};

}  // namespace localllm
