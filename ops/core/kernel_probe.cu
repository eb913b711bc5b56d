// Whether the kernels of this build can be had on the current GPU: all are compiled for the same
// architectures, so that one of them answers for all.
#include <cuda_runtime.h>

#include "ops/core/stream_cuda.h"

namespace pesc::cuda {
namespace {

__global__ void kernel_of_this_build() {}

}  // namespace

Kernels probe_kernels() {
  cudaFuncAttributes attributes{};
  const cudaError_t code = cudaFuncGetAttributes(&attributes, kernel_of_this_build);
  switch (code) {
    // No machine code for this GPU, and no PTX that its driver can or may turn into some.
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidKernelImage:
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      (void)cudaGetLastError();  // no later call's error
      return Kernels::kMissing;
    default:
      check(code, "cudaFuncGetAttributes of a kernel of this build", __FILE__, __LINE__);
      return Kernels::kPresent;
  }
}

}  // namespace pesc::cuda
