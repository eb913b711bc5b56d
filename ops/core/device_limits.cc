// What a GPU must be and have, as checks of what was read from it: see ops/core/cuda.h. In every build, so
// that they are tested without a GPU.
#include "ops/core/cuda.h"

namespace pesc::cuda {
namespace {

std::string gib(int64_t bytes) {
  std::ostringstream out;
  out.precision(2);
  out << std::fixed << static_cast<double>(bytes) / (1 << 30) << " GiB";
  return out.str();
}

std::string named(int index, const DeviceInfo& info) {
  return str_cat("GPU ", index, " (", info.name, ")");
}

}  // namespace

void check_capability(int index, const DeviceInfo& info) {
  if (info.major >= kMinimumMajor) return;
  throw UsageError(str_cat("parallel.device: CUDA: ", named(index, info), " has compute capability ",
                           info.major, ".", info.minor, ", and pesc needs ", kMinimumMajor,
                           ".0 or newer; use another GPU, or set parallel.device: CPU"));
}

void check_kernels(int index, const DeviceInfo& info, Kernels kernels) {
  if (kernels == Kernels::kPresent) return;
  throw UsageError(str_cat("parallel.device: CUDA: this pesc was not built for ", named(index, info),
                           ", which has compute capability ", info.major, ".", info.minor,
                           "; configure with -DCMAKE_CUDA_ARCHITECTURES=", info.major, info.minor,
                           " and build again, use another GPU, or set parallel.device: CPU"));
}

std::string too_little_memory(int index, const DeviceInfo& info, const std::string& what, int64_t bytes) {
  return str_cat(what, " needs ", gib(bytes), " of ", named(index, info), ", which has ",
                 gib(info.free_bytes), " free of ", gib(info.total_bytes));
}

void refuse_memory(int index, const DeviceInfo& info, const std::string& what, int64_t bytes) {
  throw UsageError(str_cat(too_little_memory(index, info, what, bytes),
                           "; use train.recompute_granularity, more train.gradient_accumulation_steps, a "
                           "smaller data.max_seq_length, or more ranks (tp, ep)"));
}

}  // namespace pesc::cuda
