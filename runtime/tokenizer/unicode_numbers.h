// Reads the numbers of a table of unicode_tables.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace pesc::unicode {

class Numbers {
 public:
  explicit Numbers(std::string_view table) : table_(table) {}
  [[nodiscard]] bool done() const { return at_ == table_.size(); }
  [[nodiscard]] uint32_t next() {
    uint32_t number = 0;
    for (unsigned shift = 0;; shift += 5) {
      auto code = static_cast<uint32_t>(static_cast<unsigned char>(table_[at_++]));
      code -= 35U + (code > 63 ? 1 : 0) + (code > 92 ? 1 : 0);  // no ?, no backslash
      number |= (code & 31U) << shift;
      if ((code & 32U) == 0) return number;
    }
  }
  // A number that may be negative: 0, -1, 1, -2, ...
  [[nodiscard]] int32_t next_signed() {
    const uint32_t number = next();
    return (number & 1U) != 0 ? -static_cast<int32_t>(number / 2) - 1 : static_cast<int32_t>(number / 2);
  }

 private:
  std::string_view table_;
  size_t at_ = 0;
};

}  // namespace pesc::unicode
