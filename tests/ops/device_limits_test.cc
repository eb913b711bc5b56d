// The refusals of a GPU that pesc cannot use, which need no GPU: each names it and says what to do.
#include <gtest/gtest.h>

#include "ops/core/cuda.h"

namespace pesc {
namespace {

cuda::DeviceInfo gpu(const std::string& name, int major, int minor) {
  cuda::DeviceInfo info;
  info.name = name;
  info.major = major;
  info.minor = minor;
  info.total_bytes = int64_t{80} << 30;
  info.free_bytes = int64_t{79} << 30;
  return info;
}

template <class Check>
void expect_refusal(Check check, const std::vector<std::string>& words) {
  try {
    check();
    ADD_FAILURE() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    const std::string said = e.what();
    for (const std::string& word : words)
      EXPECT_NE(said.find(word), std::string::npos) << word << ": " << said;
    EXPECT_EQ(said.find('\n'), std::string::npos) << said;
  }
}

TEST(DeviceLimits, AGpuThatIsTooOldIsRefusedByName) {
  expect_refusal([] { cuda::check_capability(3, gpu("Tesla V100", 7, 0)); },
                 {"parallel.device", "GPU 3", "Tesla V100", "7.0", "needs 8.0", "use another GPU", "CPU"});
  expect_refusal([] { cuda::check_capability(0, gpu("Turing", 7, 5)); }, {"GPU 0", "Turing", "7.5"});
  for (const int major : {8, 9, 10, 12}) EXPECT_NO_THROW(cuda::check_capability(0, gpu("new", major, 0)));
}

TEST(DeviceLimits, KernelsOfAnotherArchitecture) {
  expect_refusal(
      [] { cuda::check_kernels(1, gpu("NVIDIA A100", 8, 0), cuda::Kernels::kMissing); },
      {"parallel.device", "GPU 1", "NVIDIA A100", "8.0", "-DCMAKE_CUDA_ARCHITECTURES=80 ", "build", "CPU"});
  expect_refusal([] { cuda::check_kernels(0, gpu("NVIDIA B300", 10, 3), cuda::Kernels::kMissing); },
                 {"10.3", "-DCMAKE_CUDA_ARCHITECTURES=103 "});
  EXPECT_NO_THROW(cuda::check_kernels(0, gpu("NVIDIA A100", 8, 0), cuda::Kernels::kPresent));
}

TEST(DeviceLimits, AGpuWithTooLittleMemoryIsRefusedWithAWayOut) {
  const cuda::DeviceInfo info = gpu("NVIDIA H100", 9, 0);
  expect_refusal(
      [&] { cuda::refuse_memory(2, info, "this rank's model", info.free_bytes + (int64_t{1} << 29)); },
      {"this rank's model needs 79.50 GiB of GPU 2 (NVIDIA H100)", "79.00 GiB free of 80.00 GiB",
       "train.recompute_granularity", "train.gradient_accumulation_steps", "data.max_seq_length",
       "more ranks"});
  // An allocation may fail though the figures say that it fits: memory in pieces.
  expect_refusal([&] { cuda::refuse_memory(0, info, "the weights", int64_t{1} << 30); },
                 {"the weights needs 1.00 GiB", "79.00 GiB free"});
}

// Without CUDA, and without a GPU, whatever asks for one is told so.
TEST(DeviceLimits, AGpuThatIsNotThereIsRefused) {
  if (cuda::device_count() > 0) {
    expect_refusal([] { (void)cuda::device_info(cuda::device_count()); },
                   {"parallel.device", "was asked for", "one rank per GPU"});
    return;
  }
  const std::string why = cuda::built() ? "no GPU that CUDA can use" : "built without CUDA";
  expect_refusal([] { (void)cuda::device_info(0); }, {"parallel.device", why, "CPU"});
  expect_refusal([] { (void)cuda::open({DeviceKind::kCuda, 0, 1}); }, {"parallel.device", why, "CPU"});
}

}  // namespace
}  // namespace pesc
