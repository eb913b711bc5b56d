#include "runtime/machine.h"

#include <strings.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>

#include "ops/core/check.h"
#include "ops/core/cuda.h"

namespace pesc {
namespace {

struct Gpu {
  const char* name;
  double bf16_gemm, bf16_attention;  // TFLOP/s
  double fp8_gemm;                   // TFLOP/s; 0 where the FP8 GEMMs do not run (ops/fp8_gemm.h)
  double f32_gemm, f32_attention;    // TFLOP/s, without TF32
  double memory, link;               // GB/s
  double usable;                     // GiB
};
// H200: measured (tests/gpu/bench_against_plan.py holds it to 15 %). The others: the same shares of their
// data sheets' peaks, which are 0.67 of the GEMMs' FLOP/s (0.77 on A100, which keeps its clock), 0.79 of
// the memory's and 0.67 of NVLink's rate in one direction. Usable memory is what the driver reports to
// programs.
constexpr std::array<Gpu, 5> kGpus{{{"A100-40", 240, 145, 0, 15, 4, 1230, 200, 39.4},
                                    {"A100-80", 240, 145, 0, 15, 4, 1610, 200, 79.2},
                                    {"H100-80", 650, 390, 1200, 45, 10, 2650, 300, 79.6},
                                    {"H200-141", 660, 400, 1220, 45, 10, 3800, 300, 139},
                                    {"B200-180", 1500, 900, 0, 50, 11, 6300, 600, 178}}};

// TFLOP/s of one GPU in NVIDIA's data sheets: BF16 and FP8 on tensor cores and FP32 without them; 0 where it has
// no FP8. Where a sheet gives them with sparsity alone, the figure is half of it. Of the rows whose name is in the
// device's, the first one counts.
struct Peak {
  std::string_view name;
  double bf16, f32, fp8;
};
constexpr std::array<Peak, 8> kPeaks{{
    {"A100", 312, 19.5, 0},        // "NVIDIA A100 Tensor Core GPU", 40 and 80 GB, PCIe and SXM
    {"H100 PCIe", 756, 51, 1513},  // "NVIDIA H100 Tensor Core GPU" of 2022, H100 PCIe: 1513 with sparsity
    {"H100 NVL", 835, 60, 1671},   // "NVIDIA H100 Tensor Core GPU" of 2024, H100 NVL: 1671 with sparsity
    {"H100", 989, 67, 1979},       // the same, H100 SXM: 1979 with sparsity
    {"H200 NVL", 835, 60, 1671},   // "NVIDIA H200 Tensor Core GPU", H200 NVL: 1671 with sparsity
    {"H200", 989, 67, 1979},       // the same, H200 SXM: 1979 with sparsity
    {"GB200", 2500, 80, 5000},     // "NVIDIA Blackwell", a GPU of GB200 NVL72: 5000 with sparsity
    {"B200", 2250, 75, 4500},      // the same, a GPU of HGX B200: 4500 with sparsity
}};

const Gpu& gpu(const std::string& name) {
  const auto found = std::find_if(kGpus.begin(), kGpus.end(),
                                  [&](const Gpu& g) { return strcasecmp(g.name, name.c_str()) == 0; });
  if (found != kGpus.end()) return *found;
  std::string all;
  for (const Gpu& g : kGpus) all += str_cat(all.empty() ? "" : ", ", g.name);
  throw UsageError(str_cat("--gpu: there is no GPU '", name, "' in the table; name one of ", all,
                           ", or give the figures of yours with --device_gib, --gemm_tflops, --memory_gbs "
                           "and --link_gbs"));
}

// The number in a file of a control group; 0: no limit, or no such file.
double limit_in(const std::string& path) {
  std::ifstream in(path);
  double bytes = 0;
  if (!(in >> bytes)) return 0;     // "max"
  return bytes < 1e18 ? bytes : 0;  // version 1 writes the largest number for "no limit"
}

}  // namespace

std::vector<std::string> gpu_names() {
  std::vector<std::string> names;
  for (const Gpu& g : kGpus) names.emplace_back(g.name);
  return names;
}

std::string known_gpu(const std::string& name) {
  return gpu(name).name;
}

MachineRates gpu_rates(const std::string& name, DType compute) {
  const Gpu& g = gpu(name);
  const bool narrow = compute == DType::kBF16;
  return {1e12 * (narrow ? g.bf16_gemm : g.f32_gemm),
          1e12 * g.fp8_gemm,
          peak_flops(g.name, compute),
          peak_flops(g.name, DType::kE4M3),
          1e12 * (narrow ? g.bf16_attention : g.f32_attention),
          1e9 * g.memory,
          1e9 * g.link,
          kGiB * g.usable};
}

double peak_flops(std::string_view device, DType compute) {
  if (device.find("MIG") != std::string_view::npos) return 0;  // a part of a GPU
  for (const Peak& p : kPeaks) {
    const size_t at = device.find(p.name);
    if (at == std::string_view::npos) continue;
    const std::string_view rest = device.substr(at + p.name.size());
    if (!rest.empty() && rest.front() >= '0' && rest.front() <= '9') continue;  // A1000
    return 1e12 * (compute == DType::kE4M3 ? p.fp8 : compute == DType::kBF16 ? p.bf16 : p.f32);
  }
  return 0;
}

MachineRates cpu_rates(int threads) {
  const double n = std::max(threads, 1);
  return {80e9 * n, 0, 0, 0, 30e9 * n, 8e9 * n, 3e9, 0};
}

double host_memory() {
  double bytes = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  const auto bound = [&](double limit) {
    if (limit > 0) bytes = bytes > 0 ? std::min(bytes, limit) : limit;
  };
  // "0::/path" names the group of version 2, "N:memory:/path" that of version 1. A limit of any group above
  // counts too.
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && controllers != "memory") continue;
    const std::string root = controllers.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    const char* file = controllers.empty() ? "/memory.max" : "/memory.limit_in_bytes";
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    while (true) {
      bound(limit_in(root + path + file));
      if (path.empty()) break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  return std::max(bytes, 0.0);
}

int64_t memory_in_use(const Device& device) {
  if (device.kind == DeviceKind::kCuda) return cuda::memory_in_use(device.index);
  // Pages: the size of the process, and what of it is resident.
  std::ifstream in("/proc/self/statm");
  int64_t size = 0, resident = 0;
  return in >> size >> resident ? resident * sysconf(_SC_PAGESIZE) : 0;
}

}  // namespace pesc
