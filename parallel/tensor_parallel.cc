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

Tensor TensorParallel::start_gather(Stream& stream, const Tensor& slice, const Tensor& out) const {
  if (size() == 1) return slice;
  check_shapes(slice, out, size());
  Stream& comm_stream = stream.comm_stream();
  const PhaseScope phase(comm_stream, Phase::kCommunication);
  comm_stream.wait_stream(stream);
  tp_.all_gather(comm_stream, slice, out);
  return out;
}

Tensor TensorParallel::start_reduce_scatter(Stream& stream, const Tensor& partial, const Tensor& out) const {
  if (size() == 1) return partial;
  check_shapes(out, partial, size());
  Stream& comm_stream = stream.comm_stream();
  const PhaseScope phase(comm_stream, Phase::kCommunication);
  comm_stream.wait_stream(stream);
  tp_.reduce_scatter(comm_stream, partial, out);
  return out;
}

void TensorParallel::finish(Stream& stream) const {
  if (size() > 1) stream.wait_stream(stream.comm_stream());
}

Tensor TensorParallel::gather(Stream& stream, const Tensor& slice, const Tensor& out) const {
  const Tensor all = start_gather(stream, slice, out);
  finish(stream);
  return all;
}

Tensor TensorParallel::reduce_scatter(Stream& stream, const Tensor& partial, const Tensor& out) const {
  const Tensor own = start_reduce_scatter(stream, partial, out);
  finish(stream);
  return own;
}

}  // namespace pesc
