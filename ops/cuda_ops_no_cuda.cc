// A build without CUDA: see ops/cuda_ops.h.
#include "ops/core/no_cuda.h"
#include "ops/cuda_ops.h"

namespace pesc {

const CudaOps& cuda_ops() {
  cuda::refuse();
}

}  // namespace pesc
