// Gather and reduce-scatter of token slices; see tensor_parallel.h.
#include "parallel/tensor_parallel.h"

namespace pesc {
namespace {

void check_shapes(const Tensor& slice, const Tensor& all, int size) {
  PESC_CHECK(slice.contiguous() && all.contiguous(), "token slices are contiguous");
  PESC_CHECK(all.rows == slice.rows * size && all.cols == slice.cols && all.dtype == slice.dtype, "slice [",
             slice.rows, ", ", slice.cols, "] and all [", all.rows, ", ", all.cols, "] over ", size,
             " ranks");
}

}  // namespace

Tensor TensorParallel::gather(Stream& stream, const Tensor& slice, const Tensor& out) const {
  if (size() == 1) return slice;
  check_shapes(slice, out, size());
  const PhaseScope phase(stream, Phase::kCommunication);
  tp_.all_gather(stream, slice, out);
  return out;
}

Tensor TensorParallel::reduce_scatter(Stream& stream, const Tensor& partial, const Tensor& out) const {
  if (size() == 1) return partial;
  check_shapes(out, partial, size());
  const PhaseScope phase(stream, Phase::kCommunication);
  tp_.reduce_scatter(stream, partial, out);
  return out;
}

}  // namespace pesc
