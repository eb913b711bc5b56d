// The FLOP/s of all ranks of a job: what the speed of light and MFU of its steps are shares of.
#pragma once

#include "runtime/gemm_rate.h"
#include "runtime/job.h"

namespace pesc {

// The sum over all ranks of measured_gemm_rates, of so many seconds for each rate. Collective.
[[nodiscard]] GemmRates measure_rates(const Job& job, Decoder& decoder, double seconds);

// By their data sheets, of the GPUs that the ranks use, one that several ranks share counted once. A rate is 0
// where that of one is not known, and on the CPU. Collective.
[[nodiscard]] GemmRates peak_rates(const Job& job);

}  // namespace pesc
