// GEMM on the device of the stream, row-major, any row stride:
//   C = alpha op(A) op(B) + beta D,  D = C unless `from` is given
// With beta = 0, C need not be initialised. A dimension of zero is allowed: with k = 0, C = beta D.
//
// On the CPU: OpenBLAS sgemm, one single-threaded piece per thread of the stream, so that results depend on
// the shapes and the number of threads only. On a GPU: cuBLASLt (ops/gemm.cu).
#pragma once

#include <string>

#include "ops/core/arena.h"
#include "ops/core/device.h"

namespace pesc {

enum class Transpose { kNo, kYes };

// kVaries: the number of rows (m, or k when trans_a) differs from call to call, as the rows of an expert do.
// On a GPU such a GEMM shares one kernel with all sizes of its bucket (the size rounded up), so that new
// sizes start no new search. A kFixed GEMM does so too unless its number of rows is the end of a bucket.
enum class Extent { kFixed, kVaries };

struct Gemm {
  Tensor a;  // [m, k], or [k, m] when trans_a
  Transpose trans_a = Transpose::kNo;
  Tensor b;  // [k, n], or [n, k] when trans_b
  Transpose trans_b = Transpose::kNo;
  Tensor c;  // [m, n]
  float alpha = 1.0F;
  float beta = 0.0F;
  Tensor from{};  // D [m, n], of c's type; optional: D is C
  Extent extent = Extent::kFixed;
};
void gemm(Stream& stream, const Gemm& args);

// The three GEMMs of a linear layer y = x W^T with W [out, in], as Hugging Face stores it.
// y [t, out] = alpha x [t, in] W^T + beta y
void linear_forward(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& y, float alpha = 1.0F,
                    float beta = 0.0F);
// dx [t, in] = alpha dy [t, out] W + beta dx
void linear_backward_input(Stream& stream, const Tensor& dy, const Tensor& w, const Tensor& dx,
                           float alpha = 1.0F, float beta = 0.0F);
// dW [out, in] += alpha dy^T x
void linear_backward_weight(Stream& stream, const Tensor& dy, const Tensor& x, const Tensor& dw,
                            float alpha = 1.0F);

// Gives a stream the arena into which GEMMs with beta != 0 write while their kernels are timed
// (KernelChoice::kAutotuned). It must outlive the stream's last GEMM. Without it, or where less of it is free
// than gemm_trial_bytes, such a GEMM takes cuBLASLt's first kernel. So the choice depends on the planned
// arenas, never on the device memory that happens to be free.
void set_gemm_trials(Stream& stream, Arena* scratch);
// Bytes of that arena that a GEMM takes whose C has `rows` rows with stride `ld`; 0 on a device that times
// nothing.
[[nodiscard]] int64_t gemm_trial_bytes(const Device& device, int64_t rows, int64_t ld, DType type);

// The kernels that KernelChoice::kAutotuned has chosen on this stream so far, as text; empty when there are
// none. A stream of the same GPU model and library version that gets this text before its first GEMM takes
// the same kernels, and so gives the same bits.
[[nodiscard]] std::string gemm_choices(const Stream& stream);
void set_gemm_choices(Stream& stream, const std::string& text);

// The GEMM library and the processor that it detected, for logs: results depend on them.
[[nodiscard]] std::string gemm_library();

}  // namespace pesc
