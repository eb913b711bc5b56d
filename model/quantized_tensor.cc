#include "model/quantized_tensor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "ops/core/check.h"
#include "ops/fp8.h"

namespace pesc {
namespace {

constexpr int64_t kValuesAtOnce = int64_t{1} << 20;

int64_t rows_at_once(int64_t rows, int64_t cols) {
  return std::clamp<int64_t>(kValuesAtOnce / std::max<int64_t>(cols, 1), 1, std::max<int64_t>(rows, 1));
}

Nf4Matrix allocate_nf4(std::vector<Arena>& memory, int64_t rows, int64_t cols) {
  Arena plan = Arena::planning("a slice of NF4");
  (void)Nf4Matrix::allocate(plan, rows, cols);
  memory.emplace_back("a slice of NF4", Device{}, plan.used());
  return Nf4Matrix::allocate(memory.back(), rows, cols);
}

}  // namespace

int64_t quantized_row_bytes(FrozenFormat format, int64_t cols) {
  PESC_CHECK(format == FrozenFormat::kFP8 || format == FrozenFormat::kNF4, "nothing is quantised to ",
             frozen_format_text(format));
  return format == FrozenFormat::kNF4 ? (cols + 1) / 2 : cols;
}

QuantizedTensor::QuantizedTensor(const Stream& threads, ShardSpec tensor, ReadRows read, FrozenFormat format)
    : host_(Device{.threads = threads.threads()}),
      tensor_(std::move(tensor)),
      read_(std::move(read)),
      format_(format),
      most_rows_(rows_at_once(tensor_.global_rows, tensor_.global_cols)) {
  PESC_CHECK(is_quantized(format) && tensor_.global_rows > 0 && tensor_.global_cols > 0, tensor_.name);
  values_.resize(static_cast<size_t>(most_rows_ * tensor_.global_cols));
  if (!is_nf4()) return;
  scan();
  slice_ = allocate_nf4(memory_, most_rows_, tensor_.global_cols);
}

template <class Use>
void QuantizedTensor::for_slices(int64_t row, int64_t rows, Use use) {
  PESC_CHECK(row >= 0 && rows >= 0 && row + rows <= tensor_.global_rows, tensor_.name, ": rows from ", row);
  for (int64_t at = row; at < row + rows; at += most_rows_) {
    const int64_t n = std::min(most_rows_, row + rows - at);
    read_(at, n, values_.data());
    use(at, n);
  }
}

void QuantizedTensor::scan() {
  Nf4Quantizer& quantizer = nf4_.emplace_back(tensor_.global_rows, tensor_.global_cols);
  for_slices(0, tensor_.global_rows, [&](int64_t row, int64_t n) {
    const int64_t bad = quantizer.scan(host_, n, values_.data());
    if (bad >= 0) refuse_not_finite(tensor_, format_, row, values_.data(), bad);
  });
  quantizer.quantize_absmax();
}

void QuantizedTensor::quantize_fp8(int64_t row, int64_t rows, uint8_t* codes, float* scales) {
  const int64_t cols = tensor_.global_cols;
  fp8_quantize(host_, {.x = tensor_of(values_.data(), rows, cols),
                       .codes = {codes, DType::kE4M3, rows, cols, cols},
                       .scales = tensor_of(scales, rows, 1)});
  const float* bad_row = std::find_if(scales, scales + rows, [](float s) { return std::isnan(s); });
  if (bad_row == scales + rows) return;
  const float* bad = std::find_if(values_.data() + (bad_row - scales) * cols, values_.data() + rows * cols,
                                  [](float v) { return !std::isfinite(v); });
  refuse_not_finite(tensor_, format_, row, values_.data(), bad - values_.data());
}

Nf4Matrix QuantizedTensor::quantize_nf4(int64_t row, int64_t rows) {
  const Nf4Matrix slice = slice_.row_range(0, rows);
  nf4_.front().quantize(host_, row, 0, values_.data(), slice);
  return slice;
}

void QuantizedTensor::quantize(int64_t row, int64_t rows, uint8_t* codes, float* scales) {
  const int64_t row_bytes = quantized_row_bytes(format_, tensor_.global_cols);
  for_slices(row, rows, [&](int64_t at, int64_t n) {
    uint8_t* to = codes + (at - row) * row_bytes;
    float* to_scales = scales + (at - row);
    if (!is_nf4()) return quantize_fp8(at, n, to, to_scales);
    const Nf4Matrix slice = quantize_nf4(at, n);
    for (int64_t r = 0; r < n; ++r)
      std::memcpy(to + r * row_bytes, slice.codes.u8() + r * slice.codes.ld, static_cast<size_t>(row_bytes));
    dequantized_.resize(values_.size());
    fp8_scales_of_nf4(host_, slice, dequantized_, to_scales);
  });
}

void QuantizedTensor::dequantize(int64_t row, int64_t rows, float* to) {
  const int64_t cols = tensor_.global_cols;
  for_slices(row, rows, [&](int64_t at, int64_t n) {
    const Tensor values = tensor_of(to + (at - row) * cols, n, cols);
    if (is_nf4()) return nf4_dequantize(host_, quantize_nf4(at, n), 0, values);
    codes_.resize(values_.size());
    scales_.resize(static_cast<size_t>(most_rows_));
    quantize_fp8(at, n, codes_.data(), scales_.data());
    fp8_dequantize(host_, {codes_.data(), DType::kE4M3, n, cols, cols}, tensor_of(scales_.data(), n, 1),
                   values);
  });
}

QuantizedPieceWriter::QuantizedPieceWriter(Stream& stream, const ShardSpec& piece, const FrozenLinear& to,
                                           const Nf4Scales* nf4)
    : stream_(stream), piece_(piece), to_(to), nf4_(nf4), most_rows_(rows_at_once(piece.rows, piece.cols)) {
  PESC_CHECK(to.out == piece.rows && to.in == piece.cols, piece.name, " ", piece.rows, "x", piece.cols,
             " into ", to.out, "x", to.in);
  const bool is_nf4 = to.type.format == FrozenFormat::kNF4;
  PESC_CHECK(is_quantized(to.type.format) && is_nf4 == (nf4 != nullptr), piece.name);
  if (is_nf4)
    slice_ = allocate_nf4(memory_, most_rows_, piece.cols);
  else
    codes_.assign(static_cast<size_t>(most_rows_ * to.weight.ld), 0);
}

void QuantizedPieceWriter::write(int64_t row, int64_t rows, const uint8_t* codes, const float* scales) {
  const int64_t row_bytes = quantized_row_bytes(to_.type.format, piece_.global_cols);
  const int64_t end = std::min(row + rows, piece_.row + piece_.rows);
  for (int64_t begin = std::max(row, piece_.row); begin < end; begin += most_rows_) {
    const int64_t n = std::min(most_rows_, end - begin);
    const int64_t at = begin - piece_.row;
    const uint8_t* from = codes + (begin - row) * row_bytes;
    if (to_.scales.cols > 0)
      copy_from_host(stream_, scales + (begin - row), to_.scales.row_range(at, at + n));
    if (nf4_ == nullptr) {
      // All columns that the memory has: those behind the codes are 0.
      Tensor into = to_.weight.row_range(at, at + n);
      into.cols = into.ld;
      for (int64_t r = 0; r < n; ++r)
        std::memcpy(codes_.data() + r * into.ld, from + r * row_bytes + piece_.col,
                    static_cast<size_t>(piece_.cols));
      copy_from_host(stream_, codes_.data(), into);
      continue;
    }
    const Nf4Matrix slice = slice_.row_range(0, n), into = to_.nf4.row_range(at, at + n);
    for (int64_t r = 0; r < n; ++r) {
      nf4_cut_codes(from + r * row_bytes, piece_.col, piece_.cols, slice.codes.u8() + r * slice.codes.ld);
      nf4_->write_row((begin + r) * piece_.global_cols + piece_.col, slice, r);
    }
    copy_from_host(stream_, slice.codes.data, into.codes);
    copy_from_host(stream_, slice.absmax.data, into.absmax);
    copy_from_host(stream_, slice.nested.data, into.nested);
    copy_from_host(stream_, slice.first.data, into.first);
  }
}

}  // namespace pesc
