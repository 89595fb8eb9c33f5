// Low-rank adapters: y = W x becomes W x + scale B (A x), for the rows of a step that name one.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "kernels.h"
#include "mapping.h"

namespace localllm {

class Program;
struct Buffer;

// A matrix that adapters may add to: (rows, columns).
struct Site {
    int rows, columns;
};

// What one adapter adds at one site: A (rank, columns) and B (rows, rank), packed as float matrices are.
struct LowRank {
    int rank;
    float scale;
    Mapping a, b;
};

using Adapter = std::unordered_map<int, LowRank>;  // by site

// Tokens first..last of a step are a row with this adapter.
struct AdaptedRow {
    const Adapter* adapter;
    float scale;
    int first, last;
};

class Adapters {
public:
    explicit Adapters(int max_tokens) : max_tokens_(max_tokens) {}

    int add_site(int rows, int columns);
    const Site& site(int id) const;

    // Numbers rise from 1 and never come twice.
    int add() {
        adapters_[next_];
        return next_++;
    }
    void add_part(int number, int site, const float* a, const float* b, int rank, float scale);
    void drop(int number) { adapters_.erase(number); }
    // Throws std::invalid_argument where there is none.
    const Adapter& find(int number) const;

    // Where A x of a token is kept between the two products, of the first or the second site of an instruction.
    float* low(int turn, int token, int which) const;
    size_t low_ld() const { return 2 * low_width_; }
    // Products one after another use two places in turn: between two writes of a place everybody meets.
    int next_turn() { return turn_ ^= 1; }

private:
    void need_low(int rank);

    int max_tokens_;
    std::vector<Site> sites_;
    std::map<int, Adapter> adapters_;
    int next_ = 1, turn_ = 0;
    size_t low_width_ = 0;
    Mapping low_[2];
};

// y (token 0 of the step; rows `ld` apart) += factor * what the adapters of tokens first..last add in `num_groups` groups
// of the site's rows from `first_group` on; these are groups 0, 1, ... of y where `is_apart`, else the same as the site's.
struct Expand {
    int site, turn, which;
    float* y;
    size_t ld;
    int first_group, num_groups;
    bool is_apart;
    float factor;
    int first, last;
};
void expand(const Program& program, const Expand& to);

}  // namespace localllm
