// libFuzzer target: any bytes are either refused with a DataError or give a header whose every promise holds.
//
// The input is tried as it is, and again with its length prefix set right (the header being what ends at the
// last '}'), since random changes seldom keep the two in step.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/hf/safetensors.h"
#include "runtime/hf/safetensors_types.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check_header(const pesc::SafetensorsHeader& header, size_t file_bytes) {
  uint64_t end = 0;
  for (const pesc::SafetensorsEntry& t : header.tensors) {
    require(t.begin == end && t.end >= t.begin);
    end = t.end;
    for (const int64_t n : t.shape) require(n >= 0);
    if (const pesc::SafetensorsType* type = pesc::safetensors_type(t.type)) {
      uint64_t bits = type->bits;
      for (const int64_t n : t.shape) bits *= static_cast<uint64_t>(n);
      require(bits == 8 * t.bytes());
    }
    require(header.find(t.name) == &t);
  }
  require(header.data_begin + end == file_bytes);
  require(header.by_name.size() == header.tensors.size());
}

void try_bytes(std::span<const std::byte> bytes) {
  try {
    check_header(pesc::parse_safetensors(bytes, "input"), bytes.size());
  } catch (const pesc::DataError& error) {
    require(std::strlen(error.what()) < 2000);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> input(data, size);
  try_bytes(std::as_bytes(input));
  constexpr size_t kPrefix = 8;
  if (size < kPrefix) return 0;
  std::string fixed(reinterpret_cast<const char*>(data), size);
  const size_t brace = fixed.rfind('}');
  if (brace == std::string::npos || brace < kPrefix) return 0;
  const uint64_t length = brace + 1 - kPrefix;
  std::memcpy(fixed.data(), &length, sizeof(length));
  try_bytes(std::as_bytes(std::span<const char>(fixed.data(), fixed.size())));
  return 0;
}
