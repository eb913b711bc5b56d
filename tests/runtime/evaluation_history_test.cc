#include "runtime/evaluation_history.h"

#include <gtest/gtest.h>

#include "ops/core/check.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

TEST(EvaluationHistory, CountsEvaluationsSinceTheLowestLoss) {
  EvaluationHistory history;
  EXPECT_TRUE(history.empty());
  EXPECT_TRUE(history.add(10, 2.0));
  EXPECT_FALSE(history.add(20, 2.0));  // no improvement
  EXPECT_FALSE(history.add(30, 3.0));
  EXPECT_EQ(history.without_improvement(), 2);
  EXPECT_EQ(history.lowest_step(), 10);
  EXPECT_TRUE(history.add(40, 1.0));
  EXPECT_EQ(history.without_improvement(), 0);
  EXPECT_EQ(history.lowest_step(), 40);
  EXPECT_EQ(history.lowest(), 1.0);
}

TEST(EvaluationHistory, IsTheSameAfterItWasSaved) {
  EvaluationHistory history("0123");
  (void)history.add(10, 1.0 / 3);
  (void)history.add(20, 5);
  EvaluationHistory loaded = EvaluationHistory::load(history.save());
  EXPECT_EQ(loaded.rows(), "0123");
  EXPECT_EQ(loaded.lowest(), 1.0 / 3);
  EXPECT_EQ(loaded.lowest_step(), 10);
  EXPECT_EQ(loaded.without_improvement(), 1);
  EXPECT_FALSE(loaded.add(30, 1.0 / 3));
  EXPECT_EQ(loaded.without_improvement(), 2);
  for (const char* wrong :
       {"", "0123", "0123 10 x 1", "0123 10 1.5 -1", "0123 10 nan 1", "0123 10 1 1 more", "0123 -2 1 1"})
    EXPECT_THROW((void)EvaluationHistory::load(wrong), DataError) << wrong;
}

TEST(EvaluationHistory, LossesOverOtherRowsAreToldApart) {
  const TokenizerFolder folder;
  const auto rows = [&](const std::string& text, int64_t samples = 0, const char* name = "a.jsonl") {
    DatasetOptions options;
    options.max_seq_length = 64;
    return evaluated_rows(Dataset({{folder.write(name, text), "", 1}}, ByteTokenizer(), options), samples);
  };
  const std::string one = "{\"corpus\": \"abc\"}\n";
  EXPECT_EQ(rows(one), rows(one, 0, "elsewhere.jsonl"));
  EXPECT_NE(rows(one), rows("{\"corpus\": \"abd\"}\n"));
  EXPECT_NE(rows(one), rows(one, 1));
  EXPECT_EQ(rows(one).find(' '), std::string::npos);
}

}  // namespace
}  // namespace pesc
