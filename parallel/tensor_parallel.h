// Tensor parallelism with sequence parallelism (Korthikanti et al., 2022). Between blocks each rank of a tp
// group holds its slice of the tokens. A column-parallel linear all-gathers them first; a row-parallel linear
// ends with a reduce-scatter. The backward of one collective is the other.
//
// Token slices are equal: `padded` tokens = tp * ceil(tokens / tp). With tp = 1 nothing is copied or sent.
#pragma once

#include "parallel/communicator.h"

namespace pesc {

class TensorParallel {
 public:
  explicit TensorParallel(Communicator& tp) : tp_(tp) {}

  [[nodiscard]] int size() const { return tp_.size(); }
  [[nodiscard]] int rank() const { return tp_.rank(); }
  [[nodiscard]] Communicator& communicator() const { return tp_; }

  // All-gathers slice [t, c], contiguous, into out [t * tp, c]. Returns `out`, or `slice` itself when tp = 1.
  Tensor gather(Stream& stream, const Tensor& slice, const Tensor& out) const;
  // Reduce-scatters partial [t * tp, c], contiguous: out [t, c] is written with the sum over ranks of this
  // rank's rows. Returns `out`, or `partial` itself when tp = 1.
  Tensor reduce_scatter(Stream& stream, const Tensor& partial, const Tensor& out) const;

  // The asynchronous forms: the collective overlaps with the work enqueued on `stream` before finish(stream),
  // which makes `stream` wait for it. REQUIRES: until then nothing writes the input, and nothing reads or
  // writes the output.
  Tensor start_gather(Stream& stream, const Tensor& slice, const Tensor& out) const;
  Tensor start_reduce_scatter(Stream& stream, const Tensor& partial, const Tensor& out) const;
  void finish(Stream& stream) const;

 private:
  Communicator& tp_;
};

}  // namespace pesc
