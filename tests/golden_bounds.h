// How far golden_check lets a run be from the recorded float32 numbers.
//
// float32: the tolerances of tests/README.md. bf16: an element carries 8 bits, so every rounding costs up to
// u = 2^-9 of it. About twelve roundings lie one after the other on the way through a layer (norm, q k v,
// rotation, attention, o, residual, norm, gate and up, SwiGLU, down, adapters, residual) and six outside the
// layers; they are as good as independent, so an activation is off by about e = u sqrt(12 L + 6), one
// standard deviation, 1.1 % with the goldens' two layers. The worst element of a tensor, against its largest,
// is let be 5 e off; a loss is a mean, 2 e; a gradient has the backward behind it as well, and sums that
// cancel, 10 e. Choices of experts are replayed for logits and gradients: where two logits are closer than
// rounding, up to 5 % of the tokens choose otherwise, which is no error. The curve runs on its own choices;
// its gradient norm gets 10 e. AdamW moves an element by up to about lr a step whatever its gradient's size,
// so elements whose gradient is all rounding wander: after 20 steps parameters may differ by a quarter of the
// largest. That is with the choices of the float32 run at every step: a token that chooses otherwise turns
// the gradient of an expert that has two of them (0.25 of the largest was seen for one in the qwen2 case).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "model/router_replay.h"

namespace pesc {

struct GoldenBounds {
  double logits = 1e-5, loss = 1e-5, weights = 1e-5, gradients = 1e-4, curve = 1e-4, norm = 1e-4,
         final = 1e-3;
  double other_choices = 0;  // share of tokens

  [[nodiscard]] static GoldenBounds of(DType compute, int64_t layers) {
    if (compute == DType::kF32) return {};
    const double e = std::sqrt(12.0 * static_cast<double>(layers) + 6.0) / 512;
    return {5 * e, 2 * e, 5 * e, 10 * e, 5 * e, 10 * e, 0.25, 0.05};
  }
};

// Replays recorded choices [layers, batch * seq, k] of a batch of rows of `seq` tokens.
class GoldenRouting : public RouterReplay {
 public:
  GoldenRouting(std::vector<int32_t> experts, int64_t tokens, int64_t seq, int64_t k)
      : experts_(std::move(experts)), tokens_(tokens), seq_(seq), k_(k) {}

  bool replay(const Batch& batch, int64_t layer, std::vector<int32_t>& out) override {
    for (size_t i = 0; i < batch.slice_samples_host.size(); ++i) {
      const int64_t token = batch.slice_samples_host[i] * seq_ + batch.slice_positions_host[i];
      const auto from = experts_.begin() + (layer * tokens_ + token) * k_;
      std::copy(from, from + k_, out.begin() + static_cast<int64_t>(i) * k_);
    }
    return true;
  }
  void record(const Batch&, int64_t, const std::vector<int32_t>&) override {}

 private:
  std::vector<int32_t> experts_;
  int64_t tokens_, seq_, k_;
};

// Keeps the choices of every step of one run on this rank, for another of the same layout.
class StepChoices : public RouterReplay {
 public:
  void at_step(int64_t step, bool recording) {
    step_ = step;
    recording_ = recording;
  }

  bool replay(const Batch&, int64_t layer, std::vector<int32_t>& out) override {
    if (recording_) return false;
    const std::vector<int32_t>& kept = kept_.at({step_, layer});
    PESC_CHECK(kept.size() == out.size(), "layer ", layer, ", step ", step_, ": ", kept.size(),
               " choices are kept, ", out.size(), " asked for");
    out = kept;
    return true;
  }
  void record(const Batch&, int64_t layer, const std::vector<int32_t>& experts) override {
    if (recording_) kept_[{step_, layer}] = experts;
  }

 private:
  int64_t step_ = 0;
  bool recording_ = false;
  std::map<std::pair<int64_t, int64_t>, std::vector<int32_t>> kept_;
};

}  // namespace pesc
