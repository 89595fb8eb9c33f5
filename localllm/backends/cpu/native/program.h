// A recorded decoder: buffers, instructions bound to them, the page pool, and the walk that replays it for a step.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "adapters.h"
#include "kernels.h"
#include "mapping.h"
#include "matrix.h"
#include "shares.h"
#include "team.h"

namespace localllm {

// Sizes fixed when a program is made. Counts are in tokens unless named otherwise.
struct Limits {
    int max_tokens = 0;      // of one step
    int context_length = 0;
    int vocab_size = 0;
    int page_size = 0;
    KvType kv_type = KvType::f16;
    size_t page_bytes = 0;
    std::vector<int> windows;  // per KV group; 0: all
    size_t state_floats = 0;   // of one slot
};

// (tokens or taken rows, width) of floats or of quantized blocks.
//
// A private buffer is written by instructions that every member repeats for itself when there is a single row: one copy
// per member lies in as many rows (or tiles), and nobody waits for a hand-over.
struct Buffer {
    bool taken, is_private, quantized;
    int width;
    size_t ld;  // floats between rows, or blocks per token
    Mapping memory;
};

struct Table {
    const int32_t* pages;
    int width;
};

// What one step asks, checked before anything is computed. Pointers live as long as the call.
struct Step {
    int num_tokens = 0, num_rows = 0, num_taken = 0;
    const int32_t* token_ids = nullptr;
    const int32_t* positions = nullptr;
    const int32_t* row_starts = nullptr;
    const int32_t* slots = nullptr;
    const int32_t* taken = nullptr;
    const bool* atomic = nullptr;
    const bool* needs_logits = nullptr;
    std::vector<Table> tables;
    bool wants_hidden = false;
    bool keeps_inputs = false;
    const int32_t* adapters = nullptr;  // per row, 0: none; null: no row has one
    const float* adapter_scales = nullptr;
    std::vector<int32_t> row_of;  // filled by the check, as is
    std::vector<AdaptedRow> adapted;
};

class Program;

// In which steps an instruction is walked: in all, in those without an adapter, in those with one.
enum class On { every, plain, adapted };

struct Instruction {
    On on = On::every;
    bool sync = true;         // members meet after it
    bool is_private = false;  // with a single row every member does it for itself, without meeting
    bool taken = false;       // its rows are the taken ones

    virtual ~Instruction() = default;
    virtual void run(Program& program, int tid) = 0;
};

// An instruction with a part of the sequences' state. What it takes in of each token is kept where a step asks for it,
// so that the state after fewer tokens can be made again.
struct Recurrent : Instruction {
    const Buffer* kept = nullptr;  // shared floats

    // The slot as it is after `num_tokens` more tokens: `inputs` (num_tokens, kept->width) are what was kept of them.
    virtual void replay(const Program& program, float* slot, const float* inputs, int num_tokens) = 0;
};

// A factor that grows with the position: 1 + beta * ln(1 + floor(position / every)).
struct Growth {
    double beta = 0.0;
    int every = 1;
};

// Cosines and sines of this step's positions for one kind of rotation: per token dims / 2 of each.
struct Angles {
    std::vector<double> frequencies;  // radians per position
    double factor;
    Growth growth;
    Mapping memory;

    // Of cosines and sines at a position.
    double length(int position) const { return factor * (1.0 + growth.beta * std::log1p(position / growth.every)); }

    int half() const { return static_cast<int>(frequencies.size()); }
    const float* cos(int token) const { return memory.as<float>() + static_cast<size_t>(token) * 2 * frequencies.size(); }
    const float* sin(int token) const { return cos(token) + half(); }
};

class Program {
public:
    Program(int threads, const std::string& kernels, Limits limits);

    // ---- recording

    int add_buffer(int width, bool quantized, bool is_private, bool taken);
    int add_matrix(const RawMatrix& raw) { return keep(matrices_, packer_.pack(raw)); }
    int add_gated_matrix(const RawMatrix& gate, const RawMatrix& up) { return keep(gated_, packer_.pack_gated(gate, up)); }
    int add_vector(const float* values, size_t count);
    int add_angles(const double* frequencies, size_t count, double factor, Growth growth);
    void add(std::unique_ptr<Instruction> instruction);
    void add_recurrent(std::unique_ptr<Recurrent> instruction) {
        recurrent_.push_back(instruction.get());
        add(std::move(instruction));
    }

    Buffer& buffer(int id) { return at(buffers_, id, "buffer"); }
    const Matrix& matrix(int id) { return at(matrices_, id, "matrix"); }
    const GatedMatrix& gated_matrix(int id) { return at(gated_, id, "gated matrix"); }
    const std::vector<float>& vector(int id) { return at(vectors_, id, "vector"); }
    const Angles& angles(int id) { return at(angles_, id, "table of angles"); }
    // A product's parts, dealt anew in every step.
    Shares& deal(const std::vector<Slice>& slices, size_t stride, int even) {
        shares_.emplace_back(slices, stride, even);
        return shares_.back();
    }
    // Room for every member's rows of `floats`.
    void need_scratch(size_t floats);

    // ---- memory of sequences

    void allocate(int num_pages, int num_slots);
    void resize_pages(int num_pages);
    void copy_page(int source, int target);
    float* slot(int index);
    // The slot goes on by tokens that the recurrent instruction of this number kept, in the order of recording.
    void replay(int recurrent, int slot, const float* inputs, int num_tokens, int width);

    // ---- replay

    // Throws std::invalid_argument for indices out of bounds, before anything is computed.
    void run(Step& step);
    // The next so many steps go without the team, as they do beside a busy neighbour.
    void go_alone(int steps) { alone_[0].left = alone_[1].left = steps; }
    const std::vector<int32_t>& argmax() const { return argmax_; }
    const float* logits() const { return logits_.as<float>(); }
    size_t logits_ld() const { return logits_ld_; }
    const Mapping& hidden() const { return hidden_; }

    // ---- for instructions

    const Kernels& kernels;
    const Limits limits;
    Adapters adapters;
    std::vector<int32_t> types;  // of the step's tokens: which text of a pair they are of
    const Step& step() const { return *step_; }
    int threads() const { return team_.size(); }
    int count(bool taken) const { return taken ? step_->num_taken : step_->num_tokens; }
    bool is_single(bool taken, bool is_private) const { return is_private && count(taken) == 1; }
    float* row(const Buffer& buffer, int index, int tid) const;
    Inputs inputs(const Buffer& buffer, int tid) const;
    // Quantizes into the row's blocks from `first_block` on.
    void quantize(const float* x, int width, const Buffer& out, int first_block, int index, int tid) const;
    float* scratch(int tid) const { return scratch_.as<float>() + static_cast<size_t>(tid) * scratch_floats_; }
    uint8_t* pages() const { return pages_.data(); }
    float* state(int row) const { return slots_.as<float>() + static_cast<size_t>(step_->slots[row]) * limits.state_floats; }

    void use_head(int num_rows);
    void use_hidden(int width);
    HeadOut head_out(int tid) const;
    void keep_hidden(const Buffer& x, int tid);
    size_t weight_bytes() const { return packer_.used(); }

private:
    template <class T>
    static int keep(std::deque<T>& things, T thing) {
        things.push_back(std::move(thing));
        return static_cast<int>(things.size()) - 1;
    }
    template <class T>
    static T& at(std::deque<T>& things, int id, const char* what) {
        if (id < 0 || static_cast<size_t>(id) >= things.size())
            throw std::invalid_argument("there is no " + std::string(what) + " " + std::to_string(id));
        return things[static_cast<size_t>(id)];
    }
    void check(Step& step) const;
    void check_row(const Step& step, int row) const;
    void check_pages(const Step& step, int row) const;
    void check_adapters(Step& step) const;
    const std::vector<Instruction*>& walked() const { return step_->adapted.empty() ? plain_ : adapted_; }
    void walk(int tid);
    void walk_alone();
    void walk_together();
    void turn_angles(int tid);
    void choose();

    Team team_;
    Packer packer_;
    std::deque<Buffer> buffers_;
    std::deque<Matrix> matrices_;
    std::deque<GatedMatrix> gated_;
    std::deque<std::vector<float>> vectors_;
    std::deque<Angles> angles_;
    std::deque<Shares> shares_;
    std::vector<std::unique_ptr<Instruction>> instructions_;
    std::vector<Instruction*> plain_, adapted_;  // what steps without and with adapters walk
    std::vector<Recurrent*> recurrent_;

    Mapping pages_, slots_;
    int num_pages_ = 0, num_slots_ = 0;

    size_t scratch_floats_ = 16;
    Mapping scratch_;
    Mapping logits_, best_, best_group_, hidden_;
    size_t logits_ld_ = 0;
    size_t logits_touched_ = 0;  // bytes that the last step may have written
    int head_rows_ = 0;
    std::vector<int32_t> argmax_;

    // Steps without the team: still to do, and how many there were after the last with it.
    struct Alone {
        int left = 0, last = 0;
    };
    Alone alone_[2];  // of lone rows, of batches

    const Step* step_ = nullptr;
    std::atomic<bool> busy_{false};
};

}  // namespace localllm
