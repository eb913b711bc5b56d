// The digests that identify a folder: XXH3-128 of config.json's and each weights file's contents.
#include <iterator>
#include <vector>

#include "runtime/hf/content_digest.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {
namespace {

constexpr const char* kConfigName = "config.json";

}  // namespace

std::string HfFolder::part_digest(size_t part) const {
  ContentDigest digest;
  if (part == 0) {
    digest.add_text(kConfigName);
    digest.add_text(canonical_json(read_json_file(folder_, kConfigName, kMostConfigBytes, links_)));
  } else {
    const auto& [name, file] = *std::next(files_.begin(), static_cast<std::ptrdiff_t>(part - 1));
    digest.add_file(name, file.file());
  }
  return digest.hex();
}

std::string HfFolder::raw_config_digest() const {
  ContentDigest digest;
  digest.add_file(kConfigName, MappedFile(path_in_folder(folder_, kConfigName, folder_, links_)));
  return digest.hex();
}

std::string HfFolder::content_digest(const std::vector<std::string>& parts) {
  ContentDigest digest;
  for (const std::string& part : parts) digest.add(part.data(), part.size());
  return digest.hex();
}

}  // namespace pesc
