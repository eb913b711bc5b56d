// The LoRA down projection on the CPU. With dropout the masked input is made in scratch (again in the
// backward, from the same counters); without dropout the products read x where it stands and no scratch is
// used. T tokens, I input columns, R stacked rank.
#include "ops/lora.h"

#include "ops/cuda_ops.h"
#include "ops/gemm.h"

namespace pesc {
namespace {

void check(const Tensor& x, const Tensor& a, const Tensor& out) {
  PESC_CHECK(x.cols == a.cols && out.rows == x.rows && out.cols == a.rows, "x ", x.rows, "x", x.cols, ", a ",
             a.rows, "x", a.cols, ", out ", out.rows, "x", out.cols);
}

// dropout(x): x itself when nothing is dropped.
Tensor masked_input(Stream& stream, const Dropout& mask, const Tensor& x, Arena& scratch) {
  if (mask.rate == 0 || x.rows == 0) return x;
  const Tensor masked = scratch.allocate(x.rows, x.cols);
  dropout(stream, mask, x, masked);
  return masked;
}

}  // namespace

void lora_down_forward(Stream& stream, const LoraDownForward& args, Arena& scratch) {
  if (stream.on_cuda()) return cuda_ops().lora_down_forward(stream, args, scratch);
  check(args.x, args.a, args.out);
  Arena::Scope scope(scratch);
  const Tensor x = masked_input(stream, args.dropout, args.x, scratch);
  linear_forward(stream, x, args.a, args.out, args.scale);
}

void lora_down_backward(Stream& stream, const LoraDownBackward& args, Arena& scratch) {
  if (stream.on_cuda()) return cuda_ops().lora_down_backward(stream, args, scratch);
  check(args.x, args.a, args.dout);
  if (args.x.rows == 0) return;
  Arena::Scope scope(scratch);
  const Tensor x = masked_input(stream, args.dropout, args.x, scratch);
  linear_backward_weight(stream, args.dout, x, args.da, args.scale);
  if (!args.dx.present()) return;
  if (args.dropout.rate == 0) {
    linear_backward_input(stream, args.dout, args.a, args.dx, args.scale, 1.0F);
    return;
  }
  // The masked input is done with: its scratch takes the gradient before the mask.
  linear_backward_input(stream, args.dout, args.a, x, args.scale);
  dropout_add(stream, args.dropout, x, args.dx);
}

int64_t lora_scratch_bytes(const Device& /*device*/, int64_t tokens, int64_t columns, DType activations) {
  Arena arena = Arena::planning("lora scratch");
  (void)arena.allocate(tokens, columns, activations);
  return arena.peak();
}

}  // namespace pesc
