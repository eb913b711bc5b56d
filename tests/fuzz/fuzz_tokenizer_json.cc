// Any bytes as a tokenizer.json, and as a tekken.json: an error that names what is wrong, or a tokenizer that
// takes a text. The bytes after the first zero byte are that text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/text/utf8.h"
#include "runtime/tokenizer/json_tokenizer.h"

namespace {

void take(const pesc::Tokenizer& tokenizer, std::string_view text) {
  for (const auto added : {pesc::AddedTokens::kAll, pesc::AddedTokens::kOrdinary, pesc::AddedTokens::kNone}) {
    const pesc::Encoding encoding = tokenizer.encode_with_ranges(text, {added, {}, true, true});
    if (encoding.ids.size() != encoding.ranges.size()) std::abort();
    for (size_t i = 0; i < encoding.ids.size(); ++i) {
      if (encoding.ids[i] < 0 || encoding.ids[i] >= tokenizer.vocab_size()) std::abort();
      if (encoding.ranges[i].begin > encoding.ranges[i].end || encoding.ranges[i].end > text.size())
        std::abort();
    }
    const std::string decoded = tokenizer.decode(encoding.ids);
    if (pesc::valid_utf8_prefix(decoded) != decoded.size()) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t zero = all.find('\0');
  const std::string_view file = all.substr(0, zero);
  const std::string_view text =
      zero == std::string_view::npos ? "Hello  <a>world 12\n\xE6\x97\xA5" : all.substr(zero + 1);
  try {
    take(*pesc::parse_json_tokenizer(file, "f", {}, "", ""), text);
  } catch (const pesc::DataError&) {
  }
  try {
    take(*pesc::parse_tekken_tokenizer(file, "f"), text);
  } catch (const pesc::DataError&) {
  }
  return 0;
}
