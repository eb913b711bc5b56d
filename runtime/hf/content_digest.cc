#include "runtime/hf/content_digest.h"

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr uint64_t kDigestBlock = 1 << 20;

}  // namespace

ContentDigest::ContentDigest() : state_(XXH3_createState(), XXH3_freeState) {
  PESC_CHECK(state_ != nullptr && XXH3_128bits_reset(state_.get()) == XXH_OK);
}

void ContentDigest::add(const void* data, size_t bytes) {
  PESC_CHECK(XXH3_128bits_update(state_.get(), data, bytes) == XXH_OK);
}

void ContentDigest::add_number(uint64_t value) {
  std::array<unsigned char, 8> bytes = {};
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(value >> (8 * i));
  add(bytes.data(), bytes.size());
}

void ContentDigest::add_text(const std::string& text) {
  add_number(text.size());
  add(text.data(), text.size());
}

void ContentDigest::add_file(const std::string& name, const MappedFile& file) {
  add_text(name);
  add_number(file.size());
  std::vector<std::byte> block(std::min(file.size(), kDigestBlock));
  for (uint64_t at = 0; at < file.size(); at += kDigestBlock) {
    const std::span<std::byte> part(block.data(), std::min(file.size() - at, kDigestBlock));
    file.read_at(at, part);
    add(part.data(), part.size());
  }
}

std::string ContentDigest::hex() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
  std::string out;
  for (const unsigned char byte : canonical.digest) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

}  // namespace pesc
