// The weight of a dense linear in the format that it is held in, and the GEMMs with it: the one place that
// knows the formats. The layers call linear_forward and linear_backward_input and do not ask.
//
// A new format is a value of FrozenFormat and a case in each function of frozen_linear.cc: how much memory it
// takes, how float32 rows from a file become it, the two GEMMs and their scratch. Whether LoRA's B stands
// beside the weight, as further columns of one matrix, is the format's business too: then W x + B a is one
// GEMM, and so are the gradients of x and of a.
//
// Local letters: T tokens, R columns of LoRA's B (0: none stand beside the weight).
#pragma once

#include <cstdint>
#include <vector>

#include "ops/core/arena.h"
#include "ops/core/device.h"
#include "ops/core/tensor.h"
#include "parallel/shard_spec.h"

namespace pesc {

// kF32, kBF16: the values themselves, in the type that is computed in.
enum class FrozenFormat : uint8_t { kF32, kBF16 };
[[nodiscard]] const char* frozen_format_name(FrozenFormat format);  // "F32", "BF16"
// Of weights that are held as they are computed with.
[[nodiscard]] FrozenFormat plain_format(DType compute);

// Two matrices side by side in one: [rows, columns + a_columns].
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
  FrozenFormat format = FrozenFormat::kF32;
  int64_t out = 0, in = 0;   // of the linear, whatever the shape of `weight`
  Tensor weight;             // [out, in] the values
  Tensor scales;             // absent: no format of today has any
  Tensor weight_and_lora_b;  // [out, in + R] the weight and LoRA's B in one; absent where B stands elsewhere

  // Room for a weight, with B beside it where the format has one GEMM for both. `lora_columns`: R, or
  // 0 without LoRA.
  [[nodiscard]] static FrozenLinear allocate(Arena& arena, FrozenFormat format, int64_t out, int64_t in,
                                             int64_t lora_columns);
  // A weight that stands in memory as F32 or BF16: a trained one, as the GEMMs read it.
  [[nodiscard]] static FrozenLinear of(const Tensor& weight);

  [[nodiscard]] int64_t lora_columns() const {  // R
    return weight_and_lora_b.cols > 0 ? weight_and_lora_b.cols - in : 0;
  }
  // The place of B, or of the part of it in `rows` and `columns`; absent where B stands elsewhere.
  [[nodiscard]] Tensor lora_b(const Range& rows, const Range& columns) const;
  // The same memory, of some outputs.
  [[nodiscard]] FrozenLinear rows(int64_t begin, int64_t end) const;
  [[nodiscard]] int64_t bytes() const { return weight.bytes() + scales.bytes(); }
};

// y [T, out] = W x + B a + residual, written. x [T, in] has a [T, R] beside it, or no columns: then B is left
// to the caller. residual [T, out] may be absent.
void linear_forward(Stream& stream, const FrozenLinear& w, const ConcatView& x, const Tensor& y,
                    Arena& scratch, const Tensor& residual = {});
// dx.x [T, in] = dy W, written, dy [T, out]; and dx.a [T, R] = dy B where dx has these columns.
void linear_backward_input(Stream& stream, const FrozenLinear& w, const Tensor& dy, const ConcatView& dx,
                           Arena& scratch);
// Scratch bytes of either.
[[nodiscard]] int64_t linear_scratch_bytes(const Device& device, const FrozenLinear& w, int64_t tokens);

// Writes float32 values from the host into a weight, a run of rows at a time.
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
