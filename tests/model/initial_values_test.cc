// Weights on their way from a source into the parameters.
#include <gtest/gtest.h>

#include "model/hf_names.h"
#include "model/parameters.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

// Every weight is 1, but for one.
class Ones : public WeightSource {
 public:
  Ones(std::string name, int64_t row, int64_t col, float value)
      : name_(std::move(name)), row_(row), col_(col), value_(value) {}
  [[nodiscard]] int64_t bytes_read() const override { return 0; }
  [[nodiscard]] bool has(const std::string&) const override { return true; }
  void read(const ShardSpec& piece, float* to) override {
    std::fill_n(to, piece.size(), 1.0F);
    if (piece.name == name_ && piece.row <= row_ && row_ < piece.row + piece.rows)
      to[(row_ - piece.row) * piece.cols + col_ - piece.col] = value_;
  }

 private:
  std::string name_;
  int64_t row_, col_;
  float value_;
};

TEST(InitialValues, AWeightThatBf16DoesNotHoldIsRefused) {
  ModelConfig model;
  model.vocab_size = 600;
  model.hidden_size = 1024;  // several slices
  model.intermediate_size = 8;
  model.num_hidden_layers = 1;
  model.num_attention_heads = 2;
  model.num_key_value_heads = 2;
  model.head_dim = 4;
  const PescConfig full{.mode = TrainMode::kLora, .lora = {}, .moe = {}};
  const auto load = [&](DType compute, float value) {
    Arena weights("weights", Device{}, int64_t{1} << 24);
    Arena copies("copies", Device{}, int64_t{1} << 20);
    ModelParameters parameters(model, full, Mesh(1, 0, 1, 1), compute, {weights, copies, nullptr});
    Stream stream((Device()));
    Ones source(hf::kHead, 500, 77, value);
    parameters.initialise(stream, &source, 1, 0.02);
  };
  constexpr float kAboveBf16 = 3.4e38F;  // finite, and nearer to infinity than to BF16's largest
  EXPECT_NO_THROW(load(DType::kF32, kAboveBf16));
  EXPECT_NO_THROW(load(DType::kBF16, 3.38e38F));
  try {
    load(DType::kBF16, kAboveBf16);
    ADD_FAILURE() << "no error";
  } catch (const DataError& error) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "'lm_head.weight'", error.what());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "[500, 77]", error.what());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "train.compute_dtype: F32", error.what());
  }
}

}  // namespace
}  // namespace pesc
