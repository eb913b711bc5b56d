// The weight of a dense linear in the format that it is held in, and the GEMMs with it: the one place that
// knows the formats. The layers call linear_forward and linear_backward_input whatever the format is.
//
// A new format is a value of FrozenFormat and a case in each function of frozen_linear.cc: its memory, its
// conversion from the float32 rows of a file, the two GEMMs and their scratch (model/README.md lists what
// else changes). The GEMMs of quantised formats are in quantized_gemm.h. The format also decides whether LoRA's B is concatenated to the weight by columns: W x + B a
// is then one GEMM, and the gradients of x and of a are another.
//
// Local letters: T tokens, R columns of LoRA's B (0: none are concatenated to the weight).
#pragma once

#include <cstdint>
#include <vector>

#include "model/frozen_format.h"
#include "ops/core/arena.h"
#include "ops/core/device.h"
#include "ops/core/tensor.h"
#include "ops/fp8.h"
#include "ops/nf4.h"
#include "parallel/shard_spec.h"

namespace pesc {

// The format of weights in the compute type.
[[nodiscard]] FrozenFormat plain_format(DType compute);

// What a quantised weight is multiplied as.
enum class FrozenGemm : uint8_t {
  kDequantized,  // in the compute type, from scratch that it is dequantised to
  kFP8,          // FP8 with activations that are quantised row by row; on Hopper, and on the CPU for tests
};

struct FrozenType {
  FrozenFormat format = FrozenFormat::kF32;
  DType compute = DType::kF32;  // of activations: F32 or BF16
  FrozenGemm gemm = FrozenGemm::kDequantized;
  bool folder_scales = false;  // of FP8: the scales are a folder's own, which need not be powers of two
  FrozenType() = default;
  // Computed with in the plain format's own type, or in F32.
  FrozenType(FrozenFormat f)  // NOLINT: a format of the CPU says all
      : format(f), compute(f == FrozenFormat::kBF16 ? DType::kBF16 : DType::kF32) {}
  FrozenType(FrozenFormat f, DType c, FrozenGemm g = FrozenGemm::kDequantized)
      : format(f), compute(c), gemm(g) {}
};

// Two matrices, x and a, concatenated by columns: [rows, columns + beside].
struct ConcatView {
  Tensor all, x, a;
  // In the first rows of a flat buffer.
  ConcatView(const Tensor& buffer, int64_t rows, int64_t columns, int64_t a_columns)
      : ConcatView(buffer.leading(rows, columns + a_columns), columns) {}
  // The first `columns` columns of a matrix, and the others.
  ConcatView(const Tensor& both, int64_t columns)
      : all(both), x(both.col_range(0, columns)), a(both.col_range(columns, both.cols)) {}
  [[nodiscard]] ConcatView rows(const Range& range) const {
    ConcatView some = *this;
    for (Tensor* t : {&some.all, &some.x, &some.a}) *t = t->row_range(range.begin, range.end);
    return some;
  }
};

struct FrozenLinear {
  FrozenType type;
  int64_t out = 0, in = 0;   // of the linear, whatever the shape of `weight`
  Tensor weight;             // [out, in] the values, or the codes of FP8; absent in NF4
  Tensor scales;             // [out, 1] F32: of FP8 codes, and of NF4 where the GEMM is FP8;
                             // [out, fp8_blocks(in)] of FP8 in blocks
  int64_t block_offset = 0;  // of FP8 in blocks: index of column 0 in the first block that the columns touch
  Nf4Matrix nf4;             // [out, in] of NF4
  Tensor weight_and_lora_b;  // [out, in + R] the weight and LoRA's B; absent where B is a matrix of its own
  // [out, R] in the compute type: LoRA's B beside a quantised weight, which the GEMMs concatenate to what they
  // dequantise; absent where B is a matrix of its own.
  Tensor lora_b_alone;

  // Allocates a weight, with B concatenated where one GEMM of the format can compute both. `lora_columns`: R,
  // or 0 without LoRA.
  [[nodiscard]] static FrozenLinear allocate(Arena& arena, const FrozenType& type, int64_t out, int64_t in,
                                             int64_t lora_columns);
  // A view of an F32 or BF16 weight: a trained one, as the GEMMs read it.
  [[nodiscard]] static FrozenLinear of(const Tensor& weight);

  [[nodiscard]] int64_t lora_columns() const {  // R
    return weight_and_lora_b.cols > 0 ? weight_and_lora_b.cols - in : lora_b_alone.cols;
  }
  // The part of the concatenated B in `rows` and `columns`; absent where B is a matrix of its own.
  [[nodiscard]] Tensor lora_b(const Range& rows, const Range& columns) const;
  // Memory for the codes of `tokens` rows of the input, or of the gradient of the output, where the GEMMs multiply
  // codes: an operation that makes these rows can then write their codes with them, in one pass, and linear_forward
  // or linear_backward_input is given those. Absent in other formats, and for the gradient with a folder's scales, which
  // operations do not multiply by; then nothing is allocated.
  [[nodiscard]] Fp8Rows input_codes(Arena& scratch, int64_t tokens) const;
  [[nodiscard]] Fp8Rows output_grad_codes(Arena& scratch, int64_t tokens) const;
  // The same memory, of some outputs.
  [[nodiscard]] FrozenLinear rows(int64_t begin, int64_t end) const;
  [[nodiscard]] int64_t bytes() const { return weight.bytes() + scales.bytes() + nf4.bytes(); }
};

// y [T, out] = W x + B a + residual, written. a [T, R] is concatenated to x [T, in], or has no columns: then
// the caller adds B a. residual [T, out] may be absent. codes: of x.x, which is then not read; or absent.
void linear_forward(Stream& stream, const FrozenLinear& w, const ConcatView& x, const Tensor& y,
                    Arena& scratch, const Tensor& residual = {}, const Fp8Rows& codes = {});
// dx.x [T, in] = dy W, written, dy [T, out]; and dx.a [T, R] = dy B where dx has these columns. codes: of dy, or
// absent.
void linear_backward_input(Stream& stream, const FrozenLinear& w, const Tensor& dy, const ConcatView& dx,
                           Arena& scratch, const Fp8Rows& codes = {});
// Scratch bytes of either.
[[nodiscard]] int64_t linear_scratch_bytes(const Device& device, const FrozenLinear& w, int64_t tokens);

// Writes float32 values from the host into a plain weight, a run of rows at a time. Quantised ones are written
// by write_quantized (model/quantized_weights.h).
class FrozenWriter {
 public:
  FrozenWriter(Stream& stream, const FrozenLinear& w) : stream_(stream), w_(w) {}
  // values: contiguous [rows, in], may be changed when it returns. Returns the index of the first value that
  // the format cannot hold, and then writes nothing; or -1.
  [[nodiscard]] int64_t write(int64_t begin, int64_t rows, const float* values);

 private:
  Stream& stream_;
  FrozenLinear w_;
  std::vector<uint16_t> rounded_;
};

}  // namespace pesc
