#include "model/quantized_gemm.h"

#include <algorithm>

#include "ops/core/check.h"
#include "ops/fp8.h"
#include "ops/fp8_gemm.h"
#include "ops/gemm.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

// Elements of a tile of dequantised weights on the CPU, and the least number of its rows or columns.
constexpr int64_t kTileElements = int64_t{1} << 20;
constexpr int64_t kTileLeast = 64;

// How many of `n` rows or columns of `length` elements are dequantised at a time: all of them on a GPU.
int64_t tile(const Device& device, int64_t n, int64_t length) {
  if (device.kind == DeviceKind::kCuda) return n;
  return std::min(n, std::max(kTileLeast, kTileElements / std::max<int64_t>(length, 1)));
}

void check_beside(const FrozenLinear& w, const Tensor& a) {
  PESC_CHECK(a.cols == 0 || a.cols == w.lora_columns(), a.cols, " columns beside the tokens, ",
             w.lora_columns(), " beside the weight");
}

void dequantized_forward(Stream& stream, const FrozenLinear& w, const ConcatView& x, const Tensor& y,
                         Arena& scratch, const Tensor& residual) {
  const int64_t step = tile(stream.device(), w.out, w.in);
  for (int64_t begin = 0; begin < w.out; begin += step) {
    const int64_t end = std::min(begin + step, w.out);
    Arena::Scope scope(scratch);
    const FrozenLinear some = w.rows(begin, end);
    const ConcatView both(scratch.allocate(end - begin, w.in + x.a.cols, w.type.compute), w.in);
    dequantize_frozen(stream, some, 0, both.x);
    if (x.a.cols > 0) copy(stream, some.lora_b_alone, both.a);
    gemm(stream, {.a = x.all,
                  .b = both.all,
                  .trans_b = Transpose::kYes,
                  .c = y.col_range(begin, end),
                  .beta = residual.present() ? 1.0F : 0.0F,
                  .from = residual.present() ? residual.col_range(begin, end) : residual});
  }
}

void dequantized_backward(Stream& stream, const FrozenLinear& w, const Tensor& dy, const ConcatView& dx,
                          Arena& scratch) {
  const int64_t step = dx.a.cols > 0 ? w.in : tile(stream.device(), w.in, w.out);
  for (int64_t begin = 0; begin < w.in; begin += step) {
    const int64_t end = std::min(begin + step, w.in);
    Arena::Scope scope(scratch);
    const ConcatView both(scratch.allocate(w.out, end - begin + dx.a.cols, w.type.compute), end - begin);
    dequantize_frozen(stream, w, begin, both.x);
    if (dx.a.cols > 0) copy(stream, w.lora_b_alone, both.a);
    linear_backward_input(stream, dy, both.all, dx.a.cols > 0 ? dx.all : dx.x.col_range(begin, end));
  }
}

// Q, rows and columns up to multiples of 16; those beyond the weight's meet zeros or are not read back.
Tensor fp8_codes(Stream& stream, const FrozenLinear& w, Arena& scratch) {
  const int64_t rows = fp8_padded(w.out);
  const int64_t cols = fp8_padded(w.in);
  if (w.type.format == FrozenFormat::kFP8) return {w.weight.data, DType::kE4M3, rows, cols, cols};
  const Tensor codes = scratch.allocate(rows, cols, DType::kE4M3);
  nf4_to_fp8(stream, w.nf4, w.scales, codes.row_range(0, w.out));
  return codes;
}

// Whether the FP8 GEMM can write to the tensor. On a GPU the model's tensors have such strides and addresses
// wherever their width does, so that scratch for a product is planned by the width alone.
bool takes_fp8_result(const Stream& stream, const Tensor& y) {
  if (y.cols % kFp8Multiple != 0) return false;
  return !stream.on_cuda() ||
         ((y.rows <= 1 || y.ld % 8 == 0) && reinterpret_cast<uintptr_t>(y.data) % 16 == 0);
}

enum class Into { kWrite, kAdd };
// y [T, n] written or added to; g.c is set here. The rows of g.b may be more than n.
void multiply(Stream& stream, Fp8Gemm g, const Tensor& y, Into into, Arena& scratch) {
  if (takes_fp8_result(stream, y)) {
    g.c = y;
    g.beta = into == Into::kAdd ? 1.0F : 0.0F;
    return fp8_gemm(stream, g, scratch);
  }
  g.c = scratch.allocate(y.rows, g.b.rows, y.dtype);
  fp8_gemm(stream, g, scratch);
  const Tensor product = g.c.col_range(0, y.cols);
  into == Into::kAdd ? add(stream, product, y) : copy(stream, product, y);
}

// Memory for tokens of `columns` columns, up to a multiple of 16.
Fp8Rows allocate_rows(Arena& scratch, int64_t tokens, int64_t columns, const Tensor& column_scales) {
  return {scratch.allocate(tokens, fp8_padded(columns), DType::kE4M3), scratch.allocate(tokens, 1),
          column_scales};
}

// The codes that the caller has, or else those of x.
Fp8Rows quantized_rows(Stream& stream, const Fp8Rows& made, const Tensor& x, const Fp8Rows& memory) {
  if (made.present()) {
    PESC_CHECK(made.codes.rows == x.rows && made.codes.cols == fp8_padded(x.cols) && made.codes.contiguous(),
               "codes ", made.codes.rows, "x", made.codes.cols, " of ", x.rows, "x", x.cols);
    return made;
  }
  fp8_quantize_rows(stream, x, memory);
  return memory;
}

void fp8_forward(Stream& stream, const FrozenLinear& w, const ConcatView& x, const Tensor& y, Arena& scratch,
                 const Tensor& residual, const Fp8Rows& made) {
  Arena::Scope scope(scratch);
  const Into into = x.a.cols > 0 || residual.present() ? Into::kAdd : Into::kWrite;
  if (x.a.cols > 0) {
    gemm(stream, {.a = x.a,
                  .b = w.lora_b_alone,
                  .trans_b = Transpose::kYes,
                  .c = y,
                  .beta = residual.present() ? 1.0F : 0.0F,
                  .from = residual});
  } else if (residual.present() && residual.data != y.data) {
    copy(stream, residual, y);
  }
  const Tensor codes = fp8_codes(stream, w, scratch);
  const Fp8Rows tokens = quantized_rows(
      stream, made, x.x, made.present() ? Fp8Rows{} : quantized_input_codes(w, scratch, y.rows));
  const Tensor out_scales{w.scales.data, DType::kF32, codes.rows, 1, 1};
  multiply(stream,
           {.a = tokens.codes, .a_scales = tokens.scales, .b = codes, .b_scales = out_scales, .c = {}}, y,
           into, scratch);
}

void fp8_backward(Stream& stream, const FrozenLinear& w, const Tensor& dy, const ConcatView& dx,
                  Arena& scratch, const Fp8Rows& made) {
  Arena::Scope scope(scratch);
  if (dx.a.cols > 0) linear_backward_input(stream, dy, w.lora_b_alone, dx.a);
  const Tensor codes = fp8_codes(stream, w, scratch);
  // Hopper multiplies rows by rows: Q^T, its columns summed over.
  const Tensor transposed = scratch.allocate(codes.cols, codes.rows, DType::kE4M3);
  fp8_transpose(stream, codes.row_range(0, w.out), transposed);
  const Fp8Rows tokens = quantized_rows(
      stream, made, dy, made.present() ? Fp8Rows{} : quantized_output_grad_codes(w, scratch, dy.rows));
  multiply(stream, {.a = tokens.codes, .a_scales = tokens.scales, .b = transposed, .b_scales = {}, .c = {}},
           dx.x, Into::kWrite, scratch);
}

}  // namespace

void dequantize_frozen(Stream& stream, const FrozenLinear& w, int64_t col, const Tensor& to) {
  if (is_nf4(w.type.format)) return nf4_dequantize(stream, w.nf4, col, to);
  const Tensor codes = w.weight.col_range(col, col + to.cols);
  if (w.type.format == FrozenFormat::kFP8) return fp8_dequantize(stream, codes, w.scales, to);
  const int64_t first = w.block_offset + col;
  const Tensor scales = w.scales.col_range(first / kFp8Block, w.scales.cols);
  fp8_dequantize_blocks(stream, {codes, scales, first % kFp8Block}, to);
}

void quantized_forward(Stream& stream, const FrozenLinear& w, const ConcatView& x, const Tensor& y,
                       Arena& scratch, const Tensor& residual, const Fp8Rows& codes) {
  check_beside(w, x.a);
  if (w.type.gemm == FrozenGemm::kFP8) return fp8_forward(stream, w, x, y, scratch, residual, codes);
  dequantized_forward(stream, w, x, y, scratch, residual);
}

void quantized_backward_input(Stream& stream, const FrozenLinear& w, const Tensor& dy, const ConcatView& dx,
                              Arena& scratch, const Fp8Rows& codes) {
  check_beside(w, dx.a);
  if (w.type.gemm == FrozenGemm::kFP8) return fp8_backward(stream, w, dy, dx, scratch, codes);
  dequantized_backward(stream, w, dy, dx, scratch);
}

Fp8Rows quantized_input_codes(const FrozenLinear& w, Arena& scratch, int64_t tokens) {
  if (w.type.gemm != FrozenGemm::kFP8) return {};
  return allocate_rows(scratch, tokens, w.in, {});
}

Fp8Rows quantized_output_grad_codes(const FrozenLinear& w, Arena& scratch, int64_t tokens) {
  // Operations that write codes of their rows take scales of columns that are powers of two.
  if (w.type.gemm != FrozenGemm::kFP8 || w.type.folder_scales) return {};
  return allocate_rows(scratch, tokens, w.out, w.scales.reshaped(1, w.out));
}

int64_t quantized_scratch_bytes(const Device& device, const FrozenLinear& w, int64_t tokens) {
  Arena plan = Arena::planning("quantised GEMM");
  const DType compute = w.type.compute;
  if (w.type.gemm == FrozenGemm::kDequantized) {
    {
      Arena::Scope scope(plan);
      (void)plan.allocate(tile(device, w.out, w.in), w.in + w.lora_columns(), compute);
    }
    (void)plan.allocate(w.out, tile(device, w.in, w.out) + w.lora_columns(), compute);
    return plan.peak();
  }
  const int64_t rows = fp8_padded(w.out);
  const int64_t cols = fp8_padded(w.in);
  // Quantised tokens of `from` columns, and a product of `to` columns where these are not those of the result.
  const auto allocate = [&](int64_t from, int64_t to, int64_t result) {
    (void)plan.allocate(tokens, from, DType::kE4M3);
    (void)plan.allocate(tokens, 1);
    if (to != result) (void)plan.allocate(tokens, to, compute);
    (void)plan.allocate(1, fp8_gemm_scratch_bytes(device, to), DType::kU8);
  };
  if (is_nf4(w.type.format)) (void)plan.allocate(rows, cols, DType::kE4M3);
  {
    Arena::Scope scope(plan);
    allocate(cols, rows, w.out);
  }
  (void)plan.allocate(cols, rows, DType::kE4M3);
  allocate(rows, cols, w.in);
  return plan.peak();
}

}  // namespace pesc
