// The digests that identify a folder: XXH3-128 of config.json's and each weights file's contents.
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <memory>
#include <span>
#include <vector>

#include "ops/core/check.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {
namespace {

constexpr const char* kConfigName = "config.json";
constexpr uint64_t kMostConfigBytes = 16 << 20;
constexpr uint64_t kDigestBlock = 1 << 20;

class Digest {
 public:
  Digest() : state_(XXH3_createState(), XXH3_freeState) {
    PESC_CHECK(state_ != nullptr && XXH3_128bits_reset(state_.get()) == XXH_OK);
  }
  void add(const void* data, size_t bytes) {
    PESC_CHECK(XXH3_128bits_update(state_.get(), data, bytes) == XXH_OK);
  }
  // Lengths go in before what they measure, so that no two lists of files look alike.
  void add_number(uint64_t value) {
    std::array<unsigned char, 8> bytes = {};
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(value >> (8 * i));
    add(bytes.data(), bytes.size());
  }
  void add_text(const std::string& text) {
    add_number(text.size());
    add(text.data(), text.size());
  }
  void add_file(const std::string& name, const MappedFile& file) {
    add_text(name);
    add_number(file.size());
    std::vector<std::byte> block(std::min(file.size(), kDigestBlock));
    for (uint64_t at = 0; at < file.size(); at += kDigestBlock) {
      const std::span<std::byte> part(block.data(), std::min(file.size() - at, kDigestBlock));
      file.read_at(at, part);
      add(part.data(), part.size());
    }
  }
  [[nodiscard]] std::string hex() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
    std::string out;
    for (const unsigned char byte : canonical.digest) {
      out += "0123456789abcdef"[byte >> 4];
      out += "0123456789abcdef"[byte & 15];
    }
    return out;
  }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

}  // namespace

std::string HfFolder::part_digest(size_t part) const {
  Digest digest;
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
  Digest digest;
  digest.add_file(kConfigName, MappedFile(path_in_folder(folder_, kConfigName, folder_, links_)));
  return digest.hex();
}

std::string HfFolder::content_digest(const std::vector<std::string>& parts) {
  Digest digest;
  for (const std::string& part : parts) digest.add(part.data(), part.size());
  return digest.hex();
}

}  // namespace pesc
