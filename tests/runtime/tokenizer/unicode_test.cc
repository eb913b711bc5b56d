#include "runtime/tokenizer/unicode.h"

#include <gtest/gtest.h>

#include <string>

#include "ops/core/check.h"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/pattern_rewrite.h"
#include "runtime/tokenizer/piece_cache.h"

namespace pesc {
namespace {

std::string text_of(const std::vector<unicode::Changed>& changed) {
  std::string text;
  for (const unicode::Changed& c : changed) unicode::append_utf8(c.c, text);
  return text;
}

std::vector<int> changes_of(const std::vector<unicode::Changed>& changed) {
  std::vector<int> out;
  for (const unicode::Changed& c : changed) out.push_back(c.change);
  return out;
}

TEST(Unicode, CategoriesAreThoseOfUnicode16) {
  unicode::CharSet letters;
  ASSERT_TRUE(unicode::category("L", letters));
  EXPECT_TRUE(letters.contains(U'a'));
  EXPECT_TRUE(letters.contains(0x4E2D));
  EXPECT_TRUE(letters.contains(0x1C89));    // since 16
  EXPECT_FALSE(letters.contains(0x16EA0));  // since 17
  EXPECT_FALSE(letters.contains(U'1'));
  EXPECT_FALSE(unicode::category("Han", letters));
  EXPECT_FALSE(unicode::category("", letters));
  // Each character has one category.
  uint64_t count = 0;
  for (const char* name : {"L", "M", "N", "P", "S", "Z", "C"}) {
    unicode::CharSet set;
    ASSERT_TRUE(unicode::category(name, set));
    for (const auto& r : set.ranges()) count += r.last - r.first + 1;
  }
  EXPECT_EQ(count, 0x110000);
}

TEST(Unicode, ASetAndItsComplementShareNothing) {
  const unicode::CharSet set = unicode::regex_space();
  const unicode::CharSet rest = set.complement();
  for (char32_t c = 0; c < 0x3100; ++c) EXPECT_NE(set.contains(c), rest.contains(c));
  unicode::CharSet all = set;
  all.add(rest);
  ASSERT_EQ(all.ranges().size(), 1);
  EXPECT_EQ(all.ranges()[0].last, unicode::kLast);
}

TEST(Unicode, FormsAndTheirChanges) {
  EXPECT_EQ(text_of(unicode::nfc("e\xCC\x81")), "\xC3\xA9");
  EXPECT_EQ(changes_of(unicode::nfc("e\xCC\x81x")), (std::vector<int>{-1, 0}));
  EXPECT_EQ(text_of(unicode::nfd("\xC3\xA9")), "e\xCC\x81");
  EXPECT_EQ(changes_of(unicode::nfd("\xC3\xA9x")), (std::vector<int>{0, 1, 0}));
  EXPECT_EQ(text_of(unicode::nfc("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8")), "\xEA\xB0\x81");  // Hangul
  EXPECT_EQ(text_of(unicode::nfd("\xEA\xB0\x81")), "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8");
  EXPECT_EQ(text_of(unicode::nfd("a\xCC\x80\xCC\xA7")),
            "a\xCC\xA7\xCC\x80");  // in the order of their classes
  EXPECT_EQ(text_of(unicode::lowercase("\xC4\xB0\x41")), "i\xCC\x87\x61");
  EXPECT_TRUE(unicode::is_surely_nfc("caf\xC3\xA9 \xE4\xB8\xAD"));
  EXPECT_FALSE(unicode::is_surely_nfc("e\xCC\x81"));
  EXPECT_FALSE(unicode::is_surely_nfd("\xC3\xA9"));
}

TEST(Unicode, PatternsAreWrittenOutAsRanges) {
  EXPECT_EQ(rewrite_pattern("[a-c]+?"), "[\\x{61}-\\x{63}]+?");
  EXPECT_EQ(rewrite_pattern("(a){2,3}+"), "(?:(?:\\x{61}){2,3})+");  // to Oniguruma no possessive one
  EXPECT_EQ(rewrite_pattern("(?i:k)"), "(?:[\\x{4b}\\x{6b}\\x{212a}])");
  EXPECT_EQ(rewrite_pattern("\\d").find("\\x{1e950}-\\x{1e959}") != std::string::npos, true);
  EXPECT_THROW((void)rewrite_pattern(""), DataError);
  EXPECT_THROW((void)rewrite_pattern("a**"), DataError);
}

TEST(Unicode, AnEmptyMatchCountsWhereNoMatchEnds) {
  const Pattern pattern = Pattern::regex("b*");
  Pattern::Matches matches(pattern, "abba");
  std::vector<std::pair<size_t, size_t>> found;
  for (TextRange match; matches.next(match);) found.emplace_back(match.begin, match.end);
  EXPECT_EQ(found, (std::vector<std::pair<size_t, size_t>>{{0, 0}, {1, 3}, {4, 4}}));
}

TEST(PieceCache, GivesWhatWasPutIn) {
  PieceCache cache;
  std::vector<int32_t> ids;
  EXPECT_FALSE(cache.find("a", 1, ids));
  const std::vector<int32_t> put{0, 1, (1 << 24) - 1};
  cache.insert("piece", 42, put);
  EXPECT_FALSE(cache.find("other", 42, ids));
  EXPECT_FALSE(cache.find("piecf", 42, ids));
  EXPECT_TRUE(cache.find("piece", 42, ids));
  EXPECT_EQ(ids, put);
  // Three pieces of one hash: two places.
  cache.insert("second", 42, put);
  cache.insert("third", 42, put);
  int there = 0;
  for (const char* name : {"piece", "second", "third"}) there += cache.find(name, 42, ids) ? 1 : 0;
  EXPECT_EQ(there, 2);
  // What is too long for a slot is not kept.
  const std::string longest(51, 'x');
  cache.insert(longest, 7, std::vector<int32_t>{5});
  EXPECT_TRUE(cache.find(longest, 7, ids));
  cache.insert(longest + "x", 8, std::vector<int32_t>{5});
  EXPECT_FALSE(cache.find(longest + "x", 8, ids));
}

}  // namespace
}  // namespace pesc
