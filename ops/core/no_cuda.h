// What a build without CUDA says when it is asked for a GPU.
#pragma once

#include "ops/core/check.h"

namespace pesc::cuda {

[[noreturn]] inline void refuse() {
  throw UsageError(
      "parallel.device: CUDA: this pesc was built without CUDA; install the CUDA toolkit, configure again "
      "(CMake says whether it found nvcc) and build, or set parallel.device: CPU");
}

}  // namespace pesc::cuda
