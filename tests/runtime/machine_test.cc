// The GPUs that can be planned for, and this host's memory.
#include "runtime/machine.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <utility>

#include "ops/core/check.h"

namespace pesc {
namespace {

TEST(Machine, EveryGpuHasAllFigures) {
  EXPECT_EQ(gpu_names(), (std::vector<std::string>{"A100-40", "A100-80", "H100-80", "H200-141", "B200-180"}));
  double before = 0;
  for (const std::string& name : gpu_names()) {
    SCOPED_TRACE(name);
    const MachineRates narrow = gpu_rates(name, DType::kBF16);
    const MachineRates wide = gpu_rates(name, DType::kF32);
    EXPECT_GT(narrow.gemm, 10 * wide.gemm);
    EXPECT_GT(narrow.gemm, narrow.attention);
    EXPECT_GT(wide.gemm, wide.attention);
    EXPECT_GT(wide.attention, 0);
    // No GEMM reaches the data sheet.
    EXPECT_GT(narrow.peak, narrow.gemm);
    EXPECT_GT(wide.peak, wide.gemm);
    EXPECT_LT(narrow.peak, 2 * narrow.gemm);
    EXPECT_GT(narrow.memory, narrow.link);
    EXPECT_EQ(narrow.memory, wide.memory);
    // Programs get less than the name says, which is in GB, and no less than 96 % of it.
    const double nominal = std::stod(name.substr(name.find('-') + 1));
    EXPECT_LT(narrow.device_memory, nominal * kGiB);
    EXPECT_GT(narrow.device_memory, 0.96 * nominal * 1e9);
    EXPECT_GE(narrow.device_memory, before);  // the table rises
    before = narrow.device_memory;
    // The FP8 GEMMs are for Hopper, whatever the data sheets of others say.
    EXPECT_EQ(narrow.fp8_gemm > 0, name[0] == 'H');
    EXPECT_EQ(narrow.fp8_peak > 0, name[0] != 'A');
    if (narrow.fp8_gemm > 0) {
      EXPECT_GT(narrow.fp8_gemm, 1.7 * narrow.gemm);
      EXPECT_LT(narrow.fp8_gemm, narrow.fp8_peak);
    }
  }
  EXPECT_EQ(gpu_rates("H200-141", DType::kBF16).device_memory, 139 * kGiB);
  EXPECT_DOUBLE_EQ(gpu_rates("H100-80", DType::kBF16).device_memory, 79.6 * kGiB);
}

TEST(Machine, NamesInAnyCaseAndRefusesOthersWithTheList) {
  EXPECT_EQ(known_gpu("h100-80"), "H100-80");
  EXPECT_EQ(known_gpu(kAssumedGpu), kAssumedGpu);
  for (const std::string name : {"H100", "RTX4090", "", "H200-141 "}) {
    try {
      (void)known_gpu(name);
      ADD_FAILURE() << "'" << name << "' was taken";
    } catch (const UsageError& e) {
      const std::string said = e.what();
      EXPECT_NE(said.find("'" + name + "'"), std::string::npos) << said;
      EXPECT_NE(said.find("A100-40, A100-80, H100-80, H200-141, B200-180"), std::string::npos) << said;
      EXPECT_NE(said.find("--device_gib"), std::string::npos) << said;
    }
  }
}

TEST(Machine, ThePeakIsThatOfTheDriversNameOrNotKnown) {
  for (const auto& [device, tflops] :
       std::initializer_list<std::pair<const char*, double>>{{"NVIDIA A100-SXM4-80GB", 312},
                                                             {"NVIDIA A100 80GB PCIe", 312},
                                                             {"NVIDIA H100 80GB HBM3", 989},
                                                             {"NVIDIA H100 PCIe", 756},
                                                             {"NVIDIA H100 NVL", 835},
                                                             {"NVIDIA H200", 989},
                                                             {"NVIDIA H200 NVL", 835},
                                                             {"NVIDIA B200", 2250},
                                                             {"NVIDIA GB200", 2500},
                                                             {"NVIDIA RTX A1000", 0},
                                                             {"NVIDIA H200 MIG 1g.18gb", 0},
                                                             {"NVIDIA GeForce RTX 4090", 0},
                                                             {"", 0}})
    EXPECT_DOUBLE_EQ(peak_flops(device, DType::kBF16), 1e12 * tflops) << device;
  EXPECT_DOUBLE_EQ(peak_flops("NVIDIA H200", DType::kF32), 67e12);
  EXPECT_DOUBLE_EQ(peak_flops("NVIDIA B200", DType::kF32), 75e12);
  EXPECT_DOUBLE_EQ(peak_flops("NVIDIA H200", DType::kE4M3), 1979e12);
  EXPECT_DOUBLE_EQ(peak_flops("NVIDIA H100 NVL", DType::kE4M3), 1671e12);
  EXPECT_EQ(peak_flops("NVIDIA A100-SXM4-80GB", DType::kE4M3), 0);
  EXPECT_EQ(cpu_rates(4).peak, 0);
  EXPECT_EQ(cpu_rates(4).fp8_gemm, 0);
}

TEST(Machine, TheRatesOfACpuGrowWithItsThreads) {
  EXPECT_DOUBLE_EQ(cpu_rates(8).gemm, 8 * cpu_rates(1).gemm);
  EXPECT_EQ(cpu_rates(0).gemm, cpu_rates(1).gemm);
  EXPECT_EQ(cpu_rates(8).device_memory, 0);
}

TEST(Machine, ThisHostHasMemory) {
  EXPECT_GT(host_memory(), 0.1 * kGiB);
  EXPECT_LT(host_memory(), 1e6 * kGiB);
}

}  // namespace
}  // namespace pesc
