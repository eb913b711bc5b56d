// General matrix product on the device of the stream: C = alpha op(A) op(B) + beta C, row-major, any row
// stride. On the CPU: OpenBLAS sgemm, one single-threaded piece per thread of the stream, so that results
// depend only on shapes and on the number of threads. C = alpha op(A) op(B) + beta from, where that stands
// elsewhere. With beta = 0, C is written and may hold anything
// before. Empty products (a dimension of zero) are ordinary: K = 0 scales C by beta.
#pragma once

#include <string>

#include "ops/core/arena.h"
#include "ops/core/device.h"

namespace pesc {

enum class Transpose { kNo, kYes };

// kVaries: a product whose rows (m, or k when trans_a) change from call to call (those at an expert). On a
// GPU its kernel is chosen once for a range of sizes, not for each anew; and so it is for any number of rows
// that does not end a range, as the tokens of real batches do not.
enum class Extent { kFixed, kVaries };

struct Gemm {
  Tensor a;  // [m, k], or [k, m] when trans_a
  Transpose trans_a = Transpose::kNo;
  Tensor b;  // [k, n], or [n, k] when trans_b
  Transpose trans_b = Transpose::kNo;
  Tensor c;  // [m, n]
  float alpha = 1.0F;
  float beta = 0.0F;
  Tensor from{};  // [m, n] of c's type: what beta multiplies, where that is not C itself
  Extent extent = Extent::kFixed;
};
void gemm(Stream& stream, const Gemm& args);

// The three products of a linear layer y = x W^T with W [out, in] as Hugging Face stores it.
// y [t, out] = alpha x [t, in] W^T + beta y
void linear_forward(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& y, float alpha = 1.0F,
                    float beta = 0.0F);
// dx [t, in] = alpha dy [t, out] W + beta dx
void linear_backward_input(Stream& stream, const Tensor& dy, const Tensor& w, const Tensor& dx,
                           float alpha = 1.0F, float beta = 0.0F);
// dW [out, in] += alpha dy^T x
void linear_backward_weight(Stream& stream, const Tensor& dy, const Tensor& x, const Tensor& dw,
                            float alpha = 1.0F);

// Where a stream's products that add to their output (beta is not 0) write while their kernels are timed
// (KernelChoice::kTimed): what is free of `scratch` at that time, which must outlive the stream's products.
// Without it, or where it has too little room, such a product takes the library's first kernel. So the choice
// depends on what was planned, and never on the device memory that happens to be free.
void set_gemm_trials(Stream& stream, Arena* scratch);
// What a product into `rows` rows that are `ld` elements apart takes there; 0 on a device that times nothing.
[[nodiscard]] int64_t gemm_trial_bytes(const Device& device, int64_t rows, int64_t ld, DType type);

// The kernels that KernelChoice::kTimed has chosen on this stream so far, as text; empty without any. Given
// to a stream before its first product, on the same GPU model and library version, they are taken again, bit
// for bit.
[[nodiscard]] std::string gemm_choices(const Stream& stream);
void set_gemm_choices(Stream& stream, const std::string& text);

// The library behind the products and the kernels it chose on this machine, for records: results depend on
// them.
[[nodiscard]] std::string gemm_library();

}  // namespace pesc
