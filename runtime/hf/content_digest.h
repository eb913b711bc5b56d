// XXH3-128 of files and texts, in hexadecimal.
#pragma once

#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "runtime/hf/mapped_file.h"

namespace pesc {

class ContentDigest {
 public:
  ContentDigest();
  void add(const void* data, size_t bytes);
  // Lengths go in before what they measure, so that no two lists of files look alike.
  void add_number(uint64_t value);
  void add_text(const std::string& text);
  // Name, size and bytes, block by block. Throws IoError.
  void add_file(const std::string& name, const MappedFile& file);
  [[nodiscard]] std::string hex() const;  // 32 characters

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

}  // namespace pesc
