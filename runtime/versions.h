// What results depend on besides the inputs: kept in every checkpoint.
#pragma once

#include <map>
#include <string>

#include "ops/core/device.h"

namespace pesc {

// pesc, compiler, instruction set of our kernels, GEMM library and its kernels, MPI.
[[nodiscard]] std::map<std::string, std::string> library_versions(const Device& device);

}  // namespace pesc
