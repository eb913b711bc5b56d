// The CPU operation as the twin of the GPU one: the same inputs go to both, and the outputs are compared.
// With bf16 the CPU gets the inputs after rounding, so that what is left is the GPU's own rounding. Tests
// derive from GpuTwin, which skips them, saying so, where there is no GPU.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "ops/core/arena.h"
#include "tests/ops/host_matrix.h"

namespace pesc {

// To nearest, ties to even, as the GPU rounds.
[[nodiscard]] inline uint16_t to_bf16(float v) {
  const auto bits = std::bit_cast<uint32_t>(v);
  if (std::isnan(v)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
[[nodiscard]] inline float from_bf16(uint16_t v) {
  return std::bit_cast<float>(static_cast<uint32_t>(v) << 16);
}

// The values that a tensor of that type holds.
[[nodiscard]] inline HostMatrix rounded(const HostMatrix& m, DType t) {
  HostMatrix out = m;
  if (t == DType::kBF16)
    for (float& v : out.data) v = from_bf16(to_bf16(v));
  return out;
}

// A matrix in GPU memory with the row stride and the gaps of a host one.
class OnGpu {
 public:
  OnGpu(Stream& gpu, const HostMatrix& m, DType t = DType::kF32)
      : stream_(gpu),
        memory_("test", gpu.device(),
                std::max<int64_t>(1, static_cast<int64_t>(m.data.size())) * dtype_bytes(t)),
        flat_(memory_.allocate(1, static_cast<int64_t>(m.data.size()), t)) {
    view = {flat_.data, t, m.view.rows, m.view.cols, m.view.ld};
    if (t == DType::kF32) {
      copy_from_host(gpu, m.data.data(), flat_);
    } else {
      std::vector<uint16_t> half;
      for (const float v : m.data) half.push_back(to_bf16(v));
      copy_from_host(gpu, half.data(), flat_);
    }
  }
  Tensor view;

  [[nodiscard]] HostMatrix host() const {
    HostMatrix out(view.rows, view.cols, view.ld - view.cols);
    if (view.dtype == DType::kF32) {
      copy_to_host(stream_, flat_, out.data.data());
    } else {
      std::vector<uint16_t> half(out.data.size());
      copy_to_host(stream_, flat_, half.data());
      for (size_t i = 0; i < half.size(); ++i) out.data[i] = from_bf16(half[i]);
    }
    return out;
  }

 private:
  Stream& stream_;
  Arena memory_;
  Tensor flat_;
};

// A contiguous array of integers or doubles in GPU memory.
template <class T>
class ArrayOnGpu {
 public:
  ArrayOnGpu(Stream& gpu, const std::vector<T>& values, int64_t rows, int64_t cols)
      : stream_(gpu),
        memory_("test", gpu.device(), std::max<int64_t>(1, rows * cols) * int64_t{sizeof(T)}),
        view(memory_.allocate(rows, cols, kType)) {
    PESC_CHECK(static_cast<int64_t>(values.size()) == rows * cols, values.size(), " values");
    copy_from_host(gpu, values.data(), view);
  }
  ArrayOnGpu(Stream& gpu, const std::vector<T>& values)
      : ArrayOnGpu(gpu, values, 1, static_cast<int64_t>(values.size())) {}
  [[nodiscard]] std::vector<T> host() const {
    std::vector<T> out(static_cast<size_t>(view.size()));
    copy_to_host(stream_, view, out.data());
    return out;
  }

 private:
  static constexpr DType kType = std::is_same_v<T, int32_t>   ? DType::kI32
                                 : std::is_same_v<T, int64_t> ? DType::kI64
                                                              : DType::kF64;
  Stream& stream_;
  Arena memory_;

 public:
  Tensor view;
};

// Equal to the last bit, signs of zero and NaNs too.
[[nodiscard]] inline bool same_bits(const HostMatrix& a, const HostMatrix& b) {
  return std::equal(a.data.begin(), a.data.end(), b.data.begin(), b.data.end(), [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  });
}

using Outputs = std::vector<HostMatrix>;

class GpuTwin : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda::built()) GTEST_SKIP() << "no GPU test: this pesc was built without CUDA";
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU test: this machine has no GPU";
    gpu_ = std::make_unique<Stream>(Device{.kind = DeviceKind::kCuda});
  }

  [[nodiscard]] Stream& gpu() { return *gpu_; }
  Stream cpu{Device{.threads = 2}};

  // Scratch of that many bytes on the GPU, and on the CPU.
  [[nodiscard]] Arena scratch(int64_t bytes) { return {"scratch", gpu_->device(), bytes}; }
  [[nodiscard]] static Arena host_scratch(int64_t bytes) { return {"scratch", Device{}, bytes}; }

  // What one rounding of a result costs at most, relative to the largest: bf16 has eight bits, so that half a
  // unit in the last place is 2^-8 of a power of two.
  [[nodiscard]] static double bound(DType t) { return t == DType::kBF16 ? 1.0 / 256 : 1e-5; }

  // `run` returns the GPU's outputs; it runs twice, and both must be the same bits. They must agree with
  // `want` within `tolerance` of the largest, and leave the gaps between rows alone.
  template <class Run>
  void compare(const std::string& what, const Run& run, const Outputs& want, double tolerance) {
    const Outputs got = run();
    const Outputs again = run();
    ASSERT_EQ(got.size(), want.size()) << what;
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_LE(relative_error(got[i].values(), want[i].values()), tolerance) << what << ", output " << i;
      EXPECT_TRUE(got[i].gaps_untouched()) << what << ", output " << i;
      EXPECT_TRUE(same_bits(got[i], again[i])) << what << ", output " << i << " of a second run";
    }
  }

 private:
  std::unique_ptr<Stream> gpu_;
};

[[nodiscard]] inline std::string shape_name(DType t, int64_t rows, int64_t cols, int64_t gap) {
  return str_cat(dtype_name(t), " ", rows, "x", cols, " gap ", gap);
}

}  // namespace pesc
