#include "model/quantized_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "ops/core/e4m3.h"
#include "ops/fp8.h"
#include "ops/nf4_quantizer.h"

namespace pesc {
namespace {

constexpr int64_t kSliceValues = int64_t{1} << 20;

// Slices of whole rows: at least one row each.
class Slices {
 public:
  Slices(const ShardSpec& spec, const ReadRows& read)
      : read_(read), rows_(std::max<int64_t>(1, kSliceValues / std::max<int64_t>(spec.global_cols, 1))) {
    values_.resize(static_cast<size_t>(rows_ * spec.global_cols));
  }
  [[nodiscard]] int64_t most_rows() const { return rows_; }
  // Calls use(row, rows, values) for rows [begin, end) of the tensor.
  template <class Use>
  void for_rows(int64_t begin, int64_t end, Use use) {
    for (int64_t row = begin; row < end; row += rows_) {
      const int64_t n = std::min(rows_, end - row);
      read_(row, n, values_.data());
      use(row, n, values_.data());
    }
  }

 private:
  const ReadRows& read_;
  int64_t rows_;
  std::vector<float> values_;
};

[[noreturn]] void refuse(const ShardSpec& spec, FrozenFormat format, int64_t row, const float* values,
                         int64_t at) {
  throw DataError(str_cat("tensor '", spec.name, "' holds ", values[at], " at [", row + at / spec.global_cols,
                          ", ", at % spec.global_cols, "]; a weight that is held in ",
                          frozen_format_name(format), " must be finite: mend the base, or take another"));
}

// A view with all columns that the memory has.
Tensor with_padding(const Tensor& t) {
  Tensor all = t;
  all.cols = t.ld;
  return all;
}

void write_fp8(Stream& stream, const Stream& threads, const ShardSpec& s, Slices& slices,
               const FrozenLinear& to) {
  Stream host(threads);
  const int64_t width = to.weight.ld;
  std::vector<uint8_t> whole(static_cast<size_t>(slices.most_rows() * s.global_cols));
  std::vector<uint8_t> mine(static_cast<size_t>(slices.most_rows() * width), 0);
  std::vector<float> scales(static_cast<size_t>(slices.most_rows()));
  slices.for_rows(s.row, s.row + s.rows, [&](int64_t row, int64_t n, float* values) {
    fp8_quantize(host, {.x = tensor_of(values, n, s.global_cols),
                        .codes = {whole.data(), DType::kE4M3, n, s.global_cols, s.global_cols},
                        .scales = tensor_of(scales.data(), n, 1)});
    for (int64_t r = 0; r < n; ++r) {
      if (std::isnan(scales[static_cast<size_t>(r)])) {
        const float* bad = std::find_if(values + r * s.global_cols, values + n * s.global_cols,
                                        [](float v) { return !std::isfinite(v); });
        refuse(s, to.type.format, row, values, bad - values);
      }
      std::memcpy(mine.data() + r * width, whole.data() + r * s.global_cols + s.col,
                  static_cast<size_t>(s.cols));
    }
    const int64_t at = row - s.row;
    copy_from_host(stream, mine.data(), with_padding(to.weight.row_range(at, at + n)));
    copy_from_host(stream, scales.data(), to.scales.row_range(at, at + n));
  });
}

// The FP8 scales of rows of NF4: those of their dequantised values, whole rows.
void fp8_scales_of(Stream& host, const Nf4Matrix& whole, std::vector<float>& values, float* scales) {
  nf4_dequantize(host, whole, 0, tensor_of(values.data(), whole.rows(), whole.cols));
  for (int64_t r = 0; r < whole.rows(); ++r) {
    float largest = 0;
    for (int64_t i = 0; i < whole.cols; ++i)
      largest = std::max(largest, std::abs(values[static_cast<size_t>(r * whole.cols + i)]));
    scales[r] = e4m3_scale(largest);
  }
}

void copy_nf4(Stream& stream, const Nf4Matrix& from, const Nf4Matrix& to) {
  copy_from_host(stream, from.codes.data, to.codes);
  copy_from_host(stream, from.absmax.data, to.absmax);
  if (to.nested.cols > 0) copy_from_host(stream, from.nested.data, to.nested);
  copy_from_host(stream, from.first.data, to.first);
}

void write_nf4(Stream& stream, const Stream& threads, const ShardSpec& s, Slices& slices,
               const FrozenLinear& to) {
  Nf4Quantizer quantizer(s.global_rows, s.global_cols);
  slices.for_rows(0, s.global_rows, [&](int64_t row, int64_t n, float* values) {
    const int64_t bad = quantizer.scan(threads, n, values);
    if (bad >= 0) refuse(s, to.type.format, row, values, bad);
  });
  quantizer.quantize_absmax();

  Stream host(threads);
  const int64_t rows = std::min(slices.most_rows(), s.rows);
  Arena plan = Arena::planning("NF4 on its way");
  (void)Nf4Matrix::allocate(plan, rows, s.cols);
  (void)Nf4Matrix::allocate(plan, rows, s.global_cols);
  Arena memory("NF4 on its way", host.device(), plan.used());
  const Nf4Matrix mine = Nf4Matrix::allocate(memory, rows, s.cols);
  const Nf4Matrix whole = Nf4Matrix::allocate(memory, rows, s.global_cols);
  const bool scaled = to.type.gemm == FrozenGemm::kFP8;
  std::vector<float> scales(static_cast<size_t>(rows));
  std::vector<float> dequantized(scaled ? static_cast<size_t>(rows * s.global_cols) : 0);
  slices.for_rows(s.row, s.row + s.rows, [&](int64_t row, int64_t n, float* values) {
    const int64_t at = row - s.row;
    const Nf4Matrix from = mine.row_range(0, n);
    const Nf4Matrix into = to.nf4.row_range(at, at + n);
    quantizer.quantize(threads, row, s.col, values, from);
    copy_nf4(stream, from, into);
    if (!scaled) return;
    const Nf4Matrix all = whole.row_range(0, n);
    quantizer.quantize(threads, row, 0, values, all);
    fp8_scales_of(host, all, dequantized, scales.data());
    copy_from_host(stream, scales.data(), to.scales.row_range(at, at + n));
  });
}

}  // namespace

void write_quantized(Stream& stream, const ShardSpec& spec, const ReadRows& read, const FrozenLinear& to) {
  PESC_CHECK(to.out == spec.rows && to.in == spec.cols, spec.name, " ", spec.rows, "x", spec.cols, " into ",
             to.out, "x", to.in);
  if (spec.size() == 0) return;
  const Stream threads(Device{.threads = stream.threads()});
  Slices slices(spec, read);
  switch (to.type.format) {
    case FrozenFormat::kFP8:
      return write_fp8(stream, threads, spec, slices, to);
    case FrozenFormat::kNF4:
      return write_nf4(stream, threads, spec, slices, to);
    case FrozenFormat::kF32:
    case FrozenFormat::kBF16:
    case FrozenFormat::kFP8Blocks:
    case FrozenFormat::kNF4Single:
      break;
  }
  throw InternalError(str_cat("nothing is quantised to ", frozen_format_text(to.type.format)));
}

void copy_quantized(Stream& stream, const ShardSpec& spec, WeightSource& source, const FrozenLinear& to) {
  PESC_CHECK(source.quantized(spec.name) == to.type.format && to.out == spec.rows && to.in == spec.cols,
             spec.name, " ", spec.rows, "x", spec.cols, " into ", frozen_format_text(to.type.format), " ",
             to.out, "x", to.in);
  if (spec.size() == 0) return;
  const bool scaled = is_nf4(to.type.format) && to.type.gemm == FrozenGemm::kFP8;
  Stream host(Device{.threads = stream.threads()});
  const int64_t rows = std::clamp<int64_t>(kSliceValues / spec.global_cols, 1, spec.rows);
  const FrozenType type(to.type.format);
  Arena plan = Arena::planning("codes on their way");
  (void)FrozenLinear::allocate(plan, type, rows, spec.cols, 0);
  if (scaled) (void)FrozenLinear::allocate(plan, type, rows, spec.global_cols, 0);
  Arena memory("codes on their way", host.device(), plan.used());
  const FrozenLinear mine = FrozenLinear::allocate(memory, type, rows, spec.cols, 0);
  const FrozenLinear whole =
      scaled ? FrozenLinear::allocate(memory, type, rows, spec.global_cols, 0) : FrozenLinear();
  std::vector<float> scales(static_cast<size_t>(rows));
  std::vector<float> values(scaled ? static_cast<size_t>(rows * spec.global_cols) : 0);
  ShardSpec piece = spec;
  for (int64_t at = 0; at < spec.rows; at += rows) {
    piece.row = spec.row + at;
    piece.rows = std::min(rows, spec.rows - at);
    const FrozenLinear from = mine.rows(0, piece.rows);
    const FrozenLinear into = to.rows(at, at + piece.rows);
    source.read_codes(piece, from);
    if (is_nf4(type.format)) {
      copy_nf4(stream, from.nf4, into.nf4);
    } else {
      copy_from_host(stream, from.weight.data, with_padding(into.weight));
      copy_from_host(stream, from.scales.data, into.scales);
    }
    if (!scaled) continue;
    ShardSpec all = piece;
    all.col = 0;
    all.cols = all.global_cols;
    const FrozenLinear wide = whole.rows(0, piece.rows);
    source.read_codes(all, wide);
    fp8_scales_of(host, wide.nf4, values, scales.data());
    copy_from_host(stream, scales.data(), into.scales);
  }
}

}  // namespace pesc
