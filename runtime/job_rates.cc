#include "runtime/job_rates.h"

#include <map>

#include "runtime/evaluation.h"
#include "runtime/machine.h"

namespace pesc {

GemmRates measure_rates(const Job& job, Decoder& decoder, double seconds) {
  Communicator& world = job.ranks->world();
  world.barrier();
  const GemmRates mine = measured_gemm_rates(decoder.stream(), job.config.train.compute_dtype,
                                             decoder.parameters().frozen_gemm(), seconds);
  const std::vector<double> all = sum_over_ranks(world, {mine.compute, mine.fp8});
  return {all[0], all[1]};
}

GemmRates peak_rates(const Job& job) {
  if (job.device.kind != DeviceKind::kCuda) return {};
  Communicator& world = job.ranks->world();
  cuda::DeviceInfo mine;
  run_collectively(world, [&] { mine = cuda::device_info(job.device.index); });
  const std::vector<std::string> ids = world.host_all_gather(mine.id);
  const std::vector<std::string> names = world.host_all_gather(mine.name);
  std::map<std::string, std::string> boards;
  for (size_t i = 0; i < ids.size(); ++i) boards[ids[i]] = names[i];
  const auto sum = [&](DType type) {
    double rate = 0;
    for (const auto& [id, name] : boards) {
      const double peak = peak_flops(name, type);
      if (peak == 0) return 0.0;
      rate += peak;
    }
    return rate;
  };
  return {sum(job.config.train.compute_dtype), sum(DType::kE4M3)};
}

}  // namespace pesc
