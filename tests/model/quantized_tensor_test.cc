// A weight that is quantised whole: its pieces are those that write_quantized makes, and its dequantised values what the
// codes stand for.
#include "model/quantized_tensor.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "model/dequantized_weights.h"
#include "ops/core/check.h"
#include "tests/model/quantized_linear.h"

namespace pesc {
namespace {

const std::vector<FrozenType> kAllTypes = {FrozenFormat::kFP8,
                                           {FrozenFormat::kFP8, DType::kF32, FrozenGemm::kFP8},
                                           FrozenFormat::kNF4,
                                           {FrozenFormat::kNF4, DType::kF32, FrozenGemm::kFP8}};

void expect_same_bytes(const Tensor& a, const Tensor& b, const char* what) {
  ASSERT_EQ(a.rows, b.rows) << what;
  ASSERT_EQ(a.cols, b.cols) << what;
  const int64_t bytes = dtype_bytes(a.dtype);
  for (int64_t r = 0; r < a.rows; ++r) {
    ASSERT_EQ(
        std::memcmp(static_cast<const char*>(a.data) + r * a.ld * bytes,
                    static_cast<const char*>(b.data) + r * b.ld * bytes, static_cast<size_t>(a.cols * bytes)),
        0)
        << what << ", row " << r;
  }
}

// All of the memory that GEMMs read, with what pads it.
void expect_same_weight(const FrozenLinear& a, const FrozenLinear& b) {
  const auto padded = [](Tensor t) {
    t.cols = t.ld;
    return t;
  };
  if (a.type.format == FrozenFormat::kFP8) expect_same_bytes(padded(a.weight), padded(b.weight), "codes");
  if (a.scales.cols > 0) expect_same_bytes(a.scales, b.scales, "scales");
  if (a.type.format != FrozenFormat::kNF4) return;
  expect_same_bytes(a.nf4.codes, b.nf4.codes, "codes");
  expect_same_bytes(a.nf4.absmax, b.nf4.absmax, "absmax");
  expect_same_bytes(a.nf4.nested, b.nf4.nested, "nested");
  expect_same_bytes(a.nf4.first, b.nf4.first, "first");
}

// Cuts at odd columns and inside blocks; more values than are quantised at once.
TEST(QuantizedTensors, HaveThePiecesThatWriteQuantizedMakes) {
  Stream stream(Device{.threads = 2});
  for (const FrozenType& type : kAllTypes) {
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{1200, 1024}, {90, 301}, {64, 129}}) {
      const HostMatrix w = uneven_weight(out, in, 1);
      QuantizedTensor tensor(stream, spec_of(w), rows_of(w), type.format);
      const int64_t row_bytes = quantized_row_bytes(type.format, in);
      std::vector<uint8_t> codes(static_cast<size_t>(out * row_bytes));
      std::vector<float> scales(static_cast<size_t>(out));
      tensor.quantize(0, out, codes.data(), scales.data());
      for (const Cut& cut : {Cut{}, Cut{out / 3, out / 2, 0, in}, Cut{0, out, in / 3, in / 2},
                             Cut{0, out, in - 1, 1}, Cut{7, 20, 33, 65}}) {
        SCOPED_TRACE(str_cat(frozen_format_name(type.format), " ", out, "x", in, ": rows from ", cut.row,
                             ", columns from ", cut.col));
        const QuantizedLinear expected(stream, type, w, 0, cut);
        QuantizedLinear found(stream, type, HostMatrix(out, in), 0, cut);
        const ShardSpec piece = spec_of(w, cut);
        QuantizedPieceWriter writer(stream, piece, found.linear,
                                    type.format == FrozenFormat::kNF4 ? &tensor.nf4_scales() : nullptr);
        // In runs of rows that begin and end anywhere.
        for (int64_t row = 0, n = 0; row < out; row += n) {
          n = std::min<int64_t>(out - row, 37);
          writer.write(row, n, codes.data() + row * row_bytes, scales.data() + row);
        }
        expect_same_weight(found.linear, expected.linear);
      }
    }
  }
}

class OneWeight : public WeightSource {
 public:
  explicit OneWeight(const HostMatrix& w) : w_(w) {}
  [[nodiscard]] int64_t bytes_read() const override { return 0; }
  [[nodiscard]] bool has(const std::string&) const override { return true; }
  void read(const ShardSpec& piece, float* to) override { rows_of(w_)(piece.row, piece.rows, to); }

 private:
  const HostMatrix& w_;
};

TEST(DequantisedWeights, AreWhatTheCodesStandFor) {
  Stream stream(Device{.threads = 2});
  const HostMatrix w = uneven_weight(1200, 1025, 1);
  OneWeight base(w);
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    const Matrix64 expected = QuantizedLinear(stream, format, w, 0).dequantized();
    DequantizedWeights weights(base, stream, format, {spec_of(w)});
    std::vector<float> values(static_cast<size_t>(w.view.cols * 500));
    double error = 0;
    for (const int64_t row : {int64_t{0}, int64_t{700}, int64_t{350}}) {
      ShardSpec slice = spec_of(w, Cut{row, 500, 0, w.view.cols});
      weights.read(slice, values.data());
      for (int64_t i = 0; i < 500 * w.view.cols; ++i) {
        const int64_t r = row + i / w.view.cols, c = i % w.view.cols;
        ASSERT_EQ(static_cast<double>(values[static_cast<size_t>(i)]), expected(r, c)) << r << ", " << c;
        error = std::max(
            error,
            std::abs(expected(r, c) - static_cast<double>(w.data[static_cast<size_t>(r * w.view.cols + c)])));
      }
      // A weight that is not quantised is the base's own.
      slice.name = "other";
      weights.read(slice, values.data());
      ASSERT_EQ(values[3], w.data[static_cast<size_t>(row * w.view.cols + 3)]);
    }
    EXPECT_GT(error, 0.001);
  }
}

TEST(DequantisedWeights, WhatIsNotFiniteIsRefusedByNameAndPlace) {
  Stream stream((Device()));
  HostMatrix w = uneven_weight(90, 300, 1);
  w(81, 77) = std::numeric_limits<float>::infinity();
  OneWeight base(w);
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    DequantizedWeights weights(base, stream, format, {spec_of(w)});
    std::vector<float> values(static_cast<size_t>(90 * 300));
    try {
      weights.read(spec_of(w), values.data());
      ADD_FAILURE() << "no error";
    } catch (const DataError& error) {
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "tensor 'weight'", error.what());
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "[81, 77]", error.what());
    }
  }
}

}  // namespace
}  // namespace pesc
