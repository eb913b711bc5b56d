// Tensors are compared in rectangles of a bounded size: bands of whole rows, or parts of a row where one
// alone is too long.
#include "runtime/checkpoint/comparison.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "runtime/checkpoint/piece_reader.h"

namespace pesc {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
using Verdict = TensorComparison::Verdict;

class Comparer {
 public:
  Comparer(FileSystem& files, Stream& stream, const LoadedCheckpoint& first, const LoadedCheckpoint& second,
           int64_t band_bytes)
      : first_(files, first, stream, PieceReader::Values::kAny),
        second_(files, second, stream, PieceReader::Values::kAny),
        band_(std::max<int64_t>(1, band_bytes / static_cast<int64_t>(sizeof(float)))) {}

  void compare(proto::TensorKind::Value kind, TensorComparison& c) {
    largest_ = 0;
    const int64_t cols = std::min(c.cols, band_);
    const int64_t rows = std::clamp<int64_t>(band_ / cols, 1, c.rows);
    a_.resize(static_cast<size_t>(rows * cols));
    b_.resize(a_.size());
    for (int64_t row = 0; row < c.rows; row += rows) {
      for (int64_t col = 0; col < c.cols; col += cols) {
        ShardSpec spec{.name = c.name, .global_rows = c.rows, .global_cols = c.cols};
        spec.row = row;
        spec.rows = std::min(rows, c.rows - row);
        spec.col = col;
        spec.cols = std::min(cols, c.cols - col);
        first_.read(spec, kind, tensor_of(a_.data(), spec.rows, spec.cols));
        second_.read(spec, kind, tensor_of(b_.data(), spec.rows, spec.cols));
        compare_elements(spec.size(), c);
      }
    }
    if (c.differing == 0) return;
    c.verdict = Verdict::kDifferent;
    if (c.max_absolute > 0) c.max_relative = largest_ > 0 ? c.max_absolute / largest_ : kInfinity;
    if (std::isinf(c.max_absolute)) c.max_relative = kInfinity;
  }

 private:
  void compare_elements(int64_t n, TensorComparison& c) {
    for (int64_t i = 0; i < n; ++i) {
      const float a = a_[static_cast<size_t>(i)], b = b_[static_cast<size_t>(i)];
      if (std::isfinite(b)) largest_ = std::max(largest_, std::abs(static_cast<double>(b)));
      if (std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b)) continue;
      ++c.differing;
      const bool finite = std::isfinite(a) && std::isfinite(b);
      const double difference = std::abs(static_cast<double>(a) - static_cast<double>(b));
      c.max_absolute = std::max(c.max_absolute, finite ? difference : kInfinity);
    }
  }

  PieceReader first_, second_;
  int64_t band_;  // elements
  std::vector<float> a_, b_;
  double largest_ = 0;  // max |b|
};

}  // namespace

std::vector<TensorComparison> compare_checkpoints(FileSystem& files, Stream& stream,
                                                  const LoadedCheckpoint& first,
                                                  const LoadedCheckpoint& second, int64_t band_bytes) {
  PESC_CHECK(first.manifest != nullptr && second.manifest != nullptr, "a checkpoint that was not opened");
  using Both = std::pair<const proto::ManifestTensor*, const proto::ManifestTensor*>;
  std::map<std::pair<std::string, int>, Both> tensors;
  for (const auto& t : first.manifest->tensors()) tensors[{t.name(), t.kind()}].first = &t;
  for (const auto& t : second.manifest->tensors()) tensors[{t.name(), t.kind()}].second = &t;
  Comparer comparer(files, stream, first, second, band_bytes);
  std::vector<TensorComparison> all;
  for (const auto& [key, both] : tensors) {
    const auto [a, b] = both;
    const auto kind = static_cast<proto::TensorKind::Value>(key.second);
    TensorComparison& c = all.emplace_back();
    c.name = key.first;
    c.kind = kind_name(kind);
    const proto::ManifestTensor& one = a != nullptr ? *a : *b;
    c.rows = one.rows();
    c.cols = one.cols();
    if (b != nullptr) {
      c.second_rows = b->rows();
      c.second_cols = b->cols();
    }
    if (a == nullptr) {
      c.verdict = Verdict::kOnlyInSecond;
    } else if (b == nullptr) {
      c.verdict = Verdict::kOnlyInFirst;
    } else if (a->rows() != b->rows() || a->cols() != b->cols()) {
      c.verdict = Verdict::kOtherShape;
    } else {
      comparer.compare(kind, c);
    }
  }
  return all;
}

}  // namespace pesc
