// How members share the groups of a product: each takes from its own slice first, then what others have left of theirs.
//
// Rows do not depend on who computes them, so the numbers stay the same; only nobody waits long for a member that was
// interrupted or whose memory is slower.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "kernels.h"

namespace localllm {

class Shares {
public:
    // `stride`: bytes between groups (or units) of a slice; `even`: taken by multiples of so many, for kernels that work
    // on several at once. The slices live as long as this.
    Shares(const std::vector<Slice>& slices, size_t stride, int even)
        : slices_(slices), stride_(stride), even_(even), next_(slices.size()) {
        least_ = std::max(even, static_cast<int>(LEAST_BYTES / stride) / even * even);
    }

    // Before every step, while no member works.
    void begin() {
        for (Next& next : next_) next.at.store(0, std::memory_order_relaxed);
    }

    // body(slice) until nothing is left.
    template <class Body>
    void take(int tid, Body body) {
        size_t count = slices_.size();
        for (size_t i = 0; i < count; i++) {
            size_t member = (static_cast<size_t>(tid) + i) % count;
            for (Slice part = next(member); part.num_groups; part = next(member)) body(part);
        }
    }

private:
    struct alignas(64) Next {
        std::atomic<int> at{0};
        Next() = default;
        Next(const Next&) {}  // only while no step runs
    };

    // Less and less: the last parts are small, so that all end at the same time.
    Slice next(size_t member) {
        const Slice& all = slices_[member];
        std::atomic<int>& at = next_[member].at;
        int first = at.load(std::memory_order_relaxed), size;
        do {
            int left = all.num_groups - first;
            if (left <= 0) return {};
            size = std::min(left, std::max(least_, left / (PARTS * static_cast<int>(slices_.size())) / even_ * even_));
        } while (!at.compare_exchange_weak(first, first + size, std::memory_order_relaxed));
        return {all.data + static_cast<size_t>(first) * stride_, all.first_group + first, size};
    }

    static constexpr size_t LEAST_BYTES = 16384;
    static constexpr int PARTS = 4;

    const std::vector<Slice>& slices_;
    size_t stride_;
    int even_, least_;
    std::vector<Next> next_;
};

}  // namespace localllm
