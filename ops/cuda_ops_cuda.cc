#include "ops/cuda_ops.h"

namespace pesc {

const CudaOps& cuda_ops() {
#define PESC_ENTRY(name) .name = &cuda::name,
  static constexpr CudaOps table = {PESC_CUDA_OPS(PESC_ENTRY)};
#undef PESC_ENTRY
  return table;
}

}  // namespace pesc
