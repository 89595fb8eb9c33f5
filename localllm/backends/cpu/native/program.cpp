#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "sizes.h"

namespace localllm {

namespace {

// after scoring whole chunks the logits are as large as a small model; nobody keeps them
constexpr size_t LOGITS_TO_KEEP_BYTES = size_t{16} << 20;

// After a step in which a member waited more than half of the time, so many steps at most go without the team: one after
// the first, for a step that was interrupted once is no sign, and more where the next step with the team is no better.
constexpr int STEPS_ALONE = 15;
constexpr auto SHORTEST_TO_JUDGE = std::chrono::microseconds(500);

const Kernels& kernels_or_throw(const std::string& name) {
    const Kernels* kernels = find_kernels(name.c_str());
    if (!kernels) throw std::invalid_argument("this machine does not run the kernels called " + name);
    return *kernels;
}

[[noreturn]] void refuse(const std::string& what, long value, long limit) {
    throw std::invalid_argument(what + " is " + std::to_string(value) + ", the limit is " + std::to_string(limit));
}

}  // namespace

Program::Program(int threads, const std::string& name, Limits sizes)
    : kernels(kernels_or_throw(name)), limits(std::move(sizes)), adapters(std::max(limits.max_tokens, threads)), team_(threads), packer_(team_) {}

int Program::add_buffer(int width, bool quantized, bool is_private, bool taken) {
    if (width <= 0 || (quantized && width % BLOCK)) throw std::invalid_argument("a buffer cannot be so wide");
    size_t rows = round_up(static_cast<size_t>(std::max(limits.max_tokens, threads())), TILE);
    // a private tile holds one member's row, so there are as many tiles as members
    size_t tiles = std::max(rows / TILE, static_cast<size_t>(threads()));
    size_t ld = quantized ? static_cast<size_t>(width) / BLOCK : round_up(static_cast<size_t>(width), 16);
    size_t bytes = quantized ? checked_mul(checked_mul(tiles, ld), sizeof(ActBlock))
                             : checked_mul(checked_mul(rows, ld), sizeof(float));
    return keep(buffers_, Buffer{taken, is_private, quantized, width, ld, Mapping(bytes)});
}

int Program::add_vector(const float* values, size_t count) {
    std::vector<float> padded(round_up(count, BLOCK), 0.0f);
    std::copy(values, values + count, padded.begin());
    return keep(vectors_, std::move(padded));
}

int Program::add_angles(const double* frequencies, size_t count, double factor, Growth growth) {
    if (growth.every < 1) throw std::invalid_argument("a factor cannot grow that often");
    size_t bytes = checked_mul(checked_mul(static_cast<size_t>(limits.max_tokens), 2 * sizeof(float)), count);
    return keep(angles_, Angles{{frequencies, frequencies + count}, factor, growth, Mapping(bytes)});
}

void Program::need_scratch(size_t floats) {
    floats = round_up(floats, 64);
    if (floats <= scratch_floats_ && scratch_.data()) return;
    scratch_floats_ = std::max(floats, scratch_floats_);
    scratch_ = Mapping(checked_mul(checked_mul(scratch_floats_, sizeof(float)), static_cast<size_t>(threads())));
}

void Program::allocate(int num_pages, int num_slots) {
    if (num_pages < 0 || num_slots < 0) throw std::invalid_argument("a pool cannot have less than nothing");
    pages_ = Mapping(checked_mul(limits.page_bytes, static_cast<size_t>(num_pages)));
    slots_ = Mapping(checked_mul(limits.state_floats * sizeof(float), static_cast<size_t>(num_slots)));
    num_pages_ = num_pages;
    num_slots_ = num_slots;
}

void Program::resize_pages(int num_pages) {
    if (num_pages < 0) throw std::invalid_argument("a pool cannot have less than nothing");
    pages_.resize(checked_mul(limits.page_bytes, static_cast<size_t>(num_pages)));
    num_pages_ = num_pages;
}

void Program::copy_page(int source, int target) {
    if (source < 0 || source >= num_pages_) refuse("the source page", source, num_pages_);
    if (target < 0 || target >= num_pages_) refuse("the target page", target, num_pages_);
    if (source == target) return;
    std::memcpy(pages() + limits.page_bytes * static_cast<size_t>(target),
                pages() + limits.page_bytes * static_cast<size_t>(source), limits.page_bytes);
}

float* Program::slot(int index) {
    if (index < 0 || index >= num_slots_) refuse("the state slot", index, num_slots_);
    return slots_.as<float>() + static_cast<size_t>(index) * limits.state_floats;
}

void Program::replay(int recurrent, int slot_index, const float* inputs, int num_tokens, int width) {
    if (recurrent < 0 || static_cast<size_t>(recurrent) >= recurrent_.size())
        refuse("the recurrent instruction", recurrent, static_cast<int>(recurrent_.size()));
    Recurrent& instruction = *recurrent_[static_cast<size_t>(recurrent)];
    if (width != instruction.kept->width || num_tokens < 0) throw std::invalid_argument("the kept inputs have the wrong shape");
    FlushDenormals flush;  // as in a step
    instruction.replay(*this, slot(slot_index), inputs, num_tokens);
}

float* Program::row(const Buffer& buffer, int index, int tid) const {
    size_t at = static_cast<size_t>(is_single(buffer.taken, buffer.is_private) ? tid : index);
    return buffer.memory.as<float>() + at * buffer.ld;
}

Inputs Program::inputs(const Buffer& buffer, int tid) const {
    size_t own = is_single(buffer.taken, buffer.is_private) ? static_cast<size_t>(tid) : 0;
    Inputs in;
    in.count = count(buffer.taken);
    in.ld = buffer.ld;
    if (buffer.quantized)
        in.blocks = buffer.memory.as<ActBlock>() + own * buffer.ld;
    else
        in.values = buffer.memory.as<float>() + own * buffer.ld;
    return in;
}

void Program::quantize(const float* x, int width, const Buffer& out, int first_block, int index, int tid) const {
    bool single = is_single(out.taken, out.is_private);
    ActBlock* tiles = out.memory.as<ActBlock>() + (single ? static_cast<size_t>(tid) * out.ld : 0);
    kernels.quantize(x, width, tiles, static_cast<int>(out.ld), first_block, single ? 0 : index);
}

void Program::use_head(int num_rows) {
    head_rows_ = num_rows;
    logits_ld_ = round_up(static_cast<size_t>(num_rows), 16);
    size_t rows = static_cast<size_t>(limits.max_tokens), all = checked_mul(rows, static_cast<size_t>(threads()));
    logits_ = Mapping(checked_mul(checked_mul(rows, logits_ld_), sizeof(float)));
    best_ = Mapping(checked_mul(all, LANES * sizeof(float)));
    best_group_ = Mapping(checked_mul(all, LANES * sizeof(int32_t)));
}

void Program::use_hidden(int width) {
    hidden_ = Mapping(checked_mul(checked_mul(static_cast<size_t>(limits.max_tokens), static_cast<size_t>(width)), 4));
}

HeadOut Program::head_out(int tid) const {
    size_t own = static_cast<size_t>(tid) * static_cast<size_t>(limits.max_tokens) * LANES;
    HeadOut out{};
    out.scale = 1.0f;
    out.num_rows = head_rows_;
    out.logits = logits_.as<float>();
    out.ld = logits_ld_;
    out.stored = step_->needs_logits;
    out.best = best_.as<float>() + own;
    out.best_group = best_group_.as<int32_t>() + own;
    return out;
}

void Program::keep_hidden(const Buffer& x, int tid) {
    if (!step_->wants_hidden) return;
    Span span = share(step_->num_tokens, tid, threads());
    size_t width = static_cast<size_t>(x.width);
    for (int r = span.first; r < span.last; r++)
        std::memcpy(hidden_.as<float>() + static_cast<size_t>(r) * width, row(x, r, tid), width * sizeof(float));
}

void Program::check(Step& step) const {
    if (step.num_tokens > limits.max_tokens) refuse("the number of tokens in the step", step.num_tokens, limits.max_tokens);
    if (step.num_taken > step.num_tokens) refuse("the number of taken rows", step.num_taken, step.num_tokens);
    if (step.tables.size() != limits.windows.size())
        refuse("the number of page tables", static_cast<long>(step.tables.size()), static_cast<long>(limits.windows.size()));
    for (int i = 0; i < step.num_tokens; i++)
        if (step.token_ids[i] < 0 || step.token_ids[i] >= limits.vocab_size)
            refuse("a token id", step.token_ids[i], limits.vocab_size);
    for (int i = 0; i < step.num_taken; i++)
        if (step.taken[i] < 0 || step.taken[i] >= step.num_tokens) refuse("a taken row", step.taken[i], step.num_tokens);
    if (step.row_starts[0] != 0 || step.row_starts[step.num_rows] != step.num_tokens)
        throw std::invalid_argument("the rows of the step do not hold its tokens");
    step.row_of.resize(static_cast<size_t>(step.num_tokens));
    for (int row = 0; row < step.num_rows; row++) {
        check_row(step, row);
        std::fill(step.row_of.begin() + step.row_starts[row], step.row_of.begin() + step.row_starts[row + 1], row);
    }
    check_adapters(step);
}

void Program::check_row(const Step& step, int row) const {
    int first = step.row_starts[row], last = step.row_starts[row + 1];
    if (first >= last || last > step.num_tokens) throw std::invalid_argument("a row of the step has no tokens");
    if (step.positions[first] < 0 || step.positions[first] >= limits.context_length)
        refuse("a position", step.positions[first], limits.context_length);
    for (int i = first + 1; i < last; i++)
        if (step.positions[i] != step.positions[i - 1] + 1) throw std::invalid_argument("positions of a row have a gap");
    if (step.positions[last - 1] >= limits.context_length)
        refuse("a position", step.positions[last - 1], limits.context_length);
    if (limits.state_floats && (step.slots[row] < 0 || step.slots[row] >= num_slots_))
        refuse("a state slot", step.slots[row], num_slots_);
    check_pages(step, row);
}

void Program::check_adapters(Step& step) const {
    step.adapted.clear();
    for (int row = 0; step.adapters && row < step.num_rows; row++)
        if (step.adapters[row] && step.adapter_scales[row] != 0.0f)
            step.adapted.push_back({&adapters.find(step.adapters[row]), step.adapter_scales[row], step.row_starts[row],
                                    step.row_starts[row + 1]});
}

void Program::add(std::unique_ptr<Instruction> instruction) {
    if (instruction->on != On::adapted) plain_.push_back(instruction.get());
    if (instruction->on != On::plain) adapted_.push_back(instruction.get());
    instructions_.push_back(std::move(instruction));
}

void Program::check_pages(const Step& step, int row) const {
    int start = step.positions[step.row_starts[row]], end = step.positions[step.row_starts[row + 1] - 1];
    for (size_t group = 0; group < step.tables.size(); group++) {
        const Table& table = step.tables[group];
        int seen = limits.windows[group] ? std::max(0, start - limits.windows[group] + 1) : 0;
        if (end / limits.page_size >= table.width) refuse("the last page of a row", end / limits.page_size, table.width);
        const int32_t* pages = table.pages + static_cast<size_t>(row) * static_cast<size_t>(table.width);
        for (int i = seen / limits.page_size; i <= end / limits.page_size; i++)
            if (pages[i] < 0 || pages[i] >= num_pages_) refuse("a page that a row needs", pages[i], num_pages_);
    }
}

void Program::run(Step& step) {
    if (busy_.exchange(true)) throw std::runtime_error("a program runs one step at a time");
    struct Done {
        std::atomic<bool>& busy;
        ~Done() { busy = false; }
    } done{busy_};
    check(step);
    if (logits_touched_ > LOGITS_TO_KEEP_BYTES) logits_.discard();
    size_t stored = static_cast<size_t>(std::count(step.needs_logits, step.needs_logits + step.num_taken, true));
    logits_touched_ = stored * logits_ld_ * sizeof(float);
    argmax_.assign(static_cast<size_t>(step.num_taken), 0);
    if (!step.num_tokens) return;
    step_ = &step;
    need_scratch(scratch_floats_);
    for (Shares& shares : shares_) shares.begin();
    walk_together();
    if (head_rows_) choose();
    step_ = nullptr;
}

// A member that shares its core with somebody busy holds up all others at every meeting; then one thread does the work
// of all of them sooner. The numbers stay the same: work is split as before.
void Program::walk_together() {
    using Clock = std::chrono::steady_clock;
    Alone& alone = alone_[step_->num_tokens > 1];
    if (alone.left > 0) {
        alone.left--;
        return walk_alone();
    }
    auto start = Clock::now();
    team_.run([this](int tid) { walk(tid); });
    auto took = Clock::now() - start;
    bool held_up = took > SHORTEST_TO_JUDGE && team_.longest_wait() * 2 > took;
    alone.last = held_up ? std::min(STEPS_ALONE, 2 * alone.last + 1) : 0;
    alone.left = alone.last;
}

void Program::walk_alone() {
    FlushDenormals flush;
    for (int tid = 0; tid < threads(); tid++) turn_angles(tid);
    for (Instruction* instruction : walked())
        for (int tid = 0; tid < threads(); tid++) instruction->run(*this, tid);
}

void Program::walk(int tid) {
    if (!angles_.empty()) {
        turn_angles(tid);
        team_.barrier(tid);
    }
    for (Instruction* instruction : walked()) {
        instruction->run(*this, tid);
        if (instruction->sync && !is_single(instruction->taken, instruction->is_private)) team_.barrier(tid);
    }
}

void Program::turn_angles(int tid) {
    for (Angles& angles : angles_) {
        Span span = share(step_->num_tokens, tid, threads());
        for (int t = span.first; t < span.last; t++) {
            float *cos = const_cast<float*>(angles.cos(t)), *sin = const_cast<float*>(angles.sin(t));
            double length = angles.length(step_->positions[t]);
            for (int i = 0; i < angles.half(); i++) {
                double angle = step_->positions[t] * angles.frequencies[static_cast<size_t>(i)];
                cos[i] = static_cast<float>(std::cos(angle) * length);
                sin[i] = static_cast<float>(std::sin(angle) * length);
            }
        }
    }
}

// The first index of the largest logit, from every member's best of each lane. Members' rows rise with their number.
void Program::choose() {
    for (int n = 0; n < step_->num_taken; n++) {
        float best = -INFINITY;
        int chosen = 0;
        for (int tid = 0; tid < threads(); tid++) {
            HeadOut out = head_out(tid);
            for (int lane = 0; lane < LANES; lane++) {
                float value = out.best[n * LANES + lane];
                int index = out.best_group[n * LANES + lane] * LANES + lane;
                if (value > best || (value == best && index < chosen)) {
                    best = value;
                    chosen = index;
                }
            }
        }
        // a NaN is above nothing, so that a line of them leaves the best where it began: NOT_USABLE of backends/batch.py
        argmax_[static_cast<size_t>(n)] = std::isfinite(best) ? std::min(chosen, head_rows_ - 1) : -1;
    }
}

}  // namespace localllm
