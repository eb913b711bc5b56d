#include "runtime/data/tags.h"

#include <filesystem>

#include "runtime/data/row_bytes.h"
#include "runtime/text/printable.h"

namespace pesc {

std::string tag_of(std::string_view source_tag, std::string_view row_tag, const std::string& path) {
  if (!source_tag.empty()) return printable(source_tag);
  if (!row_tag.empty()) return printable(row_tag);
  return printable(std::filesystem::path(without_compression(path)).stem().string());
}

}  // namespace pesc
