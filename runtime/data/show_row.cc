#include "runtime/data/show_row.h"

#include <algorithm>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

// The text of a part follows from the tokens before it too: decoding drops the space that begins a text.
class TextOfParts {
 public:
  TextOfParts(const Tokenizer& tokenizer, std::span<const int32_t> ids) : tokenizer_(tokenizer), ids_(ids) {}

  std::string up_to(size_t end) {
    std::string all = tokenizer_.decode_all(ids_.first(end));
    const auto same = static_cast<size_t>(std::ranges::mismatch(done_, all).in1 - done_.begin());
    std::string part = all.substr(std::min(same, all.size()));
    done_ = std::move(all);
    return printable(part, kUncut, Keep::kLines);
  }

 private:
  const Tokenizer& tokenizer_;
  std::span<const int32_t> ids_;
  std::string done_;
};

}  // namespace

std::string shown_row(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                      std::span<const TokenRange> learned, Marks marks) {
  const bool colour = marks == Marks::kColour;
  size_t count = 0;
  for (const TokenRange& range : learned) count += range.end - range.begin;
  std::string out = str_cat(ids.size(), " tokens, ", count, " of them learned:\n");
  TextOfParts text(tokenizer, ids);
  for (const TokenRange& range : learned) {
    PESC_CHECK(range.begin < range.end && range.end <= ids.size());
    out += text.up_to(range.begin);
    out += (colour ? "\x1B[32m" : ">>>") + text.up_to(range.end) + (colour ? "\x1B[0m" : "<<<");
  }
  return out + text.up_to(ids.size()) + "\n";
}

}  // namespace pesc
