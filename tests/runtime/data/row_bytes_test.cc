// Compressed files of rows: read as plain ones are; damaged, cut off and misnamed ones are refused.
#include "runtime/data/row_bytes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/row_file.h"
#include "tests/runtime/data/compress.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

using testing::gzip;
using testing::zstd;
using Texts = std::vector<std::string>;

std::string row_text(const std::string& text) {
  return R"({"corpus": ")" + text + "\"}\n";
}

// Rows that a compressor finds little in, longer together than any buffer.
std::string many_rows(int count) {
  std::string text;
  uint64_t state = 7;
  for (int i = 0; i < count; ++i) {
    std::string row = std::to_string(i) + " ";
    for (int k = 0; k < 100; ++k) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      row += static_cast<char>('a' + (state >> 33) % 26);
    }
    text += row_text(row);
  }
  return text;
}

class RowBytesTest : public ::testing::Test {
 protected:
  Texts read(const std::string& name, const std::string& bytes, const RowOptions& options = {}) {
    Texts texts;
    report_ = for_each_row(folder_.write(name, bytes), options, [&](Row&& row, const std::string& where) {
      texts.push_back(row.corpus + "@" + where.substr((folder_ / name).size()));
    });
    return texts;
  }
  std::string refusal(const std::string& name, const std::string& bytes, const RowOptions& options = {}) {
    try {
      (void)read(name, bytes, options);
    } catch (const DataError& error) {
      const std::string what = error.what();
      EXPECT_TRUE(what.starts_with(folder_ / name)) << what;
      return what.substr((folder_ / name).size());
    }
    return "accepted";
  }
  void expect_refused(const std::string& name, const std::string& bytes, const char* words,
                      const RowOptions& options = {}) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, words, refusal(name, bytes, options));
  }

  TokenizerFolder folder_;
  RowsReport report_;
};

TEST_F(RowBytesTest, CompressedRowsAreThePlainOnes) {
  const std::string text = many_rows(20000);
  const Texts plain = read("r.jsonl", text);
  ASSERT_EQ(plain.size(), 20000U);
  EXPECT_EQ(read("r.jsonl.gz", gzip(text)), plain);
  EXPECT_EQ(read("r.jsonl.zst", zstd(text)), plain);
  // In several members or frames, cut in the middle of a row.
  const size_t half = text.size() / 2;
  EXPECT_EQ(read("r.jsonl.gz", gzip(text.substr(0, half)) + gzip("") + gzip(text.substr(half))), plain);
  EXPECT_EQ(read("r.jsonl.zst", zstd(text.substr(0, half)) + zstd("") + zstd(text.substr(half))), plain);
  // Zeros up to the end of a block of a tape.
  EXPECT_EQ(read("r.jsonl.gz", gzip(text) + std::string(300000, '\0')), plain);
  // A skippable frame of five bytes.
  EXPECT_EQ(read("r.jsonl.zst", std::string("\x50\x2A\x4D\x18\x05\0\0\0hello", 13) + zstd(text)), plain);
}

TEST_F(RowBytesTest, AnArrayAndAByteOrderMark) {
  const std::string array = "\xEF\xBB\xBF[" + row_text("a") + "," + row_text("b") + "]";
  const Texts expected{"a@:1 (element 0)", "b@:2 (element 1)"};
  EXPECT_EQ(read("r.json.gz", gzip(array)), expected);
  EXPECT_EQ(read("r.json.zst", zstd(array)), expected);
}

TEST_F(RowBytesTest, WhatIsCutOffIsRefusedWithTheOffset) {
  const std::string text = many_rows(300);
  for (const auto& [name, whole] :
       {std::pair<std::string, std::string>{"r.jsonl.gz", gzip(text)}, {"r.jsonl.zst", zstd(text)}}) {
    SCOPED_TRACE(name);
    for (const size_t bytes : {size_t{5}, whole.size() / 2, whole.size() - 1}) {
      const std::string what = refusal(name, whole.substr(0, bytes), {.on_bad_row = OnBadRow::kSkip});
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, "cut off at byte " + std::to_string(bytes), what);
    }
  }
}

TEST_F(RowBytesTest, WhatIsDamagedIsRefusedEvenWhenSkipping) {
  const std::string text = many_rows(300);
  for (const auto& [name, whole] :
       {std::pair<std::string, std::string>{"r.jsonl.gz", gzip(text)}, {"r.jsonl.zst", zstd(text)}}) {
    SCOPED_TRACE(name);
    // Behind the header, each of which has bytes that mean nothing.
    for (size_t at = 20; at < whole.size(); at += whole.size() / 37) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
      const std::string what = refusal(name, damaged, {.on_bad_row = OnBadRow::kSkip});
      EXPECT_TRUE(what.find("damaged at or before byte") != std::string::npos ||
                  what.find("cut off at byte") != std::string::npos)
          << at << ": " << what;
    }
  }
  expect_refused("r.jsonl.gz", gzip(text) + "more", "damaged at or before byte");
  expect_refused("r.jsonl.zst", zstd(text) + "more", "damaged at or before byte");
}

TEST_F(RowBytesTest, TheNameSaysHowTheFileIsCompressed) {
  const std::string text = row_text("a");
  expect_refused("r.jsonl.gz", text, "the name ends in .gz, but the file is not compressed with gzip");
  expect_refused("r.jsonl.zst", text, "the name ends in .zst, but the file is not compressed with zstd");
  expect_refused("r.jsonl.gz", zstd(text), "is compressed with zstd; its name must end in .zst");
  expect_refused("r.jsonl.zst", gzip(text), "is compressed with gzip; its name must end in .gz");
  expect_refused("r.jsonl", gzip(text), "give it a name that ends in .gz");
  expect_refused("r.jsonl", zstd(text), "give it a name that ends in .zst");
  expect_refused("r.jsonl.gz", "", "is empty (0 bytes)");
  expect_refused("r.jsonl.gz", "version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer");
  // What is inside is looked at too.
  expect_refused("r.jsonl.gz", gzip(""), " (decompressed): is empty (0 bytes)");
  expect_refused("r.jsonl.zst", zstd("PAR1\x15\x04\x15\x20"), " (decompressed): is a Parquet file");
  expect_refused("r.jsonl.gz", gzip(gzip(text)), " (decompressed): is compressed with gzip");
  expect_refused("r.json.gz", gzip("{\n\"train\": [" + row_text("a") + "]}"), "the file is one JSON object");
}

TEST_F(RowBytesTest, ParquetIsRefusedWithTheConverter) {
  expect_refused("r.parquet", "PAR1\x15\x04\x15\x20", "python3 -c 'import json, sys, pyarrow.parquet");
  expect_refused("r.jsonl", "PAR1\x15\x04\x15\x20", "python3 -c 'import json, sys, pyarrow.parquet");
  expect_refused("r.parquet", row_text("a"), "the name is that of a Parquet file");
}

// A hundred megabytes in a few kilobytes.
TEST_F(RowBytesTest, ARowWithoutEndIsNotReadToItsEnd) {
  const RowOptions fail{.max_bytes = 1 << 16};
  const RowOptions skip{.max_bytes = 1 << 16, .on_bad_row = OnBadRow::kSkip};
  const std::string letters(100 << 20, 'x');
  const std::string spaces(100 << 20, ' ');
  for (const std::string& bomb : {"{\"corpus\": \"" + letters, "[" + row_text("a") + ", \"" + letters,
                                  "[" + row_text("a") + "," + spaces, spaces}) {
    const std::string packed = zstd(bomb);
    ASSERT_LT(packed.size(), 100000U);
    expect_refused("r.jsonl.zst", packed, "the row has more than 65536 bytes and no end; it may have 65536",
                   fail);
    expect_refused("r.jsonl.zst", packed, "the row has more than 1048576 bytes and no end", skip);
  }
  // One that is a few times too long is a bad row as in a plain file.
  const std::string longer = row_text(std::string(200000, 'x')) + row_text("b");
  EXPECT_EQ(read("r.jsonl.zst", zstd(longer), skip), Texts{"b@:2"});
  EXPECT_EQ(report_.bad, 1);
}

TEST_F(RowBytesTest, AWindowLargerThanTheDefaultIsRefused) {
  expect_refused("r.jsonl.zst", zstd(row_text("a"), 28),
                 "the window of the zstd data is larger than 128 MiB");
  EXPECT_EQ(read("r.jsonl.zst", zstd(row_text("a"), 27)), Texts{"a@:1"});
}

TEST_F(RowBytesTest, ProgressCountsTheFilesBytes) {
  const std::string packed = gzip(many_rows(5000));
  const auto bytes = open_row_bytes(folder_.write("r.jsonl.gz", packed));
  EXPECT_EQ(bytes->file_size(), packed.size());
  std::vector<char> block(1000);
  uint64_t before = 0;
  size_t read = 0;
  while (const size_t n = bytes->read(block)) {
    read += n;
    EXPECT_GE(bytes->bytes_read(), before);
    before = bytes->bytes_read();
  }
  EXPECT_EQ(bytes->bytes_read(), packed.size());
  EXPECT_EQ(read, many_rows(5000).size());
  EXPECT_EQ(without_compression("a/r.jsonl.gz"), "a/r.jsonl");
  EXPECT_EQ(without_compression("r.jsonl"), "r.jsonl");
}

}  // namespace
}  // namespace pesc
