#include "runtime/data/row_split.h"

#include <xxhash.h>

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "runtime/chat/messages.h"

namespace pesc {
namespace {

// With its length, so that no two lists of texts give the same bytes.
void append(std::string& bytes, std::string_view text) {
  for (int shift = 0; shift < 64; shift += 8)
    bytes += static_cast<char>(static_cast<uint64_t>(text.size()) >> shift);
  bytes += text;
}

}  // namespace

uint64_t content_digest(const Row& row) {
  std::string bytes;
  append(bytes, row.system);
  append(bytes, row.corpus);
  for (const Turn& turn : row.turns) {
    append(bytes, turn.prompt);
    append(bytes, turn.answer);
    bytes += turn.learned ? '1' : '0';
  }
  // What the texts do not show, as far as a template sees it.
  if (row.chat != nullptr && row.chat->tools.is_array()) append(bytes, row.chat->tools.dump());
  for (size_t i = 0; row.chat != nullptr && i < row.chat->messages.size(); ++i) {
    const nlohmann::ordered_json& message = row.chat->messages[i];
    const bool text = message.size() == 2 && message.contains("content") && message.at("content").is_string();
    if (!text || message.at("role") == "tool") append(bytes, message.dump());
  }
  return XXH3_64bits(bytes.data(), bytes.size());
}

bool RowSplit::takes(const Row& row) const {
  if (part == RowPart::kAll) return true;
  constexpr int kBits = 53;  // of a double
  const double place =
      static_cast<double>(content_digest(row) >> (64 - kBits)) / static_cast<double>(1ULL << kBits);
  return (place < validation_fraction) == (part == RowPart::kValidation);
}

}  // namespace pesc
