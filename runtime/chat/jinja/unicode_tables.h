// The tables of unicode_kinds.cc and unicode_cases.cc, which make_unicode_tables.py makes. All ascend.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pesc::jinja {

struct CodeRange {
  uint32_t first;
  uint32_t last;
};
// Each `step`-th character from first to last becomes the one `delta` behind it.
struct CaseRange {
  uint32_t first;
  uint32_t last;
  uint32_t step;
  int32_t delta;
};
struct CaseText {
  uint32_t code;
  const char* text;
};

extern const CodeRange kNotPrintable[], kCased[], kCaseIgnorable[];
extern const size_t kNotPrintableSize, kCasedSize, kCaseIgnorableSize;
extern const CaseRange kUpper[], kLower[], kTitle[];
extern const size_t kUpperSize, kLowerSize, kTitleSize;
extern const CaseText kUpperTexts[], kLowerTexts[], kTitleTexts[];
extern const size_t kUpperTextsSize, kLowerTextsSize, kTitleTextsSize;

}  // namespace pesc::jinja
