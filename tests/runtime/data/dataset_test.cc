#include "runtime/data/dataset.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "ops/core/check.h"
#include "runtime/data/row_record.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

std::string row_text(const std::string& text, const std::string& tag = "") {
  return R"({"corpus": ")" + text + "\"" + (tag.empty() ? "" : R"(, "dataset": ")" + tag + "\"") + "}\n";
}
std::string rows_text(int rows) {
  std::string text;
  for (int i = 0; i < rows; ++i) text += row_text("r" + std::to_string(i));
  return text;
}

template <class T>
std::vector<int32_t> list(const std::vector<T>& values) {
  return {values.begin(), values.end()};
}

DatasetOptions length(int64_t max_seq_length) {
  DatasetOptions options;
  options.max_seq_length = max_seq_length;
  return options;
}

// What a resumed run is compared by: whatever is trained on counts, and nothing else.
TEST(Dataset, TheRecordTellsWhichRowsAreTrained) {
  const TokenizerFolder folder;
  const ByteTokenizer bytes;
  const auto record = [&](const std::string& one, const std::string& two, int64_t max_seq_length = 64) {
    return row_record(
        Dataset({{folder.write("one.jsonl", one), "", 1}, {folder.write("two.jsonl", two), "", 1}}, bytes,
                length(max_seq_length)));
  };
  const std::string one = row_text("abc") + row_text("de");
  const std::string two = R"({"instruction": "q", "output": "zz"})";
  const std::string before = record(one, two);
  EXPECT_TRUE(row_differences(before, record(one, two)).empty());
  EXPECT_TRUE(row_differences(before, record("\n" + row_text("abc", "tag") + row_text("de"), two)).empty());
  const auto different = [&](const std::string& now, int file, const std::string& words) {
    const auto found = row_differences(before, now);
    ASSERT_EQ(found.size(), 1U) << now;
    EXPECT_NE(found[0].find(str_cat("data.train[", file, "].path")), std::string::npos) << found[0];
    EXPECT_NE(found[0].find(file == 0 ? "one.jsonl" : "two.jsonl"), std::string::npos) << found[0];
    EXPECT_NE(found[0].find(words), std::string::npos) << found[0];
  };
  different(record(row_text("abc") + row_text("df"), two), 0, "but others");
  different(record(row_text("de") + row_text("abc"), two), 0, "another order");
  different(record(row_text("abcd") + row_text("e"), two), 0, "but others");  // cut elsewhere
  different(record(one + row_text("f"), two), 0, "3 rows instead of 2");
  different(record(row_text("abc"), two), 0, "1 rows instead of 2");
  different(record(one, R"({"instruction": "", "input": "p", "output": "zz"})"), 1, "but others");
  different(record(one, row_text("q")), 1, "but others");
  EXPECT_EQ(row_differences(before,
                            row_record(Dataset({{folder.write("one.jsonl", one), "", 1}}, bytes, length(64))))
                .size(),
            1U);
  const auto swapped = row_differences(before, record(two, one));
  ASSERT_EQ(swapped.size(), 1U);
  EXPECT_NE(swapped[0].find("the same files in another order"), std::string::npos);
  EXPECT_EQ(row_differences(before, record(one, two, 3)).size(), 2U);  // all are cut
  EXPECT_THROW(static_cast<void>(row_differences("2 0123\n", before)), DataError);
  EXPECT_THROW(static_cast<void>(row_differences("many 0123 path\n", before)), DataError);
}

TEST(Dataset, TokensMasksTagsAndReport) {
  const TokenizerFolder folder;
  const std::string a =
      folder.write("a.jsonl", row_text("abc", "red") + row_text("de", "blue") + row_text("f"));
  const std::string b = folder.write(
      "b.json",
      R"([{"instruction": "q", "output": "zz", "dataset": "red"}, {"corpus": "g", "dataset": "red"}])");
  const ByteTokenizer bytes;
  const Dataset data({{a, "", 1}, {b, "green", 1}}, bytes, length(64));
  ASSERT_EQ(data.rows(), 5);
  EXPECT_EQ(data.epoch_size(), 5);
  EXPECT_EQ(data.tags(), (std::vector<std::string>{"red", "blue", "a", "green"}));
  EXPECT_EQ(data.tag(0), 0);
  EXPECT_EQ(data.tag(1), 1);
  EXPECT_EQ(data.tag(2), 2);
  EXPECT_EQ(data.tag(3), 3);
  EXPECT_EQ(data.tag(4), 3);
  EXPECT_EQ(list(data.read(1).tokens), (std::vector<int32_t>{1, 'd' + 3, 'e' + 3, 2}));
  EXPECT_EQ(list(data.read(1).supervised), (std::vector<int32_t>{1, 1, 1, 0}));
  Row alpaca;
  alpaca.turns = {{"q", "zz"}};
  const Sample sample = encode_row(bytes, alpaca, 64);
  EXPECT_TRUE(std::ranges::equal(data.read(3).tokens, sample.tokens));
  for (size_t t = 0; t < sample.labels.size(); ++t) {
    EXPECT_EQ(data.read(3).supervised[t] != 0, sample.labels[t] != kUnsupervised);
  }
  const DatasetReport& report = data.report();
  EXPECT_EQ(report.rows, 5);
  EXPECT_EQ(report.tokens, 5 + 4 + 3 + std::ssize(sample.tokens) + 3);
  EXPECT_EQ(report.supervised, 4 + 3 + 2 + 3 + 2);
  EXPECT_EQ(report.dropped + report.truncated + report.bad, 0);
  EXPECT_EQ(data.longest_row(), std::ssize(sample.tokens));
}

// As a tokenizer refuses a text: beyond a limit, or without a token for unknown text.
class RefusingTokenizer : public ByteTokenizer {
 public:
  [[nodiscard]] std::vector<int32_t> encode(std::string_view text) const override {
    if (text.find('!') != std::string_view::npos) throw DataError("the text has a !");
    return ByteTokenizer::encode(text);
  }
};

TEST(Dataset, ARowThatTheTokenizerRefusesIsABadRow) {
  const TokenizerFolder folder;
  const std::string path =
      folder.write("a.jsonl", row_text("abc") + row_text("d!") + row_text("e!") + row_text("fgh"));
  DatasetOptions options = length(64);
  options.rows.policy_field = "data.on_bad_row";
  try {
    const Dataset data({{path, "", 1}}, RefusingTokenizer(), options);
    FAIL() << "is not refused";
  } catch (const DataError& error) {
    EXPECT_EQ(std::string(error.what()),
              path + ":2: the text has a ! (data.on_bad_row: SKIP leaves such rows out)");
  }
  options.rows.on_bad_row = OnBadRow::kSkip;
  const Dataset data({{path, "", 1}}, RefusingTokenizer(), options);
  EXPECT_EQ(data.rows(), 2);
  EXPECT_EQ(data.report().bad, 2);
  EXPECT_EQ(data.report().messages.at(0), path + ":2: the text has a !; skipped");
}

TEST(Dataset, ARowWithNothingLeftToLearnIsReportedNotTrained) {
  const TokenizerFolder folder;
  const std::string longer(40, 'q');
  const std::string path = folder.write("a.jsonl", row_text("abc") + R"({"instruction": ")" + longer +
                                                       R"(", "output": "x"})" + "\n" + row_text(longer));
  const Dataset data({{path, "", 1}}, ByteTokenizer(), length(30));
  EXPECT_EQ(data.rows(), 2);
  EXPECT_EQ(data.report().dropped, 1);
  EXPECT_EQ(data.report().truncated, 1);
  EXPECT_EQ(data.longest_row(), 30);
  for (int64_t row = 0; row < 2; ++row) EXPECT_EQ(data.read(row).supervised[0], 1);
  ASSERT_EQ(data.report().messages.size(), 1U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, path + ":2: nothing to learn", data.report().messages[0]);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "2 rows", to_string(data.report()));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "1 rows dropped", to_string(data.report()));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "1 rows cut", to_string(data.report()));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2: nothing", to_string(data.report()));
}

TEST(Dataset, AnEmptyAnswerIsReportedNotTrained) {
  const TokenizerFolder folder;
  const std::string path =
      folder.write("a.jsonl", row_text("abc") + R"({"instruction": "q", "input": "", "output": ""})" + "\n" +
                                  row_text("de"));
  const Dataset data({{path, "", 1}}, ByteTokenizer(), length(30));
  EXPECT_EQ(data.rows(), 2);
  EXPECT_EQ(data.report().dropped, 1);
  EXPECT_EQ(data.report().bad, 0);
  ASSERT_EQ(data.report().messages.size(), 1U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, path + ":2: \"output\" is empty", data.report().messages[0]);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "1 rows dropped", to_string(data.report()));
}

std::string warnings(const Dataset& data) {
  std::string all;
  for (const std::string& warning : data.report().warnings) all += warning + "\n";
  return all;
}

TEST(Dataset, WhatTheTokenizerCannotSayIsCountedAndReported) {
  const TokenizerFolder folder;
  train_sentencepiece(folder, kDefaultsNoBos);  // squeezes spaces, and knows no other characters
  const auto tokenizer = open_tokenizer(folder.path());
  const std::string path = folder.write(
      "a.jsonl", row_text("the lazy dog") + row_text("the  lazy dog") + row_text("the \xE6\x97\xA5") +
                     row_text("a  b") + R"({"instruction": "q", "output": "\u200b\u3000"})" + "\n");
  const Dataset data({{path, "", 1}}, *tokenizer, length(64));
  EXPECT_EQ(data.rows(), 4);
  EXPECT_EQ(data.report().dropped, 1);
  ASSERT_EQ(data.report().messages.size(), 1U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":5: the tokenizer has no token for an answer",
                      data.report().messages[0]);
  ASSERT_EQ(data.report().warnings.size(), 2U) << warnings(data);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, path + ": 1 of 4 rows have characters",
                      data.report().warnings[0]);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "unknown (" + path + ":3: 'the \xE6\x97\xA5' becomes '",
                      data.report().warnings[0]);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, path + ": 2 of 4 rows do not come back",
                      data.report().warnings[1]);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, path + ":2: 'the  lazy dog' becomes 'the lazy dog'",
                      data.report().warnings[1]);
  EXPECT_EQ(warnings(Dataset({{folder.write("b.jsonl", rows_text(3)), "", 1}}, ByteTokenizer(), length(64))),
            "");
}

TEST(Dataset, EverySourceSaysWhatItGives) {
  const TokenizerFolder folder;
  const std::string a = folder.write("a.jsonl", rows_text(4));
  const std::string b = folder.write("b.jsonl", rows_text(10));
  const std::string none = folder.write("none.jsonl", "\n");
  const Dataset data({{a, "", 0.33}, {b, "", 2.5}, {none, "", 1}, {a, "", 0.1}}, ByteTokenizer(), length(30));
  EXPECT_EQ(data.epoch_size(), 1 + 25 + 1);
  const std::string text = to_string(data.report());
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, a + ": 4 rows, weight 0.33: 1 rows an epoch", text);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, b + ": 10 rows, weight 2.5: 25 rows an epoch", text);
  ASSERT_EQ(data.report().warnings.size(), 3U) << warnings(data);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      a + ": a weight of 0.33 asks for 1.32 of its 4 rows an epoch; 1 are taken",
                      data.report().warnings[0]);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, none + ": has no row to learn from", data.report().warnings[1]);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "0.1 asks for 0.4 of its 4 rows", data.report().warnings[2]);
}

TEST(Dataset, WhatIsReadOfSomeRowsOnlyIsSaid) {
  const TokenizerFolder folder;
  const std::string path =
      folder.write("a.jsonl", R"({"instruction": "a", "output": "b", "history": [["c", "d"]]})"
                              "\n" +
                                  row_text("e"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ": 2 rows; read with them: \"history\" (1 row)",
                      to_string(Dataset({{path, "", 1}}, ByteTokenizer(), length(200)).report()));
}

TEST(Dataset, UnusedFieldsAndUnprintableTags) {
  const TokenizerFolder folder;
  const std::string path = folder.write("caf\xE9.jsonl", R"({"corpus": "a", "id": 3})"
                                                         "\n"
                                                         R"({"corpus": "b", "dataset": "x\ny"})");
  const Dataset data({{path, "", 1}}, ByteTokenizer(), length(30));
  EXPECT_EQ(data.tags(), (std::vector<std::string>{"caf\\xE9", "x\\x0Ay"}));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "fields that nothing reads: \"id\" (1 row)", warnings(data));
}

TEST(Dataset, RowsOfNoWeightAreShownOrLeftOut) {
  const TokenizerFolder folder;
  const std::string path = folder.write(
      "a.jsonl",
      R"({"conversation": [{"input": "a", "output": "b", "weight": 0}, {"input": "c", "output": "d"}]})"
      "\n"
      R"({"conversation": [{"input": "a", "output": "b", "train": false}]})");
  const Dataset data({{path, "", 1}}, ByteTokenizer(), length(200));
  ASSERT_EQ(data.rows(), 1);
  EXPECT_EQ(data.report().supervised, 2);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2: none of its answers is to be learned",
                      data.report().messages.at(0));
}

TEST(Dataset, AsManyTagsAsRowsTakeNoLonger) {
  const TokenizerFolder folder;
  std::string text;
  for (int i = 0; i < 50000; ++i) text += row_text("r", "t" + std::to_string(i));
  const Dataset data({{folder.write("a.jsonl", text), "", 1}}, ByteTokenizer(), length(30));
  EXPECT_EQ(data.tags().size(), 50000U);
  EXPECT_EQ(data.tags()[static_cast<size_t>(data.tag(49999))], "t49999");
}

TEST(Dataset, NothingAtAllToLearnIsAnError) {
  const TokenizerFolder folder;
  const std::string empty = folder.write("empty.jsonl", "\n");
  EXPECT_THROW(Dataset({{empty, "", 1}}, ByteTokenizer(), length(30)), DataError);
  const std::string cut =
      folder.write("cut.jsonl", R"({"instruction": ")" + std::string(40, 'q') + R"(", "output": "x"})");
  try {
    const Dataset data({{cut, "", 1}}, ByteTokenizer(), length(30));
    FAIL();
  } catch (const DataError& error) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, cut, error.what());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "1 rows dropped", error.what());
  }
}

TEST(Dataset, BadRowsStopOrAreSkipped) {
  const TokenizerFolder folder;
  const std::string path = folder.write("a.jsonl", row_text("a") + "{\"corpus\": 5}\n" + row_text("b"));
  EXPECT_THROW(Dataset({{path, "", 1}}, ByteTokenizer(), length(30)), DataError);
  DatasetOptions options = length(30);
  options.rows.on_bad_row = OnBadRow::kSkip;
  const Dataset data({{path, "", 1}}, ByteTokenizer(), options);
  EXPECT_EQ(data.rows(), 2);
  EXPECT_EQ(data.report().bad, 1);
  ASSERT_EQ(data.report().messages.size(), 1U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2: \"corpus\" is a number", data.report().messages[0]);
}

TEST(Dataset, BadArgumentsAreUsageErrors) {
  const TokenizerFolder folder;
  const std::string path = folder.write("a.jsonl", row_text("a"));
  const ByteTokenizer bytes;
  EXPECT_THROW(Dataset({}, bytes, length(30)), UsageError);
  EXPECT_THROW(Dataset({{path, "", 1}}, bytes, length(1)), UsageError);
  for (const double weight : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity(), 1e300}) {
    EXPECT_THROW(Dataset({{path, "", weight}}, bytes, length(30)), UsageError) << weight;
  }
  EXPECT_THROW(Dataset({{folder / "none", "", 1}}, bytes, length(30)), DataError);
}

TEST(Dataset, WeightsGiveExactlyThatManyCopies) {
  const TokenizerFolder folder;
  const std::string a = folder.write("a.jsonl", rows_text(40));
  const std::string b = folder.write("b.jsonl", rows_text(100));
  const std::string c = folder.write("c.jsonl", rows_text(7));
  const Dataset data({{a, "", 2.25}, {b, "", 0.3}, {c, "", 1}}, ByteTokenizer(), length(30));
  ASSERT_EQ(data.epoch_size(), 90 + 30 + 7);
  std::set<std::vector<int64_t>> shares;
  std::map<int64_t, int> seen_b;
  for (int64_t epoch = 0; epoch < 50; ++epoch) {
    std::vector<int> copies(static_cast<size_t>(data.rows()));
    std::vector<int64_t> share;
    for (int64_t entry = 0; entry < data.epoch_size(); ++entry) {
      const int64_t row = data.entry_row(entry, epoch, 5);
      ++copies.at(static_cast<size_t>(row));
      if (row >= 40 && row < 140) {
        share.push_back(row);
        ++seen_b[row];
      }
    }
    EXPECT_EQ(std::count(copies.begin(), copies.begin() + 40, 3), 10);
    EXPECT_EQ(std::count(copies.begin(), copies.begin() + 40, 2), 30);
    EXPECT_EQ(std::count(copies.begin() + 40, copies.begin() + 140, 1), 30);
    EXPECT_EQ(std::count(copies.begin() + 40, copies.begin() + 140, 0), 70);
    EXPECT_EQ(std::count(copies.begin() + 140, copies.end(), 1), 7);
    shares.insert(share);
  }
  // Every epoch draws its own share, and in time each row comes: 50 draws of 0.3.
  EXPECT_EQ(shares.size(), 50U);
  EXPECT_EQ(seen_b.size(), 100U);
  for (const auto& [row, times] : seen_b) EXPECT_TRUE(times > 2 && times < 32) << row << " " << times;
  EXPECT_NE(data.entry_row(90, 0, 5), data.entry_row(90, 0, 6));
}

}  // namespace
}  // namespace pesc
