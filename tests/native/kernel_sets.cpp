// Holds every kernel set that this machine runs against arithmetic in doubles and the portable set, on random shapes:
//
//     kernel_sets [--trials N] [--seed S] [SET ...]
//
// Named sets must be exactly those that this machine runs, fastest first. No Python: an emulator runs it as well.
#include <cstdlib>

#include "checks.h"

namespace localllm {

namespace {

std::vector<std::string> runnable_sets() {
    std::vector<std::string> names;
    for (const char* name : {"avx512", "avx2", "neon_dotprod", "neon", "portable"})
        if (find_kernels(name)) names.push_back(name);
    return names;
}

bool compare_set(const std::string& name, int trials, uint64_t seed) {
    const Kernels& set = *find_kernels(name.c_str());
    Random random(seed);
    Checks checks(set);
    Trial trial{set, portable_kernels(), random, checks};
    for (int i = 0; i < trials; i++) {
        compare_products(trial);
        compare_rows(trial);
        compare_attention(trial);
        compare_delta_nets(trial);
        compare_state_spaces(trial);
    }
    std::printf("%s: %ld comparisons, %ld failed\n", set.name, checks.compared, checks.failed);
    return !checks.failed;
}

struct Wishes {
    int trials = 4;
    uint64_t seed = 1;
    std::vector<std::string> sets;
};

Wishes wishes_of(int count, char** words) {
    Wishes wishes;
    for (int i = 1; i < count; i++) {
        std::string word = words[i];
        if (word == "--trials" && i + 1 < count)
            wishes.trials = std::atoi(words[++i]);
        else if (word == "--seed" && i + 1 < count)
            wishes.seed = std::strtoull(words[++i], nullptr, 10);
        else
            wishes.sets.push_back(word);
    }
    return wishes;
}

bool run(const Wishes& wishes) {
    std::vector<std::string> sets = runnable_sets();
    bool right = find_kernels("auto")->name == sets.front() && (wishes.sets.empty() || wishes.sets == sets);
    if (!right) {
        std::printf("this machine runs other sets than expected; it runs:");
        for (const std::string& name : sets) std::printf(" %s", name.c_str());
        std::printf("\n");
    }
    for (const std::string& name : sets) right &= compare_set(name, wishes.trials, wishes.seed);
    return right;
}

}  // namespace

}  // namespace localllm

int main(int count, char** words) { return localllm::run(localllm::wishes_of(count, words)) ? 0 : 1; }
