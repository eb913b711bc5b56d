// Every switch below names all formats and has no default: the compiler lists what a new format must say.
#include "model/frozen_linear.h"

#include <algorithm>

#include "model/quantized_gemm.h"
#include "ops/core/bf16.h"
#include "ops/core/check.h"
#include "ops/fp8.h"
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
    case FrozenFormat::kFP8:
    case FrozenFormat::kNF4:
    case FrozenFormat::kFP8Blocks:
    case FrozenFormat::kNF4Single:
      break;
  }
  throw InternalError("a frozen format without a type");
}

bool concatenates_lora_b(const FrozenType& type, int64_t in, int64_t lora_columns) {
  return type.compute == DType::kBF16 && lora_columns > 0 && lora_columns % kAlignedColumns == 0 &&
         in % kAlignedColumns == 0;
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
    case FrozenFormat::kFP8:
    case FrozenFormat::kFP8Blocks:
      return "FP8";
    case FrozenFormat::kNF4:
    case FrozenFormat::kNF4Single:
      return "NF4";
  }
  return "?";
}

const char* frozen_format_text(FrozenFormat format) {
  switch (format) {
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
      return frozen_format_name(format);
    case FrozenFormat::kFP8:
      return "FP8 with a scale for each row";
    case FrozenFormat::kNF4:
      return "NF4 with double quantisation";
    case FrozenFormat::kFP8Blocks:
      return "FP8 with blocks of 128 x 128";
    case FrozenFormat::kNF4Single:
      return "NF4 without double quantisation";
  }
  return "?";
}

FrozenFormat plain_format(DType compute) {
  PESC_CHECK(compute == DType::kF32 || compute == DType::kBF16, "compute type ", dtype_name(compute));
  return compute == DType::kBF16 ? FrozenFormat::kBF16 : FrozenFormat::kF32;
}

bool is_quantized(FrozenFormat format) {
  switch (format) {
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
      return false;
    case FrozenFormat::kFP8:
    case FrozenFormat::kNF4:
    case FrozenFormat::kFP8Blocks:
    case FrozenFormat::kNF4Single:
      return true;
  }
  return false;
}

FrozenLinear FrozenLinear::allocate(Arena& arena, const FrozenType& type, int64_t out, int64_t in,
                                    int64_t lora_columns) {
  FrozenLinear w;
  w.type = type;
  w.out = out;
  w.in = in;
  const bool beside = concatenates_lora_b(type, in, lora_columns);
  if (beside && is_quantized(type.format)) w.lora_b_alone = arena.allocate(out, lora_columns, type.compute);
  // The FP8 GEMM reads rows and columns up to a multiple of 16.
  const auto allocate_scales = [&] { w.scales = arena.allocate(fp8_padded(out), 1).row_range(0, out); };
  switch (type.format) {
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
      PESC_CHECK(plain_type(type.format) == type.compute, frozen_format_name(type.format), " computed in ",
                 dtype_name(type.compute));
      if (beside) {
        w.weight_and_lora_b = arena.allocate(out, in + lora_columns, type.compute);
        w.weight = w.weight_and_lora_b.col_range(0, in);
      } else {
        w.weight = arena.allocate(out, in, type.compute);
      }
      break;
    case FrozenFormat::kFP8:
      w.weight =
          arena.allocate(fp8_padded(out), fp8_padded(in), DType::kE4M3).row_range(0, out).col_range(0, in);
      allocate_scales();
      break;
    case FrozenFormat::kFP8Blocks:
      PESC_CHECK(type.gemm == FrozenGemm::kDequantized, "FP8 in blocks is dequantised");
      w.weight = arena.allocate(out, in, DType::kE4M3);
      w.scales = arena.allocate(out, fp8_blocks(in));
      break;
    case FrozenFormat::kNF4:
    case FrozenFormat::kNF4Single:
      w.nf4 = Nf4Matrix::allocate(
          arena, out, in, type.format == FrozenFormat::kNF4 ? Nf4Absmax::kQuantized : Nf4Absmax::kF32);
      if (type.gemm == FrozenGemm::kFP8) allocate_scales();
      break;
  }
  return w;
}

FrozenLinear FrozenLinear::of(const Tensor& weight) {
  FrozenLinear w;
  w.type = plain_format(weight.dtype);
  w.out = weight.rows;
  w.in = weight.cols;
  w.weight = weight;
  return w;
}

Tensor FrozenLinear::lora_b(const Range& rows, const Range& columns) const {
  if (lora_b_alone.cols > 0)
    return lora_b_alone.row_range(rows.begin, rows.end).col_range(columns.begin, columns.end);
  if (lora_columns() == 0) return {};
  return weight_and_lora_b.row_range(rows.begin, rows.end).col_range(in + columns.begin, in + columns.end);
}

Fp8Rows FrozenLinear::input_codes(Arena& scratch, int64_t tokens) const {
  if (!is_quantized(type.format)) return {};
  return quantized_input_codes(*this, scratch, tokens);
}

Fp8Rows FrozenLinear::output_grad_codes(Arena& scratch, int64_t tokens) const {
  // Operations that write codes of their rows take scales of columns that are powers of two.
  if (!is_quantized(type.format) || type.folder_scales) return {};
  return quantized_output_grad_codes(*this, scratch, tokens);
}

FrozenLinear FrozenLinear::rows(int64_t begin, int64_t end) const {
  FrozenLinear some = *this;
  some.out = end - begin;
  for (Tensor* t : {&some.weight, &some.scales, &some.weight_and_lora_b, &some.lora_b_alone})
    if (t->cols > 0) *t = t->row_range(begin, end);
  if (nf4.cols > 0) some.nf4 = nf4.row_range(begin, end);
  return some;
}

void linear_forward(Stream& stream, const FrozenLinear& w, const ConcatView& x, const Tensor& y,
                    Arena& scratch, const Tensor& residual, const Fp8Rows& codes) {
  switch (w.type.format) {
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
      return gemm(stream, {.a = x.all,
                           .b = matrix(w, x.a),
                           .trans_b = Transpose::kYes,
                           .c = y,
                           .beta = residual.present() ? 1.0F : 0.0F,
                           .from = residual});
    case FrozenFormat::kFP8:
    case FrozenFormat::kNF4:
    case FrozenFormat::kFP8Blocks:
    case FrozenFormat::kNF4Single:
      return quantized_forward(stream, w, x, y, scratch, residual, codes);
  }
}

void linear_backward_input(Stream& stream, const FrozenLinear& w, const Tensor& dy, const ConcatView& dx,
                           Arena& scratch, const Fp8Rows& codes) {
  switch (w.type.format) {
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
      return linear_backward_input(stream, dy, matrix(w, dx.a), dx.all);
    case FrozenFormat::kFP8:
    case FrozenFormat::kNF4:
    case FrozenFormat::kFP8Blocks:
    case FrozenFormat::kNF4Single:
      return quantized_backward_input(stream, w, dy, dx, scratch, codes);
  }
}

int64_t linear_scratch_bytes(const Device& device, const FrozenLinear& w, int64_t tokens) {
  switch (w.type.format) {
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
      return 0;
    case FrozenFormat::kFP8:
    case FrozenFormat::kNF4:
    case FrozenFormat::kFP8Blocks:
    case FrozenFormat::kNF4Single:
      return quantized_scratch_bytes(device, w, tokens);
  }
  return 0;
}

int64_t FrozenWriter::write(int64_t begin, int64_t rows, const float* values) {
  PESC_CHECK(!is_quantized(w_.type.format), "write_quantized writes ", frozen_format_name(w_.type.format));
  const Tensor to = w_.weight.row_range(begin, begin + rows);
  switch (w_.type.format) {
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
    case FrozenFormat::kFP8:
    case FrozenFormat::kNF4:
    case FrozenFormat::kFP8Blocks:
    case FrozenFormat::kNF4Single:
      break;
  }
  return -1;
}

}  // namespace pesc
