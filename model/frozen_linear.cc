// Every switch below names all formats and has no default: the compiler lists what a new format must say.
#include "model/frozen_linear.h"

#include <algorithm>

#include "ops/core/bf16.h"
#include "ops/core/check.h"
#include "ops/gemm.h"

namespace pesc {
namespace {

// Column numbers that keep rows of bf16 aligned to 16 bytes, which the GPU's fast kernels ask for.
constexpr int64_t kAlignedColumns = 8;

DType plain_type(FrozenFormat format) {
  switch (format) {
    case FrozenFormat::kF32:
      return DType::kF32;
    case FrozenFormat::kBF16:
      return DType::kBF16;
  }
  throw InternalError("a frozen format without a type");
}

bool concatenates_lora_b(FrozenFormat format, int64_t in, int64_t lora_columns) {
  switch (format) {
    case FrozenFormat::kF32:
      return false;
    case FrozenFormat::kBF16:
      return lora_columns > 0 && lora_columns % kAlignedColumns == 0 && in % kAlignedColumns == 0;
  }
  return false;
}

// The matrix of a GEMM of tokens with LoRA activations `a`.
const Tensor& matrix(const FrozenLinear& w, const Tensor& a) {
  if (a.cols == 0) return w.weight;
  PESC_CHECK(a.cols == w.lora_columns(), a.cols, " columns beside the tokens, ", w.lora_columns(),
             " beside the weight");
  return w.weight_and_lora_b;
}

}  // namespace

const char* frozen_format_name(FrozenFormat format) {
  switch (format) {
    case FrozenFormat::kF32:
      return "F32";
    case FrozenFormat::kBF16:
      return "BF16";
  }
  return "?";
}

FrozenFormat plain_format(DType compute) {
  PESC_CHECK(compute == DType::kF32 || compute == DType::kBF16, "compute type ", dtype_name(compute));
  return compute == DType::kBF16 ? FrozenFormat::kBF16 : FrozenFormat::kF32;
}

FrozenLinear FrozenLinear::allocate(Arena& arena, FrozenFormat format, int64_t out, int64_t in,
                                    int64_t lora_columns) {
  FrozenLinear w{format, out, in, {}, {}, {}};
  switch (format) {
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
      if (concatenates_lora_b(format, in, lora_columns)) {
        w.weight_and_lora_b = arena.allocate(out, in + lora_columns, plain_type(format));
        w.weight = w.weight_and_lora_b.col_range(0, in);
      } else {
        w.weight = arena.allocate(out, in, plain_type(format));
      }
      break;
  }
  return w;
}

FrozenLinear FrozenLinear::of(const Tensor& weight) {
  return {plain_format(weight.dtype), weight.rows, weight.cols, weight, {}, {}};
}

Tensor FrozenLinear::lora_b(const Range& rows, const Range& columns) const {
  if (lora_columns() == 0) return {};
  return weight_and_lora_b.row_range(rows.begin, rows.end).col_range(in + columns.begin, in + columns.end);
}

FrozenLinear FrozenLinear::rows(int64_t begin, int64_t end) const {
  FrozenLinear some = *this;
  some.out = end - begin;
  for (Tensor* t : {&some.weight, &some.scales, &some.weight_and_lora_b})
    if (t->cols > 0) *t = t->row_range(begin, end);
  return some;
}

void linear_forward(Stream& stream, const FrozenLinear& w, const ConcatView& x, const Tensor& y,
                    Arena& /*scratch*/, const Tensor& residual) {
  switch (w.format) {
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
      return gemm(stream, {.a = x.all,
                           .b = matrix(w, x.a),
                           .trans_b = Transpose::kYes,
                           .c = y,
                           .beta = residual.present() ? 1.0F : 0.0F,
                           .from = residual});
  }
}

void linear_backward_input(Stream& stream, const FrozenLinear& w, const Tensor& dy, const ConcatView& dx,
                           Arena& /*scratch*/) {
  switch (w.format) {
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
      return linear_backward_input(stream, dy, matrix(w, dx.a), dx.all);
  }
}

int64_t linear_scratch_bytes(const Device& /*device*/, const FrozenLinear& w, int64_t /*tokens*/) {
  switch (w.format) {
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
      return 0;
  }
  return 0;
}

int64_t FrozenWriter::write(int64_t begin, int64_t rows, const float* values) {
  const Tensor to = w_.weight.row_range(begin, begin + rows);
  switch (w_.format) {
    case FrozenFormat::kF32:
      copy_from_host(stream_, values, to);
      return -1;
    case FrozenFormat::kBF16: {
      // A finite float32 value above BF16's largest rounds to infinity.
      const auto infinite = [](uint16_t bits) { return (bits & 0x7F80U) == 0x7F80U; };
      const int64_t size = rows * w_.in;
      rounded_.resize(static_cast<size_t>(size));
      std::transform(values, values + size, rounded_.begin(), f32_to_bf16);
      uint32_t found = 0;  // without a branch, so that the loop is vectorised
      for (const uint16_t bits : rounded_) found |= static_cast<uint32_t>(infinite(bits));
      if (found != 0) return std::find_if(rounded_.begin(), rounded_.end(), infinite) - rounded_.begin();
      copy_from_host(stream_, rounded_.data(), to);
      return -1;
    }
  }
  return -1;
}

}  // namespace pesc
