// Tensor parallelism with sequence parallelism (Korthikanti et al., 2022): between blocks each rank of a tp
// group holds its slice of the tokens; column-parallel linears read all of them, row-parallel linears end in
// a reduce-scatter. The two collectives are each other's conjugate: the backward of one is the other.
//
// Token slices are equal: `padded` tokens = tp times ceil(tokens / tp). With tp = 1 nothing is copied or
// sent.
#pragma once

#include "parallel/communicator.h"

namespace pesc {

class TensorParallel {
 public:
  explicit TensorParallel(Communicator& tp) : tp_(tp) {}

  [[nodiscard]] int size() const { return tp_.size(); }
  [[nodiscard]] int rank() const { return tp_.rank(); }
  [[nodiscard]] Communicator& communicator() const { return tp_; }

  // slice [t, c] contiguous -> all [t * tp, c]. Returns `slice` itself when tp = 1, else `out`.
  Tensor gather(Stream& stream, const Tensor& slice, const Tensor& out) const;
  // partial [t * tp, c] contiguous -> sum over ranks of this rank's rows [t, c]. Returns `partial` itself
  // when tp = 1, else `out`.
  Tensor reduce_scatter(Stream& stream, const Tensor& partial, const Tensor& out) const;

  // The same, begun: they run under what the stream is given next, up to finish(stream). Their input and
  // output must stay as they are until then.
  Tensor start_gather(Stream& stream, const Tensor& slice, const Tensor& out) const;
  Tensor start_reduce_scatter(Stream& stream, const Tensor& partial, const Tensor& out) const;
  void finish(Stream& stream) const;

 private:
  Communicator& tp_;
};

}  // namespace pesc
