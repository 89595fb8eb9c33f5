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

// Packed as matrices of floats are, in 16 bits where that loses nothing.
struct Factor {
    Type type;
    Mapping data;
};

// What one adapter adds at one site: A (rank, columns) and B (rows, rank).
struct LowRank {
    int rank;
    float scale;
    Factor a, b;
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
    // `num_rows`: tokens of a step, or members, whichever are more.
    explicit Adapters(int num_rows) : num_rows_(num_rows) {}

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

    // Where A x of a token is kept between the two products, of the first or the second site of an instruction. Of a lone
    // token every member has its own, as in private buffers.
    float* low(int turn, int row, int which) const;
    size_t low_ld() const { return 2 * low_width_; }
    // Products one after another use two places in turn: between two writes of a place everybody meets.
    int next_turn() { return turn_ ^= 1; }

private:
    void need_low(int rank);

    int num_rows_;
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
    int tid;
};
void expand(const Program& program, const Expand& to);

}  // namespace localllm
