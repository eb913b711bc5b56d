#include "runtime/data/token_cache_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

class TokenCacheFiles : public ::testing::Test {
 protected:
  // Rows of 1 to `longest` tokens, with some of `tags` tags.
  void make_rows(int count, int longest, int tags) {
    std::mt19937 draw(7);
    rows_.assign(static_cast<size_t>(count), {});
    tags_.clear();
    report_ = {};
    for (TokenRow& row : rows_) {
      const size_t length = draw() % static_cast<unsigned>(longest) + 1;
      for (size_t t = 0; t < length; ++t) {
        row.tokens.push_back(static_cast<int32_t>(draw() % 200000));
        row.supervised.push_back(static_cast<uint8_t>(draw() % 2));
      }
      tags_.push_back(static_cast<int32_t>(draw() % static_cast<unsigned>(tags)));
      ++report_.rows;
      report_.tokens += static_cast<int64_t>(length);
    }
    for (int i = 0; i < tags; ++i) report_.tags.push_back("tag " + std::to_string(i));
    report_.path = "rows.jsonl";
    report_.digest = 0xFEDCBA9876543210;
    report_.messages = {"rows.jsonl:3: empty; dropped"};
    report_.warnings = {"rows.jsonl: what"};
    report_.optional = "\"system\" (1 row)";
  }
  void write() {
    TokenCacheWriter writer(posix_filesystem(), path_, "key");
    for (size_t i = 0; i < rows_.size(); ++i) writer.add(rows_[i], tags_[i]);
    writer.finish(report_);
  }
  [[nodiscard]] TokenCacheFile open() const { return {posix_filesystem(), path_, "key"}; }
  void expect_all(const TokenCacheFile& file) const {
    EXPECT_EQ(file.report(), report_);
    TokenRow row;
    for (int64_t i = report_.rows - 1; i >= 0; --i) {
      const auto at = static_cast<size_t>(i);
      file.read(i, row);
      EXPECT_EQ(row, rows_[at]);
      EXPECT_EQ(file.length(i), std::ssize(rows_[at].tokens));
      EXPECT_EQ(file.tag(i), tags_[at]);
    }
  }
  [[nodiscard]] std::string bytes() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // Opens the file and reads all rows.
  void read_all() const {
    const TokenCacheFile file = open();
    TokenRow row;
    for (int64_t i = 0; i < file.report().rows; ++i) file.read(i, row);
  }

  TokenizerFolder folder_;
  std::string path_ = folder_ / "rows.tokens";
  std::vector<TokenRow> rows_;
  std::vector<int32_t> tags_;
  FileReport report_;
};

TEST_F(TokenCacheFiles, WhatIsReadIsWhatWasWritten) {
  for (const int tags : {1, 5}) {
    make_rows(1000, 300, tags);
    write();
    expect_all(open());
  }
}

TEST_F(TokenCacheFiles, NoRowsAreAFileToo) {
  make_rows(0, 1, 1);
  report_.tags.clear();
  write();
  expect_all(open());
}

TEST_F(TokenCacheFiles, AFileThatIsCutOffAnywhereIsRefused) {
  make_rows(10, 20, 2);
  write();
  const std::string whole = bytes();
  for (size_t size = 0; size < whole.size(); ++size) {
    folder_.write("rows.tokens", whole.substr(0, size));
    EXPECT_THROW((void)open(), DamagedCache) << size << " of " << whole.size() << " bytes";
  }
  folder_.write("rows.tokens", whole + "x");
  EXPECT_THROW((void)open(), DamagedCache);
}

TEST_F(TokenCacheFiles, NoDamagedByteIsOverlooked) {
  make_rows(10, 20, 2);
  write();
  const std::string whole = bytes();
  read_all();
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));
    folder_.write("rows.tokens", damaged);
    EXPECT_THROW(read_all(), DamagedCache) << "byte " << at << " of " << whole.size();
  }
}

TEST_F(TokenCacheFiles, RowsInOneAnothersPlaceAreNotTaken) {
  make_rows(2, 1, 1);  // two records of the same size
  rows_[1].tokens[0] = rows_[0].tokens[0] + 1;
  write();
  std::string swapped = bytes();
  constexpr size_t kHeader = 16, kRecord = 8 + 4 + 1;
  std::swap_ranges(swapped.begin() + kHeader, swapped.begin() + kHeader + kRecord,
                   swapped.begin() + kHeader + kRecord);
  folder_.write("rows.tokens", swapped);
  EXPECT_THROW(read_all(), DamagedCache);
}

// Through a mapping, this would be a SIGBUS.
TEST_F(TokenCacheFiles, AFileThatIsCutOffWhileItIsOpenIsAnError) {
  make_rows(1000, 300, 2);
  write();
  const TokenCacheFile file = open();
  std::filesystem::resize_file(path_, 5000);
  TokenRow row;
  file.read(0, row);
  EXPECT_EQ(row, rows_[0]);
  EXPECT_THROW(file.read(999, row), DamagedCache);
}

TEST_F(TokenCacheFiles, AFileOfAnotherKeyIsRefused) {
  make_rows(3, 3, 1);
  write();
  EXPECT_THROW(TokenCacheFile(posix_filesystem(), path_, "another key"), DamagedCache);
}

TEST_F(TokenCacheFiles, PathsMayHaveAnyBytes) {
  make_rows(1, 1, 1);
  report_.path = "\xFFrows";
  report_.messages = {"\xFFrows:1: what"};
  write();
  EXPECT_EQ(open().report().path, "\uFFFDrows");
}

}  // namespace
}  // namespace pesc
