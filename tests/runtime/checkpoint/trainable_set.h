// The trainable tensors of a small pretend model on any layout. Each element's bits are a function of
// (tensor, kind, global position, salt), so that what was loaded can be checked bitwise without keeping what
// was saved; all are finite, as what a run saves is.
#pragma once

#include <bit>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "ops/core/philox.h"
#include "runtime/checkpoint/checkpoint.h"

namespace pesc::testing {

struct Layout {
  int world = 1, tp = 1, ep = 1;
};

class TrainableSet {
 public:
  // `big_rows`: rows of one replicated tensor of 64 columns, to be spread over its holders.
  TrainableSet(Layout layout, int rank, int64_t big_rows = 3) {
    const int tp = layout.tp, dp = layout.world / layout.tp;
    const int tp_rank = rank % tp, dp_rank = rank / tp;
    add({.name = "router", .global_rows = 8, .global_cols = 12}, rank, layout.world);
    add({.name = "norm", .global_rows = 1, .global_cols = 9}, rank, layout.world);
    add({.name = "big", .global_rows = big_rows, .global_cols = 64}, rank, layout.world);
    add_split({.name = "lora_b", .global_rows = 24, .global_cols = 4}, {tp, tp_rank}, {1, 0}, dp_rank, dp);
    add_split({.name = "lora_a", .global_rows = 4, .global_cols = 40}, {1, 0}, {tp, tp_rank}, dp_rank, dp);
    add_split({.name = "uneven", .global_rows = 10, .global_cols = 3}, {tp, tp_rank}, {1, 0}, dp_rank, dp);
    add_split({.name = "few", .global_rows = 2, .global_cols = 3}, {tp, tp_rank}, {1, 0}, dp_rank, dp);
    add_split({.name = "grid", .global_rows = 6, .global_cols = 10}, {dp, dp_rank}, {tp, tp_rank}, 0, 1);
    constexpr int kExperts = 8;
    const int per_rank = kExperts / layout.ep;
    for (int e = rank % layout.ep * per_rank; e < (rank % layout.ep + 1) * per_rank; ++e)
      add({.name = str_cat("experts.", e, ".down"), .global_rows = 5, .global_cols = 7}, rank / layout.ep,
          layout.world / layout.ep);
  }

  [[nodiscard]] const std::vector<TrainableTensor>& tensors() const { return tensors_; }
  [[nodiscard]] std::vector<TrainableTensor>& tensors() { return tensors_; }
  void fill(uint32_t salt) {
    each([&](float& element, uint32_t bits) { element = std::bit_cast<float>(bits); }, salt);
  }
  void clear() {
    each([](float& element, uint32_t) { element = -1.0F; }, 0);
  }
  // Elements that differ from what fill(salt) sets.
  [[nodiscard]] int64_t differences(uint32_t salt) {
    int64_t count = 0;
    each([&](float& element, uint32_t bits) { count += std::bit_cast<uint32_t>(element) != bits ? 1 : 0; },
         salt);
    return count;
  }
  [[nodiscard]] int64_t bytes() const {
    int64_t total = 0;
    for (const TrainableTensor& t : tensors_) total += 3 * t.master.bytes();
    return total;
  }

 private:
  static constexpr uint32_t kFinite = ~uint32_t{1 << 29};  // one bit of the exponent is never set
  struct Part {
    int parts, index;
  };
  void add_split(ShardSpec spec, Part by_rows, Part by_cols, int replica, int replicas) {
    const Range rows = split_range(spec.global_rows, by_rows.parts, by_rows.index);
    const Range cols = split_range(spec.global_cols, by_cols.parts, by_cols.index);
    spec.row = rows.begin;
    spec.rows = rows.size();
    spec.col = cols.begin;
    spec.cols = cols.size();
    push(spec, replica, replicas);
  }
  void add(ShardSpec spec, int replica, int replicas) {
    spec.rows = spec.global_rows;
    spec.cols = spec.global_cols;
    push(spec, replica, replicas);
  }
  void push(ShardSpec spec, int replica, int replicas) {
    spec.replica = replica;
    spec.replicas = replicas;
    // Rows of every other tensor stand apart, as views into a larger one do.
    const int64_t gap = tensors_.size() % 2 == 0 ? 0 : 3;
    const auto make = [&] {
      auto& memory = memory_.emplace_back(static_cast<size_t>(spec.rows * (spec.cols + gap) + 1), -2.0F);
      Tensor t = tensor_of(memory.data(), spec.rows, spec.cols);
      t.ld += gap;
      return t;
    };
    const Tensor value = make(), exp_avg = make(), exp_avg_sq = make();
    tensors_.push_back({spec, value, exp_avg, exp_avg_sq});
  }
  template <class Visit>
  void each(Visit visit, uint32_t salt) {
    for (TrainableTensor& t : tensors_) {
      uint32_t name = 2166136261U;
      for (const char c : t.spec.name) name = (name ^ static_cast<unsigned char>(c)) * 16777619U;
      uint32_t kind = 0;
      for (const Tensor& tensor : {t.master, t.exp_avg, t.exp_avg_sq}) {
        for (int64_t r = 0; r < tensor.rows; ++r)
          for (int64_t c = 0; c < tensor.cols; ++c)
            visit(tensor.f32()[r * tensor.ld + c], philox({static_cast<uint32_t>(t.spec.row + r),
                                                           static_cast<uint32_t>(t.spec.col + c), kind, salt},
                                                          {name, 7})[0] &
                                                       kFinite);
        ++kind;
      }
    }
  }

  std::deque<std::vector<float>> memory_;
  std::vector<TrainableTensor> tensors_;
};

inline CheckpointState state_at(int64_t step) {
  CheckpointState state;
  state.step = step;
  state.consumed_samples = step * 128;
  state.seed = 0xFEDCBA9876543210U;
  state.config_text = "model { hidden: 64 }\n";
  state.base_path = "models/base";
  state.base_digest = "0123abcd";
  state.extra["loss_guard"] = std::string("\0\xff\x01", 3);
  state.versions["openblas"] = "0.3.21";
  return state;
}

}  // namespace pesc::testing
