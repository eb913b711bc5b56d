// Samples and positions of tokens, on the host and on the GPU, for the tests of what is masked by them.
#pragma once

#include "ops/dropout.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {

struct Identities {
  std::vector<int64_t> samples;
  std::vector<int32_t> positions;
  ArrayOnGpu<int64_t> gpu_samples;
  ArrayOnGpu<int32_t> gpu_positions;

  Identities(Stream& gpu, int64_t tokens)
      : samples(make_samples(tokens)),
        positions(make_positions(tokens)),
        gpu_samples(gpu, samples),
        gpu_positions(gpu, positions) {}

  [[nodiscard]] Dropout on_cpu(float rate, int64_t column0 = 0) {
    const auto n = static_cast<int64_t>(samples.size());
    return mask(rate, tensor_of(samples.data(), 1, n), tensor_of(positions.data(), 1, n), column0);
  }
  [[nodiscard]] Dropout on_gpu(float rate, int64_t column0 = 0) const {
    return mask(rate, gpu_samples.view, gpu_positions.view, column0);
  }

 private:
  static std::vector<int64_t> make_samples(int64_t tokens) {
    std::vector<int64_t> out;
    for (int64_t t = 0; t < tokens; ++t) out.push_back((int64_t{7} << 33) * (t % 2) + 40 + t / 3);
    return out;
  }
  static std::vector<int32_t> make_positions(int64_t tokens) {
    std::vector<int32_t> out;
    for (int64_t t = 0; t < tokens; ++t) out.push_back(static_cast<int32_t>(t % 5 * 1000));
    return out;
  }
  static Dropout mask(float rate, const Tensor& samples, const Tensor& positions, int64_t column0) {
    Dropout d;
    d.rate = rate;
    d.seed = 0x123456789ABCDEF0;
    d.step = 77;
    d.layer = 13;
    d.site = DropoutSite::kGateUp;
    d.samples = samples;
    d.positions = positions;
    d.column0 = column0;
    return d;
  }
};

}  // namespace pesc
