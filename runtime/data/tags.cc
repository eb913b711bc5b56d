#include "runtime/data/tags.h"

#include <filesystem>

namespace pesc {

std::string tag_of(std::string_view source_tag, std::string_view row_tag, const std::string& path) {
  if (!source_tag.empty()) return made_printable(source_tag);
  if (!row_tag.empty()) return made_printable(row_tag);
  return made_printable(std::filesystem::path(path).stem().string());
}

}  // namespace pesc
