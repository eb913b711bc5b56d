#include "model/quantized_weights.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "ops/core/e4m3.h"
#include "ops/fp8.h"
#include "ops/nf4_quantizer.h"
#include "ops/reduce.h"

namespace pesc {

void refuse_not_finite(const ShardSpec& tensor, FrozenFormat format, int64_t row, const float* values,
                       int64_t at) {
  throw DataError(str_cat("tensor '", tensor.name, "' holds ", values[at], " at [",
                          row + at / tensor.global_cols, ", ", at % tensor.global_cols,
                          "]; a weight that is held in ", frozen_format_name(format),
                          " must be finite: mend the base, or take another"));
}

void fp8_scales_of_nf4(Stream& host, const Nf4Matrix& whole, std::vector<float>& values, float* scales) {
  nf4_dequantize(host, whole, 0, tensor_of(values.data(), whole.rows(), whole.cols));
  for (int64_t r = 0; r < whole.rows(); ++r) {
    float largest = 0;
    for (int64_t i = 0; i < whole.cols; ++i)
      largest = std::max(largest, std::abs(values[static_cast<size_t>(r * whole.cols + i)]));
    scales[r] = e4m3_scale(largest);
  }
}

namespace {

void copy_nf4(Stream& stream, const Nf4Matrix& from, const Nf4Matrix& to) {
  copy_from_host(stream, from.codes.data, to.codes);
  copy_from_host(stream, from.absmax.data, to.absmax);
  if (to.nested.cols > 0) copy_from_host(stream, from.nested.data, to.nested);
  copy_from_host(stream, from.first.data, to.first);
}

int64_t rows_of_slice(const Stream& stream, const ShardSpec& spec) {
  const int64_t rows = quantized_slice_values(stream) / std::max<int64_t>(spec.global_cols, 1);
  return std::clamp<int64_t>(rows, 1, std::max<int64_t>(spec.global_rows, 1));
}

// Slices of whole rows: at least one row each.
class Slices {
 public:
  Slices(Stream& stream, const ShardSpec& spec, const FillRows& fill)
      : stream_(stream),
        fill_(fill),
        rows_(rows_of_slice(stream, spec)),
        memory_("values to quantise", stream.device(),
                rows_ * spec.global_cols * int64_t{sizeof(float)} + Arena::kAlignment),
        values_(memory_.allocate(rows_, spec.global_cols)) {}
  [[nodiscard]] int64_t most_rows() const { return rows_; }
  // Calls use(row, values) for rows [begin, end) of the tensor. `use` may overwrite the values.
  template <class Use>
  void for_rows(int64_t begin, int64_t end, Use use) {
    for (int64_t row = begin; row < end; row += rows_) {
      const Tensor some = values_.row_range(0, std::min(rows_, end - row));
      fill_(row, some);
      use(row, some);
    }
  }
  // A copy on the host.
  [[nodiscard]] std::vector<float> host(const Tensor& values) {
    std::vector<float> out;
    copy_to_host(stream_, values, out);
    return out;
  }

 private:
  Stream& stream_;
  const FillRows& fill_;
  int64_t rows_;
  Arena memory_;
  Tensor values_;
};

bool is_finite(float v) {
  return std::isfinite(v);
}

// For the first value of rows [row, ...) that is not finite. REQUIRES: there is one.
[[noreturn]] void refuse(const ShardSpec& spec, FrozenFormat format, int64_t row,
                         const std::vector<float>& values) {
  const auto bad = std::find_if_not(values.begin(), values.end(), is_finite);
  PESC_CHECK(bad != values.end(), spec.name);
  refuse_not_finite(spec, format, row, values.data(), bad - values.begin());
}

bool holds_whole_rows(const ShardSpec& s) {
  return s.col == 0 && s.cols == s.global_cols;
}

// A view with all columns that the memory has.
Tensor with_padding(const Tensor& t) {
  Tensor all = t;
  all.cols = t.ld;
  return all;
}

void write_fp8(Stream& stream, const ShardSpec& s, Slices& slices, const FrozenLinear& to) {
  const int64_t cut = holds_whole_rows(s) ? 0 : slices.most_rows();  // rows of codes on their way
  Arena memory("FP8 on its way", stream.device(), cut * s.global_cols + Arena::kAlignment);
  const Tensor whole = memory.allocate(cut, s.global_cols, DType::kE4M3);
  std::vector<float> scales;
  slices.for_rows(s.row, s.row + s.rows, [&](int64_t row, const Tensor& values) {
    const Tensor mine = to.weight.row_range(row - s.row, row - s.row + values.rows);
    const Tensor my_scales = to.scales.row_range(row - s.row, row - s.row + values.rows);
    const Tensor codes = cut == 0 ? with_padding(mine) : whole.row_range(0, values.rows);
    fp8_quantize(stream, {.x = values, .codes = codes, .scales = my_scales});
    if (cut > 0) copy(stream, codes.col_range(s.col, s.col + s.cols), mine);
    copy_to_host(stream, my_scales, scales);
    if (!std::all_of(scales.begin(), scales.end(), is_finite))
      refuse(s, to.type.format, row, slices.host(values));
  });
}

// Writes rows of NF4: codes on the stream's device, scales from the host.
class Nf4Pieces {
 public:
  Nf4Pieces(Stream& stream, const Nf4Quantizer& quantizer)
      : stream_(stream), threads_(Device{.threads = stream.threads()}), quantizer_(quantizer) {}
  // Columns [col, col + to.cols) of the rows of a slice.
  void write(const Nf4Rows& from, int64_t col, const Tensor& absmax, const Nf4Matrix& to) {
    nf4_quantize(stream_, from, col, absmax, to);
    Nf4Matrix here = to;  // its scales, on the host
    Arena plan = Arena::planning("scales");
    allocate_scales(plan, here);
    if (!scales_ || scales_->capacity() < plan.used())
      scales_.emplace("scales", threads_.device(), plan.used());
    Arena::Scope scope(*scales_);
    allocate_scales(*scales_, here);
    quantizer_.write_scales(threads_, from.row, col, here);
    copy_from_host(stream_, here.absmax.data, to.absmax);
    copy_from_host(stream_, here.nested.data, to.nested);
    copy_from_host(stream_, here.first.data, to.first);
  }

 private:
  static void allocate_scales(Arena& arena, Nf4Matrix& m) {
    for (Tensor* t : {&m.absmax, &m.nested, &m.first}) *t = arena.allocate(t->rows, t->cols, t->dtype);
  }
  Stream& stream_;
  Stream threads_;
  const Nf4Quantizer& quantizer_;
  std::optional<Arena> scales_;
};

void write_nf4(Stream& stream, const ShardSpec& s, Slices& slices, const FrozenLinear& to) {
  // FP8 scales are those of the dequantised values, whole rows.
  const bool scaled = to.type.gemm == FrozenGemm::kFP8;
  const int64_t cut = scaled && !holds_whole_rows(s) ? slices.most_rows() : 0;
  const int64_t blocks = nf4_tensor_blocks(s.global_rows, s.global_cols);
  struct Layout {
    Tensor absmax, fp8;
    Nf4Matrix whole;
  };
  const auto allocate = [&](Arena& arena) {
    return Layout{arena.allocate(1, blocks),
                  arena.allocate(scaled ? slices.most_rows() : 0, s.global_cols, DType::kE4M3),
                  Nf4Matrix::allocate(arena, cut, s.global_cols)};
  };
  Arena plan = Arena::planning("NF4 on its way");
  (void)allocate(plan);
  Arena memory("NF4 on its way", stream.device(), plan.used());
  const Layout l = allocate(memory);

  slices.for_rows(0, s.global_rows, [&](int64_t row, const Tensor& values) {
    nf4_absmax(stream, {values, row}, l.absmax);
  });
  Nf4Quantizer quantizer(s.global_rows, s.global_cols);
  const int64_t bad = quantizer.set_absmax(slices.host(l.absmax));
  if (bad >= 0) {
    slices.for_rows(bad / s.global_cols, s.global_rows, [&](int64_t row, const Tensor& values) {
      const std::vector<float> host = slices.host(values);
      if (!std::all_of(host.begin(), host.end(), is_finite)) refuse(s, to.type.format, row, host);
    });
  }
  quantizer.quantize_absmax(Stream(Device{.threads = stream.threads()}));

  Nf4Pieces pieces(stream, quantizer);
  slices.for_rows(s.row, s.row + s.rows, [&](int64_t row, const Tensor& values) {
    const int64_t at = row - s.row;
    const Nf4Matrix mine = to.nf4.row_range(at, at + values.rows);
    pieces.write({values, row}, s.col, l.absmax, mine);
    if (!scaled) return;
    const Nf4Matrix all = cut == 0 ? mine : l.whole.row_range(0, values.rows);
    if (cut > 0) pieces.write({values, row}, 0, l.absmax, all);
    nf4_dequantize(stream, all, 0, values);
    fp8_quantize(stream, {.x = values,
                          .codes = l.fp8.row_range(0, values.rows),
                          .scales = to.scales.row_range(at, at + values.rows)});
  });
}

}  // namespace

int64_t quantized_slice_values(const Stream& stream) {
  return int64_t{1} << (stream.on_cuda() ? 22 : 20);
}

void write_quantized(Stream& stream, const ShardSpec& spec, const FillRows& fill, const FrozenLinear& to) {
  PESC_CHECK(to.out == spec.rows && to.in == spec.cols, spec.name, " ", spec.rows, "x", spec.cols, " into ",
             to.out, "x", to.in);
  if (spec.size() == 0) return;
  Slices slices(stream, spec, fill);
  switch (to.type.format) {
    case FrozenFormat::kFP8:
      return write_fp8(stream, spec, slices, to);
    case FrozenFormat::kNF4:
      return write_nf4(stream, spec, slices, to);
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
  const int64_t rows = std::clamp<int64_t>(quantized_slice_values(host) / spec.global_cols, 1, spec.rows);
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
    fp8_scales_of_nf4(host, wide.nf4, values, scales.data());
    copy_from_host(stream, scales.data(), into.scales);
  }
}

void write_quantized(Stream& stream, const ShardSpec& spec, const ReadRows& read, const FrozenLinear& to) {
  std::vector<float> host;
  const FillRows fill = [&](int64_t row, const Tensor& values) {
    if (!stream.on_cuda()) return read(row, values.rows, values.f32());
    host.resize(static_cast<size_t>(values.size()));
    read(row, values.rows, host.data());
    copy_from_host(stream, host.data(), values);
  };
  write_quantized(stream, spec, fill, to);
}

}  // namespace pesc
