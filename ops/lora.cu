// The LoRA down projection on a GPU, step by step as on the CPU: with dropout the masked input is made in
// scratch, of the input's element type (again in the backward, from the same counters). x, a, out and dx have
// one element type; da is F32. T tokens, I input columns, R stacked rank.
#include "ops/core/launch.cuh"
#include "ops/cuda_ops.h"
#include "ops/lora.h"

namespace pesc::cuda {
namespace {

void check(const Tensor& x, const Tensor& a, const Tensor& out) {
  PESC_CHECK(x.cols == a.cols && out.rows == x.rows && out.cols == a.rows, "x ", x.rows, "x", x.cols, ", a ",
             a.rows, "x", a.cols, ", out ", out.rows, "x", out.cols);
  PESC_CHECK(a.dtype == x.dtype && out.dtype == x.dtype, "x is ", dtype_name(x.dtype), ", a ",
             dtype_name(a.dtype), ", out ", dtype_name(out.dtype));
}

// dropout(x): x itself when nothing is dropped.
Tensor masked_input(Stream& stream, const Dropout& mask, const Tensor& x, Arena& scratch) {
  if (mask.rate == 0 || x.rows == 0) return x;
  const Tensor masked = scratch.allocate(x.rows, x.cols, x.dtype);
  cuda::dropout(stream, mask, x, masked);
  return masked;
}

}  // namespace

void lora_down_forward(Stream& stream, const LoraDownForward& args, Arena& scratch) {
  check(args.x, args.a, args.out);
  Arena::Scope scope(scratch);
  const Tensor x = masked_input(stream, args.dropout, args.x, scratch);
  pesc::linear_forward(stream, x, args.a, args.out, args.scale);
}

void lora_down_backward(Stream& stream, const LoraDownBackward& args, Arena& scratch) {
  check(args.x, args.a, args.dout);
  PESC_CHECK(args.da.dtype == DType::kF32, "da is ", dtype_name(args.da.dtype));
  if (args.x.rows == 0) return;
  Arena::Scope scope(scratch);
  const Tensor x = masked_input(stream, args.dropout, args.x, scratch);
  pesc::linear_backward_weight(stream, args.dout, x, args.da, args.scale);
  if (!args.dx.present()) return;
  PESC_CHECK(args.dx.dtype == args.x.dtype, "dx is ", dtype_name(args.dx.dtype), ", x ",
             dtype_name(args.x.dtype));
  if (args.dropout.rate == 0) {
    pesc::linear_backward_input(stream, args.dout, args.a, args.dx, args.scale, 1.0F);
    return;
  }
  // The masked input is done with: its scratch takes the gradient before the mask.
  pesc::linear_backward_input(stream, args.dout, args.a, x, args.scale);
  cuda::dropout_add(stream, args.dropout, x, args.dx);
}

}  // namespace pesc::cuda
