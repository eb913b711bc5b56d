// Rows of control tokens that no training has touched are found, in the embedding and in the head.
#include "runtime/control_tokens.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "model/hf_names.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr int64_t kVocab = 1000, kHidden = 16;

class Matrices : public WeightSource {
 public:
  Matrices() {
    std::mt19937 draw(1);
    std::normal_distribution<float> normal;
    for (const std::string& name : {hf::kEmbedding, hf::kHead}) {
      all[name].resize(static_cast<size_t>(kVocab * kHidden));
      for (float& value : all[name]) value = normal(draw);
    }
  }
  [[nodiscard]] float* row(const std::string& name, int64_t number) {
    return all.at(name).data() + number * kHidden;
  }
  [[nodiscard]] int64_t bytes_read() const override { return 0; }
  [[nodiscard]] bool has(const std::string& name) const override { return all.contains(name); }
  void read(const ShardSpec& piece, float* to) override {
    ASSERT_EQ(piece.global_rows, kVocab);
    ASSERT_EQ(piece.global_cols, kHidden);
    const std::vector<float>& values = all.at(piece.name);
    for (int64_t r = 0; r < piece.rows; ++r) {
      for (int64_t c = 0; c < piece.cols; ++c)
        to[r * piece.cols + c] = values[static_cast<size_t>((piece.row + r) * kHidden + piece.col + c)];
    }
  }

  std::map<std::string, std::vector<float>> all;
};

std::string refusal(Matrices& matrices, bool tied = false) {
  ModelConfig model;
  model.vocab_size = kVocab;
  model.hidden_size = kHidden;
  model.tie_word_embeddings = tied;
  try {
    check_control_tokens(matrices, model,
                         {"t.jinja",
                          {{"<start>", 990}, {"<end>", 991}, {"<far>", -1}},
                          {{"<reserved>", 992}, {"<beyond>", kVocab}},
                          991});
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

TEST(ControlTokens, TrainedRowsPass) {
  Matrices matrices;
  EXPECT_EQ(refusal(matrices), "");
  EXPECT_EQ(refusal(matrices, true), "");
}

TEST(ControlTokens, RowsNearZeroAreRefused) {
  Matrices matrices;
  for (int64_t c = 0; c < kHidden; ++c) matrices.row(hf::kEmbedding, 990)[c] *= 1e-3F;
  const std::string text = refusal(matrices);
  EXPECT_EQ(text.substr(0, 9), "t.jinja: ");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "model.embed_tokens.weight the norm of that of '<start>' (token 990) is", text);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "data.chat_template: \"published\"", text);
}

// Copies a row, with noise that is this share of its norm.
void copy_row(Matrices& matrices, const std::string& name, int64_t from, int64_t to, float noise) {
  for (int64_t c = 0; c < kHidden; ++c) {
    const float value = matrices.row(name, from)[c];
    matrices.row(name, to)[c] = value * (c % 2 == 0 ? 1 + noise : 1 - noise);
  }
}

// Of the norm that ordinary rows have; that is what hides them from a look at the norm.
TEST(ControlTokens, RowsThatAreNotApartAreRefused) {
  for (const float noise : {0.0F, 1e-3F, 5e-3F}) {
    Matrices matrices;
    copy_row(matrices, hf::kEmbedding, 991, 990, noise);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                        "those of '<end>' (token 991) and '<start>' (token 990) are all but equal",
                        refusal(matrices));
  }
  Matrices apart;
  copy_row(apart, hf::kEmbedding, 991, 990, 0.1F);
  EXPECT_EQ(refusal(apart), "");
}

TEST(ControlTokens, ATokenThatIsNotApartFromAReservedOneIsRefused) {
  Matrices matrices;
  copy_row(matrices, hf::kEmbedding, 991, 992, 1e-3F);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "those of '<end>' (token 991) and '<reserved>' (token 992) are all but equal",
                      refusal(matrices));
  // Two reserved ones may be: no text has them.
  Matrices others;
  for (int64_t c = 0; c < kHidden; ++c) others.row(hf::kEmbedding, 992)[c] = 0;
  EXPECT_EQ(refusal(others), "");
}

TEST(ControlTokens, OfAnUntiedHeadTheEndOfTurnIsCompared) {
  Matrices matrices;
  copy_row(matrices, hf::kHead, 990, 992, 0);
  EXPECT_EQ(refusal(matrices), "");
  copy_row(matrices, hf::kHead, 991, 992, 0);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "lm_head.weight those of '<end>' (token 991) and '<reserved>' (token 992)",
                      refusal(matrices));
}

TEST(ControlTokens, OfAnUntiedHeadTheEndOfTurnCounts) {
  Matrices matrices;
  for (int64_t c = 0; c < kHidden; ++c) matrices.row(hf::kHead, 990)[c] = 0;
  EXPECT_EQ(refusal(matrices), "");
  for (int64_t c = 0; c < kHidden; ++c) matrices.row(hf::kHead, 991)[c] = 0;
  EXPECT_EQ(refusal(matrices, true), "");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "lm_head.weight the norm of that of '<end>'",
                      refusal(matrices));
}

}  // namespace
}  // namespace pesc
