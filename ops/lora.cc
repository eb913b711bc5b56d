// The A projection of LoRA in GEMMs and dropout ops, the same on every device. With dropout the backward
// recomputes dropout(x) in scratch from the same counters, and then overwrites it with the gradient before
// the mask.
#include "ops/lora.h"

#include "ops/gemm.h"

namespace pesc {
namespace {

void check(const Tensor& x, const Tensor& a, const Tensor& out) {
  PESC_CHECK(x.cols == a.cols && out.rows == x.rows && out.cols == a.rows, "x ", x.rows, "x", x.cols, ", a ",
             a.rows, "x", a.cols, ", out ", out.rows, "x", out.cols);
  PESC_CHECK(a.dtype == x.dtype && out.dtype == x.dtype, "x is ", dtype_name(x.dtype), ", a ",
             dtype_name(a.dtype), ", out ", dtype_name(out.dtype));
}

}  // namespace

void lora_down_forward(Stream& stream, const LoraDownForward& args) {
  check(args.dropped, args.a, args.out);
  linear_forward(stream, args.dropped, args.a, args.out, args.scale);
}

void lora_weight_gradient(Stream& stream, const LoraBranch& branch, const Tensor& dropped) {
  check(dropped, branch.a, branch.dout);
  PESC_CHECK(branch.da.dtype == DType::kF32, "da is ", dtype_name(branch.da.dtype));
  linear_backward_weight(stream, branch.dout, dropped, branch.da, branch.scale);
}

void lora_input_gradient(Stream& stream, const LoraBranch& branch, const Tensor& ddropped) {
  check(ddropped, branch.a, branch.dout);
  linear_backward_input(stream, branch.dout, branch.a, ddropped, branch.scale);
}

void lora_down_backward(Stream& stream, const LoraBranch& branch, const Tensor& x, const Tensor& dx,
                        Arena& scratch) {
  if (x.rows == 0) return;
  if (branch.dropout.rate == 0) {
    lora_weight_gradient(stream, branch, x);
    return linear_backward_input(stream, branch.dout, branch.a, dx, branch.scale, 1.0F);
  }
  Arena::Scope scope(scratch);
  const Tensor space = scratch.allocate(x.rows, x.cols, x.dtype);
  dropout(stream, branch.dropout, x, space);
  lora_weight_gradient(stream, branch, space);
  lora_input_gradient(stream, branch, space);
  dropout_add(stream, branch.dropout, space, dx);
}

int64_t lora_scratch_bytes(const Device& /*device*/, int64_t tokens, int64_t columns, DType activations) {
  Arena arena = Arena::planning("lora scratch");
  (void)arena.allocate(tokens, columns, activations);
  return arena.peak();
}

}  // namespace pesc
