// The tables that unicode_tables.py writes: numbers of five bits a character, read by
// runtime/tokenizer/unicode.cc.
#pragma once

#include <string_view>

namespace pesc::unicode_tables {

extern const std::string_view kCategories;        // (length, category) of each run of characters from 0 on
extern const std::string_view kRegexSpace;        // sets: (gap, length - 1) of each run
extern const std::string_view kSpace;             // what Strip strips
extern const std::string_view kTokenSpace;        // what lstrip and rstrip of an added token take
extern const std::string_view kWord;              // what single_word calls a word's character
extern const std::string_view kNumeric;           // what Digits calls a digit
extern const std::string_view kPunctuation;       // what Punctuation calls punctuation
extern const std::string_view kLowercase;         // (gap, characters - 1, difference of each)
extern const std::string_view kCombiningClasses;  // (gap, length - 1, class) of each run
extern const std::string_view kDecompositions;  // (gap, (characters - 1) * 2 + composed again, first, others)

}  // namespace pesc::unicode_tables
