// data.validation_fraction: which rows are evaluated is a function of their content.
#include "runtime/data/row_split.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <cmath>
#include <set>
#include <string>

#include "ops/core/check.h"
#include "runtime/data/dataset.h"
#include "runtime/data/rows.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

Row row(const std::string& json) {
  return parse_row(json, "f:1");
}
uint64_t digest(const std::string& json) {
  return content_digest(row(json));
}

TEST(RowSplit, TheDigestIsOfWhatIsSeenAndLearnedInAnyForm) {
  const uint64_t one = digest(R"({"instruction": "a", "output": "b"})");
  for (const char* same :
       {R"({"instruction": "a", "output": "b", "dataset": "t", "id": 5})",
        R"({"prompt": "a", "completion": "b"})", R"({"conversation": [{"input": "a", "output": "b"}]})",
        R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"})
    EXPECT_EQ(digest(same), one) << same;
  std::set<uint64_t> all{one};
  for (const char* other :
       {R"({"instruction": "", "output": "ab"})", R"({"instruction": "a", "output": "b", "system": "s"})",
        R"({"corpus": "ab"})",
        R"({"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]})",
        R"({"conversation": [{"input": "a", "output": "b", "weight": 0}]})"})
    EXPECT_TRUE(all.insert(digest(other)).second) << other;
  EXPECT_EQ(all.size(), 6U);
}

// Written down, so that another build or machine splits alike.
TEST(RowSplit, TheDigestDoesNotChange) {
  Row r;
  r.corpus = "text";
  std::string bytes(8, '\0');
  bytes += std::string("\x04\0\0\0\0\0\0\0", 8) + "text";
  EXPECT_EQ(content_digest(r), XXH3_64bits(bytes.data(), bytes.size()));
}

TEST(RowSplit, EachRowIsOnOneSideAndTheShareIsAboutAsAsked) {
  for (const double fraction : {0.01, 0.1, 0.5, 0.9}) {
    int validation = 0;
    constexpr int kRows = 20000;
    for (int i = 0; i < kRows; ++i) {
      Row r;
      r.corpus = "row " + std::to_string(i);
      const bool in = RowSplit{fraction, RowPart::kValidation}.takes(r);
      const bool out = RowSplit{fraction, RowPart::kTraining}.takes(r);
      EXPECT_NE(in, out);
      EXPECT_TRUE((RowSplit{fraction, RowPart::kAll}.takes(r)));
      validation += in ? 1 : 0;
      // A larger share has all rows of a smaller one.
      EXPECT_TRUE(!in || (RowSplit{fraction + 0.05, RowPart::kValidation}.takes(r)));
    }
    const double deviation = std::sqrt(fraction * (1 - fraction) / kRows);
    EXPECT_NEAR(validation / static_cast<double>(kRows), fraction, 6 * deviation);
  }
}

class SplitDataset : public ::testing::Test {
 protected:
  static std::string rows(int from, int to) {
    std::string text;
    for (int i = from; i < to; ++i) text += R"({"corpus": "row )" + std::to_string(i) + "\"}\n";
    return text;
  }
  std::set<std::string> texts(const std::string& content, RowPart part, double fraction = 0.3) {
    std::set<std::string> found;
    DatasetOptions options;
    options.max_seq_length = 64;
    options.split = {fraction, part};
    options.on_row = [&](const Row& r) { found.insert(r.corpus); };
    const Dataset data({{folder_.write("rows.jsonl", content), "", 1}}, ByteTokenizer(), options);
    report_ = data.report();
    EXPECT_EQ(data.rows(), report_.rows);
    return found;
  }
  std::string refusal(RowPart part, double fraction, const std::string& content) {
    try {
      (void)texts(content, part, fraction);
    } catch (const DataError& error) {
      return error.what();
    }
    return "accepted";
  }
  TokenizerFolder folder_;
  DatasetReport report_;
};

TEST_F(SplitDataset, EveryRowIsTrainedOnOrEvaluatedAndStaysWhereItIs) {
  const auto training = texts(rows(0, 200), RowPart::kTraining);
  const auto validation = texts(rows(0, 200), RowPart::kValidation);
  EXPECT_EQ(training.size() + validation.size(), 200U);
  for (const std::string& text : validation) EXPECT_FALSE(training.contains(text));
  // Rows are added, in front, behind, and a second time.
  const auto more = texts(rows(200, 300) + rows(0, 200) + rows(0, 100), RowPart::kValidation);
  for (const std::string& text : validation) EXPECT_TRUE(more.contains(text));
  for (const std::string& text : training) EXPECT_FALSE(more.contains(text));
}

TEST_F(SplitDataset, WhatConcernsTheFileIsReportedOnce) {
  const std::string content = rows(0, 50) + R"({"corpus": " "})" + "\n";
  (void)texts(content, RowPart::kTraining);
  EXPECT_EQ(report_.dropped, 1);
  (void)texts(content, RowPart::kValidation);
  EXPECT_EQ(report_.dropped, 0);
  EXPECT_TRUE(report_.messages.empty());
}

TEST_F(SplitDataset, AnEmptySideIsRefusedWithTheWayOut) {
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "data.validation_fraction 1e-06 takes no row of",
                      refusal(RowPart::kValidation, 1e-6, rows(0, 20)));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "take a larger one, or name files in data.eval",
                      refusal(RowPart::kValidation, 1e-6, rows(0, 20)));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "leaves no row to learn from",
                      refusal(RowPart::kTraining, 0.999999, rows(0, 20)));
}

}  // namespace
}  // namespace pesc
