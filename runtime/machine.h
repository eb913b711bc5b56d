// The machines that runs are planned for: rates and memory of GPUs by name, of a CPU, and of this host.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/device.h"

namespace pesc {

inline constexpr double kGiB = 1024.0 * 1024 * 1024;

// Of one rank. FLOP/s, bytes/s, bytes.
struct MachineRates {
  double gemm = 0;           // large GEMMs in the compute type
  double fp8_gemm = 0;       // large FP8 GEMMs with fast accumulation; 0: pesc does not multiply FP8 there
  double peak = 0;           // of the data sheet, as peak_flops
  double fp8_peak = 0;       // the same in FP8
  double attention = 0;      // causal attention, forward and backward
  double memory = 0;         // reading and writing device memory
  double link = 0;           // sending to another rank
  double device_memory = 0;  // of a rank's device, as far as programs can use it; 0: not known
};

// "A100-40", "H200-141", ...: the GPU and its nominal memory in GB.
[[nodiscard]] std::vector<std::string> gpu_names();
// What a plan assumes where nobody names a GPU.
inline constexpr const char* kAssumedGpu = "H200-141";
// The table's name of a GPU, whatever the case of the letters. Throws UsageError with all names.
[[nodiscard]] std::string known_gpu(const std::string& name);
// Of a rank that has such a GPU to itself. Throws as known_gpu.
[[nodiscard]] MachineRates gpu_rates(const std::string& name, DType compute);

// FLOP/s that the data sheet of a GPU gives for dense GEMMs in BF16, FP8 (E4M3), or F32 without TF32: what MFU
// is a share of. `device` is a name of the table or the driver's ("NVIDIA H200"). 0: not known.
[[nodiscard]] double peak_flops(std::string_view device, DType compute);

// Two thirds of a core of a 2024 server for each thread. No memory: a host's is shared by its ranks.
[[nodiscard]] MachineRates cpu_rates(int threads);

// Bytes of memory that all processes of this host, or of the container that this one runs in, can have in
// sum; 0 where that is not known.
[[nodiscard]] double host_memory();

// Bytes that are taken of the device's memory: of a GPU by all processes, of the host by this one. 0: not known.
[[nodiscard]] int64_t memory_in_use(const Device& device);

}  // namespace pesc
