// Quantised weights on their way into memory: the same bytes on every layout, rows of zeros, and what is
// refused.
#include "model/quantized_weights.h"

#include <gtest/gtest.h>

#include <limits>

#include "model/hf_names.h"
#include "model/parameters.h"
#include "ops/core/check.h"
#include "ops/fp8.h"
#include "tests/model/quantized_linear.h"

namespace pesc {
namespace {

const std::vector<FrozenType> kTypes = {FrozenFormat::kFP8,
                                        {FrozenFormat::kFP8, DType::kF32, FrozenGemm::kFP8},
                                        FrozenFormat::kNF4,
                                        {FrozenFormat::kNF4, DType::kF32, FrozenGemm::kFP8}};

// The code at a place, and the scale that belongs to it.
std::pair<int, float> code_at(const FrozenLinear& w, int64_t r, int64_t c) {
  if (w.type.format == FrozenFormat::kFP8) return {w.weight.e4m3()[r * w.weight.ld + c], w.scales.f32()[r]};
  const uint8_t two = w.nf4.codes.u8()[r * w.nf4.codes.ld + c / 2];
  const float scale = w.type.gemm == FrozenGemm::kFP8 ? w.scales.f32()[r] : 0.0F;
  return {c % 2 == 0 ? two >> 4 : two & 15, scale};
}

// More values than a slice on the way, and more than a group of NF4; widths that no block divides.
TEST(QuantizedWeights, AreTheSameBytesOnEveryLayout) {
  Stream stream(Device{.threads = 2});
  for (const FrozenType& type : kTypes) {
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{1200, 1024}, {90, 300}, {64, 129}}) {
      const HostMatrix w = uneven_weight(out, in, 1);
      const QuantizedLinear whole(stream, type, w, 0);
      const Matrix64 values = whole.dequantized();
      for (const int64_t tp : {2, 3, 4}) {
        for (int64_t i = 0; i < tp; ++i) {
          const int64_t r0 = out * i / tp, r1 = out * (i + 1) / tp;
          const int64_t c0 = in * i / tp, c1 = in * (i + 1) / tp;
          for (const Cut& cut : {Cut{r0, r1 - r0, 0, in}, {0, out, c0, c1 - c0}}) {
            SCOPED_TRACE(str_cat(frozen_format_name(type.format), " ", out, "x", in, ": rows from ", cut.row,
                                 ", columns from ", cut.col));
            const QuantizedLinear piece(stream, type, w, 0, cut);
            const Matrix64 some = piece.dequantized();
            for (int64_t r = 0; r < cut.rows; ++r) {
              for (int64_t c = 0; c < cut.cols; ++c) {
                ASSERT_EQ(code_at(piece.linear, r, c), code_at(whole.linear, cut.row + r, cut.col + c));
                ASSERT_EQ(some(r, c), values(cut.row + r, cut.col + c));
              }
            }
          }
        }
      }
    }
  }
}

// So that neither the host nor the device ever holds more than a slice of a tensor unquantised.
TEST(QuantizedWeights, AreAskedForSliceBySlice) {
  Stream stream(Device{.threads = 2});
  constexpr int64_t kOut = 1200, kIn = 4096;
  for (const FrozenType& type : kTypes) {
    Arena memory("weight", Device{}, int64_t{1} << 24);
    const FrozenLinear linear = FrozenLinear::allocate(memory, type, kOut, kIn, 0);
    const ShardSpec spec{"weight", kOut, kIn, 0, kOut, 0, kIn, 0, 1};
    int64_t largest = 0, rows = 0;
    const FillRows fill = [&](int64_t row, const Tensor& to) {
      EXPECT_EQ(to.cols, kIn);
      EXPECT_LE(row + to.rows, kOut);
      largest = std::max(largest, to.size());
      rows += to.rows;
      std::fill_n(to.f32(), to.size(), 0.5F);
    };
    write_quantized(stream, spec, fill, linear);
    EXPECT_LE(largest, quantized_slice_values(stream));
    EXPECT_LT(largest, kOut * kIn / 4);
    EXPECT_EQ(rows, type.format == FrozenFormat::kNF4 ? 2 * kOut : kOut);
  }
}

TEST(QuantizedWeights, RowsOfZerosStayZeros) {
  Stream stream((Device()));
  for (const FrozenType& type : kTypes) {
    const HostMatrix w = uneven_weight(20, 64, 1);
    const QuantizedLinear q(stream, type, w, 0);
    const Matrix64 values = q.dequantized();
    for (const int64_t r : {3, 14})
      for (int64_t c = 0; c < 64; ++c) EXPECT_EQ(values(r, c), 0.0);
    if (q.linear.scales.cols > 0) {
      EXPECT_EQ(q.linear.scales.f32()[3], 1.0F);
    }
  }
}

TEST(QuantizedWeights, WhatIsNotFiniteIsRefusedByNameAndPlace) {
  Stream stream((Device()));
  for (const FrozenType& type : kTypes) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      HostMatrix w = uneven_weight(1200, 1024, 1);
      w(1100, 77) = bad;
      // Whatever the columns of this rank are: all ranks refuse.
      for (const Cut& cut : {Cut{}, {0, 1200, 512, 512}}) {
        try {
          const QuantizedLinear q(stream, type, w, 0, cut);
          ADD_FAILURE() << "no error";
        } catch (const DataError& error) {
          EXPECT_PRED_FORMAT2(::testing::IsSubstring, "tensor 'weight'", error.what());
          EXPECT_PRED_FORMAT2(::testing::IsSubstring, "[1100, 77]", error.what());
          EXPECT_PRED_FORMAT2(::testing::IsSubstring, frozen_format_name(type.format), error.what());
        }
      }
    }
  }
}

// Random weights, as the benchmarks have them: the pieces of two ranks are those of one.
TEST(QuantizedWeights, RandomOnesDoNotDependOnTheLayout) {
  ModelConfig model;
  model.vocab_size = 40;
  model.hidden_size = 48;
  model.intermediate_size = 80;
  model.num_hidden_layers = 1;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 12;
  const PescConfig pesc{.mode = TrainMode::kLora, .lora = {}, .moe = {}};
  Stream stream((Device()));
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    const auto values = [&](int tp, int rank, const std::string& name) {
      Arena weights("weights", Device{}, 1 << 20), copies("copies", Device{}, 1 << 16);
      ModelParameters parameters(model, pesc, Mesh(tp, rank, tp, 1), {DType::kF32, format},
                                 {weights, copies, nullptr});
      parameters.initialise(stream, nullptr, 7, 0.02);
      const Parameter& p = parameters.find(name);
      EXPECT_FALSE(p.master.present());
      EXPECT_LT(p.held.bytes(), p.spec.size() * 2);
      HostMatrix out(p.spec.rows, p.spec.cols);
      if (format == FrozenFormat::kNF4) {
        nf4_dequantize(stream, p.held.nf4, 0, out.view);
      } else {
        fp8_dequantize(stream, p.held.weight, p.held.scales, out.view);
      }
      return std::pair(out, p.spec);
    };
    for (const Linear linear : {Linear::kQ, Linear::kK, Linear::kO, Linear::kUp, Linear::kDown}) {
      const std::string name = hf::weight(0, linear);
      const HostMatrix whole = values(1, 0, name).first;
      for (int rank = 0; rank < 2; ++rank) {
        const auto [piece, spec] = values(2, rank, name);
        for (int64_t r = 0; r < spec.rows; ++r)
          for (int64_t c = 0; c < spec.cols; ++c)
            ASSERT_EQ(piece(r, c), whole(spec.row + r, spec.col + c)) << name;
      }
      double square = 0;
      for (const float v : whole.data) square += static_cast<double>(v) * static_cast<double>(v);
      EXPECT_NEAR(std::sqrt(square / static_cast<double>(whole.data.size())), 0.02, 0.002) << name;
    }
  }
}

}  // namespace
}  // namespace pesc
