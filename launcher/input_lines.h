// Lines of standard input as they come, without waiting for them longer than one wants to.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace pesc {

class InputLines {
 public:
  static constexpr size_t kLongest = size_t{1} << 24;  // bytes of a line

  explicit InputLines(int descriptor) : descriptor_(descriptor) {}
  // The next line, without its end ("\n" or "\r\n"). Nothing where none has come within `seconds`, and at the
  // end. What stands behind the last line end is a line too. Throws IoError when the input cannot be read,
  // DataError for a line that is too long.
  [[nodiscard]] std::optional<std::string> next(int seconds);
  // No further line will come.
  [[nodiscard]] bool ended() const { return ended_ && buffer_.empty(); }

 private:
  [[nodiscard]] std::optional<std::string> buffered();
  int descriptor_;
  std::string buffer_;
  bool ended_ = false;
};

}  // namespace pesc
