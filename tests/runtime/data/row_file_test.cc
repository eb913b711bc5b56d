#include "runtime/data/row_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "ops/core/check.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

using Texts = std::vector<std::string>;

std::string row_text(const std::string& text) {
  return R"({"corpus": ")" + text + "\"}";
}

class RowFiles : public ::testing::Test {
 protected:
  // "text@place" of each row.
  std::vector<std::string> read(const std::string& text, RowOptions options = {}) {
    const std::string path = folder_.write("data.json", text);
    std::vector<std::string> rows;
    report_ = for_each_row(path, options, [&](Row&& row, const std::string& where) {
      rows.push_back(row.corpus + "@" + where.substr(path.size()));
    });
    EXPECT_EQ(report_.rows, std::ssize(rows));
    return rows;
  }
  std::string refusal(const std::string& text, const RowOptions& options = {}) {
    try {
      (void)read(text, options);
    } catch (const DataError& error) {
      const std::string what = error.what();
      EXPECT_EQ(what.rfind(folder_ / "data.json:", 0), 0U) << what;
      return what.substr((folder_ / "data.json").size());
    }
    return "accepted";
  }
  TokenizerFolder folder_;
  RowsReport report_;
};

const RowOptions kSkipping{.on_bad_row = OnBadRow::kSkip};

TEST_F(RowFiles, JsonLinesWithTheirLineNumbers) {
  EXPECT_EQ(read(row_text("a") + "\n\n  \t\r\n" + row_text("b") + "\r\n" + row_text("c")),
            (Texts{"a@:1", "b@:4", "c@:5"}));
  EXPECT_EQ(read("\xEF\xBB\xBF" + row_text("a") + "\n"), (Texts{"a@:1"}));
  EXPECT_THROW((void)read(""), DataError);  // FileKind.EveryReaderLooks
  EXPECT_EQ(read("\n \n"), (Texts{}));
}

TEST_F(RowFiles, AnArrayWithElementAndLine) {
  EXPECT_EQ(
      read("\n [" + row_text("a") + ",\n" + row_text("x]},\\\"[{") + "\n,\n\n{\n\"corpus\":\n\"c\"}] \n"),
      (Texts{"a@:2 (element 0)", "x]},\"[{@:3 (element 1)", "c@:6 (element 2)"}));
  EXPECT_EQ(read("[]"), (Texts{}));
  EXPECT_EQ(read(" [ ]\n"), (Texts{}));
}

TEST_F(RowFiles, BothFormsAcrossBufferBorders) {
  // Rows of some 100 KB, so that strings and escapes fall on the borders of any buffer.
  std::string lines;
  std::string array = "[";
  std::vector<std::string> lines_expected;
  std::vector<std::string> array_expected;
  for (int i = 0; i < 12; ++i) {
    std::string text;
    std::string escaped;
    for (int k = 0; k < 33331 + i; ++k) {
      text += "\"]\\";
      escaped += "\\\"]\\\\";
    }
    lines += row_text(escaped) + "\n";
    array += (i > 0 ? ",\n" : "") + row_text(escaped);
    lines_expected.push_back(text + "@:" + std::to_string(i + 1));
    array_expected.push_back(text + "@:" + std::to_string(i + 1) + " (element " + std::to_string(i) + ")");
  }
  EXPECT_EQ(read(lines), lines_expected);
  EXPECT_EQ(read(array + "]"), array_expected);
}

TEST_F(RowFiles, BadRowsStopTheReading) {
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2: has none of", refusal(row_text("a") + "\n{\"x\": 1}\n"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2: is not valid UTF-8", refusal("\n{\"corpus\": \"\xFF\"}"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":1: is not valid JSON",
                      refusal(row_text("a") + " " + row_text("b")));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2 (element 1): the row is a number",
                      refusal("[" + row_text("a") + ",\n 7]"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2 (element 1): the row is an array",
                      refusal("[" + row_text("a") + ",\n[]]"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":1: ", refusal("\xEF\xBC" + row_text("a")));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":1: holds a NUL", refusal(std::string("\0\0\0\n", 4)));
}

TEST_F(RowFiles, BadRowsAreSkippedAndCountedWhenAsked) {
  std::string lines;
  for (int i = 0; i < 20; ++i) lines += "{\"x\": 1}\n" + row_text("r" + std::to_string(i)) + "\n";
  EXPECT_EQ(read(lines, kSkipping).size(), 20U);
  EXPECT_EQ(report_.bad, 20);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "; skipped", report_.messages[0]);
  ASSERT_EQ(report_.messages.size(), 8U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "data.json:3: has none of", report_.messages[1]);
  EXPECT_EQ(read("[" + row_text("a") + ", 7, \"s\", {}, " + row_text("b") + "]", kSkipping),
            (Texts{"a@:1 (element 0)", "b@:1 (element 4)"}));
  EXPECT_EQ(report_.bad, 3);
}

TEST_F(RowFiles, RowsWithAnEmptyAnswerAreLeftOutAndReported) {
  const std::string text = row_text("a") + "\n" + R"({"instruction": "q", "output": ""})" + "\n" +
                           row_text(" ") + "\n" + row_text("b") + "\n";
  for (const RowOptions& options : {RowOptions{}, kSkipping}) {
    EXPECT_EQ(read(text, options), (Texts{"a@:1", "b@:4"}));
    EXPECT_EQ(report_.empty, 2);
    EXPECT_EQ(report_.bad, 0);
    ASSERT_EQ(report_.messages.size(), 2U);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "data.json:2: \"output\" is empty", report_.messages[0]);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "; dropped", report_.messages[1]);
  }
  // Nothing that is asked goes without an answer unnoticed.
  const std::string asked = R"({"conversation": [{"input": "a", "output": ""}, {"input": "q"}]})";
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":1: conversation[0].output is empty",
                      refusal(asked, {.answers = Answers::kAllButLast}));
}

TEST_F(RowFiles, ARefusalNamesTheFieldThatForgives) {
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "(data.on_bad_row: SKIP leaves such rows out)",
                      refusal("{}", {.policy_field = "data.on_bad_row"}));
  EXPECT_EQ(refusal("{}").find("SKIP"), std::string::npos);
}

TEST_F(RowFiles, ABrokenArrayIsRefusedEvenWhenSkipping) {
  const std::string a = row_text("a");
  for (const RowOptions& options : {RowOptions{}, kSkipping}) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "without \"]\"", refusal("[" + a, options));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "without \"]\"", refusal("[" + a + ",", options));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "without \"]\"", refusal("[", options));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2: the array ends in or after element 1",
                        refusal("[" + a + ",\n{\"corpus\": \"b", options));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2: \",\" or \"]\" expected after element 0",
                        refusal("[" + a + "\n" + a + "]", options));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "element 1 of the array is missing",
                        refusal("[" + a + ",]", options));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "element 0 of the array is missing",
                        refusal("[," + a + "]", options));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "text behind the end", refusal("[" + a + "]]", options));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2: there is text behind",
                        refusal("[" + a + "]\n" + a, options));
  }
}

TEST_F(RowFiles, ARowOverTheLimitIsRefusedWithoutBeingLoaded) {
  RowOptions options;
  options.max_bytes = 100;
  const std::string longest = row_text(std::string(100 - row_text("").size(), 'x'));
  EXPECT_EQ(read(longest + "\n", options).size(), 1U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2: the row has 101 bytes, the limit is 100",
                      refusal(row_text("a") + "\n" + longest + " \n", options));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "(element 0): the row has",
                      refusal("[" + row_text(std::string(5000, 'x')) + "]", options));
  options.on_bad_row = OnBadRow::kSkip;
  EXPECT_EQ(read(row_text(std::string(300000, 'x')) + "\n" + row_text("b"), options), (Texts{"b@:2"}));
  EXPECT_EQ(read("[" + row_text(std::string(300000, 'x')) + "," + row_text("b") + "]", options),
            (Texts{"b@:1 (element 1)"}));
  EXPECT_EQ(report_.bad, 1);
}

TEST_F(RowFiles, OtherThanRegularFilesAreRefusedAtOnce) {
  EXPECT_THROW((void)read_rows(folder_ / "missing.jsonl"), DataError);
  EXPECT_THROW((void)read_rows(folder_.path()), DataError);
  ASSERT_EQ(::mkfifo((folder_ / "fifo").c_str(), 0600), 0);
  EXPECT_THROW((void)read_rows(folder_ / "fifo"), DataError);
}

TEST_F(RowFiles, FieldsThatNothingReadsAreNamedOnce) {
  (void)read(R"({"corpus": "a", "id": 1})"
             "\n"
             R"({"corpus": "b", "id": 2, "x": "y"})"
             "\n" +
             row_text("c"));
  EXPECT_EQ(report_.fields.unused.text(), "\"id\" (2 rows), \"x\" (1 row)");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, folder_ / "data.json" + ": fields that nothing reads: \"id\"",
                      report_.unused_warning);
  (void)read(row_text("a"));
  EXPECT_EQ(report_.unused_warning, "");
}

TEST_F(RowFiles, FormsThatAreNoLinesOfRowsAreCalledByName) {
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      ":1: is not valid JSON at byte 2 of the row: the line ends before",
                      refusal("{\n  \"corpus\": \"a\"\n}\n"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "one JSON array",
                      refusal("{\n \"data\": [\n  " + row_text("a") + "\n ]\n}\n"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\"data\" holds a list of objects",
                      refusal("{\"data\": [" + row_text("a") + "]}\n"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":1: is not valid JSON at byte 16 of the row: ',' (a comma)",
                      refusal(row_text("a") + ",\n" + row_text("b") + ",\n"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, ":2: is not valid JSON",
                      refusal(row_text("a") + "\n" + row_text("b") + row_text("c") + "\n"));
}

TEST_F(RowFiles, ColumnsOfPandasAreCalledByName) {
  for (const char* text : {R"({"instruction":{"0":"a","1":"b"},"output":{"0":"c","1":"d"}})",
                           R"({"question":{"0":"a"},"answer":{"0":"c"}})", R"({"messages": {"0": []}})"})
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, R"(df.to_json(path, orient="records", lines=True))",
                        refusal(text))
        << text;
  for (const char* text : {R"({"question":{"a":"b"}})", R"({"messages":{"role":"user"}})"})
    EXPECT_PRED_FORMAT2(::testing::IsNotSubstring, "pandas", refusal(text)) << text;
}

TEST_F(RowFiles, AFileThatIsOneObjectIsRefusedWithItsKeys) {
  const std::string rows = "[" + row_text("a") + ", " + row_text("b") + "]";
  const std::string both =
      "{\"version\": 1, \"train\": " + rows + ", \"test\": " + rows + ", \"tags\": [[{}], {}]}";
  for (const RowOptions& options : {RowOptions{}, kSkipping, RowOptions{.max_bytes = 10}}) {
    const std::string message = refusal(both, options);
    EXPECT_EQ(
        message,
        ":1: the file is one JSON object with the keys \"version\", \"train\", \"test\", \"tags\"; rows are "
        "expected as JSON Lines, one object a line, or as one JSON array, [{...}, {...}]; \"train\", "
        "\"test\" hold "
        "lists of objects, which look like rows: write each list into a file of its own");
  }
  // Over several lines, the last of them without a newline, behind a byte order mark.
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring,
      "with the key \"data\"; rows are expected as JSON Lines, one object a line, or as one JSON array, "
      "[{...}, {...}]; \"data\" holds a list of objects, which looks like the rows",
      refusal("\xEF\xBB\xBF\n{\n \"data\":\n " + rows + "\n}"));
  const std::string columns = refusal("{\"ids\": [1, 2],\n \"split\": {\"a\": [{}]}}");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "with the keys \"ids\", \"split\"; rows are", columns);
  EXPECT_PRED_FORMAT2(::testing::IsNotSubstring, "look", columns);
  // A row that is wrong by itself, and rows behind one another, are none.
  for (const std::string& text :
       {std::string("{\"instruction\": [{}]}"), std::string("{\"ids\": [1, 2], \"split\": {\"a\": [{}]}}"),
        "{\"data\": " + rows + "}\n{\"data\": []}", std::string("{\"data\": [{}")})
    EXPECT_PRED_FORMAT2(::testing::IsNotSubstring, "the file is one", refusal(text));
}

TEST_F(RowFiles, ErrorsOfTheCallbackPassThroughWhenSkipping) {
  const std::string path = folder_.write("data.json", row_text("a"));
  EXPECT_THROW(for_each_row(path, kSkipping, [](Row&&, const std::string&) { throw DataError("mine"); }),
               DataError);
}

TEST_F(RowFiles, ReadRowsCollectsThem) {
  RowsReport report;
  const std::vector<Row> rows =
      read_rows(folder_.write("d", row_text("a") + "\nbad\n" + row_text("b")), kSkipping, &report);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[1].corpus, "b");
  EXPECT_EQ(report.bad, 1);
}

}  // namespace
}  // namespace pesc
