// FP8 GEMMs are refused by name where a GPU has none, and where ranks' GPUs would not do the same.
#include "runtime/decoder_options.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "ops/core/check.h"

namespace pesc {
namespace {

template <class F>
std::string refusal(F&& call) {
  try {
    call();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

cuda::DeviceInfo gpu(const std::string& name, int major, int minor) {
  cuda::DeviceInfo info;
  info.name = name;
  info.major = major;
  info.minor = minor;
  return info;
}

void expect_all(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
}

TEST(Fp8Gemms, Fp8GemmsAreRefusedOnAGpuThatHasNone) {
  ExperimentConfig config;
  config.train.frozen_gemm = FrozenGemm::kFP8;
  for (const auto& info : {gpu("NVIDIA A100", 8, 0), gpu("NVIDIA L40", 8, 9), gpu("NVIDIA B200", 10, 0)}) {
    expect_all(refusal([&] { check_fp8(config, 3, info); }),
               {"train.compute_dtype is FP8", "GPU 3 (" + info.name + ")", "set it to BF16"});
  }
  EXPECT_EQ(refusal([&] { check_fp8(config, 0, gpu("NVIDIA H100", 9, 0)); }), "");
  for (const std::optional<FrozenGemm> other :
       {std::optional(FrozenGemm::kDequantized), std::optional<FrozenGemm>()}) {
    config.train.frozen_gemm = other;
    EXPECT_EQ(refusal([&] { check_fp8(config, 0, gpu("NVIDIA A100", 8, 0)); }), "");
  }
}

TEST(Fp8Gemms, AllRanksMultiplyAlike) {
  for (const std::vector<int64_t>& alike : {std::vector<int64_t>{}, {0}, {1}, {0, 0, 0}, {1, 1, 1}})
    EXPECT_EQ(refusal([&] { check_same_gemms(alike); }), "");
  const std::vector<int64_t> third{1, 1, 0, 1}, first{0, 1};
  expect_all(refusal([&] { check_same_gemms(third); }),
             {"the GPU of rank 1 would multiply them in FP8, that of rank 2 in BF16",
              "set train.compute_dtype: BF16"});
  expect_all(refusal([&] { check_same_gemms(first); }),
             {"rank 1 would multiply them in FP8, that of rank 0"});
}

}  // namespace
}  // namespace pesc
