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
//
// Quantised weights are other weights, and the bounds say how far their model is from the float32 one (that it is
// computed right, tests/model/quantized_model_test.cc checks to float32's bounds). The error of a weight, as root
// mean square of a normal one: FP8 rounds to four bits, 2.6 %; NF4 9.2 %. So is that of a sum of many terms. Four
// GEMMs lie one after the other in a layer (q k v, o, gate and up, down), so an activation is off by about
// e = weight sqrt(4 L), 7 % and 26 % with two layers; with FP8 GEMMs the tokens are rounded too, and in bf16 all
// is as above. The worst element has four or five deviations, and so has the largest, more or less: 2 e for logits
// and the router's weights. Losses are means over tokens, whose errors have both signs: e / 4, and e / 2 over the
// curve, which runs on its own choices. Gradients have the backward's GEMMs behind them too, sqrt(2) e, and are compared
// as whole tensors, |a - b| / |b|. An expert of two or three tokens has the error of one token, whose router weight is off
// as well, sqrt(3) e, and the worst of some fifty such tensors lies 2.3 times as far out: 4 e, but less than 0.95, since a
// gradient that is not there is off by 1. The norm of all over the curve, on its own choices: rounding moves it by 2 e, and
// tokens that choose otherwise, 1.5 e of them (below), carry their gradient to another expert, and so move the norm by at
// most that share of it; independent, they make 2.5 e. Seen: 0.236 of the qwen2 case in its last step, with FP8 GEMMs,
// tp 2 and gathered adapters, where that is 0.264; 0.04 to 0.14 in the others.
// AdamW divides by the size of a gradient, so an element moves by about the learning rate a step, whatever its gradient. The
// rows of all steps are the same: an element whose gradient has the other sign with quantised weights goes the other way, and
// ends up to two of its ways off. What the steps added to the parameters is therefore compared as whole tensors. With a gradient
// that is off by r of its size, and both normal, atan(r) / pi of the elements have the other sign, which makes
// sqrt(4 atan(r) / pi) of the norm of what was added if no element turns in between; with r = 4 e, as above, 0.61 in FP8 and 0.71
// with FP8 GEMMs. In NF4 that says nothing (1.01): there, as for gradients, a tensor that was not updated is off by 1 and is noticed.
// Seen on the CPU: 0.22 to 0.29 in FP8, 0.64 to 0.71 in NF4.
// A choice changes where two logits are closer than their error: in 1.5 e of the tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numbers>
#include <optional>
#include <utility>
#include <vector>

#include "model/frozen_linear.h"
#include "model/router_replay.h"
#include "runtime/config/experiment.h"

namespace pesc {

// What a run computes with.
struct GoldenNumbers {
  DType compute = DType::kF32;
  std::optional<FrozenFormat> frozen;
  FrozenGemm frozen_gemm = FrozenGemm::kDequantized;
  [[nodiscard]] bool exact() const { return compute == DType::kF32 && !frozen; }
};

struct GoldenBounds {
  double logits = 1e-5, loss = 1e-5, weights = 1e-5, gradients = 1e-4, curve = 1e-4, norm = 1e-4,
         final = 1e-3;
  double other_choices = 0;  // share of tokens

  [[nodiscard]] static GoldenBounds of(const GoldenNumbers& numbers, int64_t layers) {
    if (numbers.frozen) return of_quantized(numbers, static_cast<double>(layers));
    if (numbers.exact()) return {};
    const double e = std::sqrt(12.0 * static_cast<double>(layers) + 6.0) / 512;
    return {5 * e, 2 * e, 5 * e, 10 * e, 5 * e, 10 * e, 0.25, 0.05};
  }

 private:
  [[nodiscard]] static GoldenBounds of_quantized(const GoldenNumbers& numbers, double layers) {
    constexpr double kFp8 = 0.0263, kNf4 = 0.0922;
    const double weight = *numbers.frozen == FrozenFormat::kFP8 ? kFp8 : kNf4;
    const double token = numbers.frozen_gemm == FrozenGemm::kFP8 ? kFp8 : 0.0;
    const double rounded =
        numbers.frozen_gemm == FrozenGemm::kFP8 && weight == kNf4 ? kFp8 : 0.0;  // NF4 to FP8
    const double bf16 = numbers.compute == DType::kBF16 ? (12 * layers + 6) / (512.0 * 512.0) : 0.0;
    const double e = std::sqrt((weight * weight + rounded * rounded + token * token) * 4 * layers + bf16);
    const double other_way = std::sqrt(4 * std::atan(4 * e) / std::numbers::pi);
    return {2 * e,  e / 4, 2 * e, std::min(4 * e, kAbsent), e / 2, 2.5 * e, std::min(other_way, kAbsent),
            1.5 * e};
  }
  static constexpr double kAbsent = 0.95;
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
