#include "launcher/input_lines.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "ops/core/check.h"

namespace pesc {

std::optional<std::string> InputLines::buffered() {
  const size_t end = buffer_.find('\n');
  if (end == std::string::npos && buffer_.size() > kLongest)
    throw DataError(str_cat("a line of standard input has more than ", kLongest, " bytes"));
  if (end == std::string::npos && (!ended_ || buffer_.empty())) return std::nullopt;
  std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end == std::string::npos ? end : end + 1);
  if (line.ends_with('\r')) line.pop_back();
  return line;
}

std::optional<std::string> InputLines::next(int seconds) {
  while (true) {
    if (auto line = buffered()) return line;
    if (ended_) return std::nullopt;
    pollfd wanted{descriptor_, POLLIN, 0};
    const int ready = ::poll(&wanted, 1, seconds * 1000);
    if (ready == 0) return std::nullopt;
    std::array<char, 65536> bytes{};
    const ssize_t got = ready < 0 ? -1 : ::read(descriptor_, bytes.data(), bytes.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return std::nullopt;
    if (got < 0) throw IoError(str_cat("standard input cannot be read: ", std::strerror(errno)));
    ended_ = got == 0;
    buffer_.append(bytes.data(), static_cast<size_t>(got));
  }
}

}  // namespace pesc
