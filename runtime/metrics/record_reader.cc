#include "runtime/metrics/record_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "ops/core/check.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr size_t kReadBytes = 4U << 20;
constexpr size_t kLongestLine = 256U << 20;

struct OpenRecords {
  explicit OpenRecords(const std::string& path)
      : fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    struct stat status {};
    if (fd < 0 || ::fstat(fd, &status) != 0) {
      const int why = errno;
      if (fd >= 0) ::close(fd);
      throw io_error("open", path, why);
    }
    if (!S_ISREG(status.st_mode)) {
      ::close(fd);
      throw IoError(str_cat("cannot read ", in_quotes(path), ": it is no file"));
    }
    size = status.st_size;
  }
  ~OpenRecords() { ::close(fd); }
  OpenRecords(const OpenRecords&) = delete;
  OpenRecords& operator=(const OpenRecords&) = delete;
  int fd;
  int64_t size = 0;
};

bool has_part(std::string_view text, std::string_view part) {
  return ::memmem(text.data(), text.size(), part.data(), part.size()) != nullptr;
}

// Calls `use` with each whole line of the first `bytes` of the file, and its offset; `buffer` has readable
// bytes behind the line, as simdjson wants. True where a last line has no end.
bool read_lines(const std::string& path, int64_t bytes, std::vector<char>& buffer, const LineUse& use) {
  const OpenRecords file(path);
  int64_t at = 0;     // of the file: where buffer begins
  size_t filled = 0;  // bytes of buffer that hold the file's
  buffer.resize(kReadBytes + simdjson::SIMDJSON_PADDING);
  for (;;) {
    const size_t room = buffer.size() - simdjson::SIMDJSON_PADDING - filled;
    const auto wanted = static_cast<size_t>(
        std::min<int64_t>(static_cast<int64_t>(room), bytes - at - static_cast<int64_t>(filled)));
    const ssize_t n =
        wanted == 0 ? 0 : ::pread(file.fd, buffer.data() + filled, wanted, at + static_cast<int64_t>(filled));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw io_error("read", path, errno);
    const size_t searched = filled;
    filled += static_cast<size_t>(n);
    size_t begin = 0;
    for (size_t from = searched; from < filled;) {
      const void* found = std::memchr(buffer.data() + from, '\n', filled - from);
      if (found == nullptr) break;
      const auto end = static_cast<size_t>(static_cast<const char*>(found) - buffer.data());
      use(std::string_view(buffer.data() + begin, end - begin), at + static_cast<int64_t>(begin));
      begin = from = end + 1;
    }
    std::memmove(buffer.data(), buffer.data() + begin, filled - begin);
    filled -= begin;
    at += static_cast<int64_t>(begin);
    if (n == 0) break;
    if (filled + simdjson::SIMDJSON_PADDING < buffer.size()) continue;
    if (filled > kLongestLine)
      throw DataError(str_cat(path, ": the line at byte ", at, " has more than ", kLongestLine,
                              " bytes; this is no file of records"));
    buffer.resize(2 * buffer.size());
  }
  return filled > 0;
}

int64_t step_of(const simdjson::dom::object& object) {
  int64_t step = 0;
  return object["step"].get(step) == simdjson::SUCCESS ? step : -1;
}

}  // namespace

double number_in(const simdjson::dom::object& object, std::string_view key, double otherwise) {
  double value = 0;
  return object[key].get(value) == simdjson::SUCCESS ? value : otherwise;
}

std::string_view text_in(const simdjson::dom::object& object, std::string_view key) {
  std::string_view text;
  return object[key].get(text) == simdjson::SUCCESS ? text : std::string_view();
}

bool numbers_of(const simdjson::dom::element& array, std::vector<double>& out) {
  simdjson::dom::array values;
  if (array.get(values) != simdjson::SUCCESS) return false;
  out.clear();
  for (const simdjson::dom::element value : values) {
    double number = 0;
    if (value.get(number) != simdjson::SUCCESS) return false;
    out.push_back(number);
  }
  return true;
}

void for_each_record_line(const std::string& path, const LineUse& use) {
  int64_t number = 0;
  std::vector<char> buffer;
  (void)read_lines(path, OpenRecords(path).size, buffer,
                   [&](std::string_view line, int64_t) { use(line, ++number); });
}

RecordReader::RecordReader(std::string path) : path_(std::move(path)) {
  bytes_ = OpenRecords(path_).size;
  simdjson::dom::parser parser;
  lines([&](std::string_view line, int64_t offset) {
    simdjson::dom::object object;
    if (!has_part(line, R"("kind":"launch")")) return;
    if (parser.parse(line.data(), line.size(), false).get(object)) return;  // read() says what is wrong
    if (const int64_t step = step_of(object); step >= 0) launches_.push_back({offset, step});
  });
}

void RecordReader::lines(const LineUse& use) {
  torn_ = read_lines(path_, bytes_, buffer_, use);
}

void RecordReader::read(const std::function<void(const MetricsRecord&)>& use) {
  // The lowest step of this launch and all later ones.
  std::vector<int64_t> lowest(launches_.size() + 1, std::numeric_limits<int64_t>::max());
  for (size_t i = launches_.size(); i-- > 0;) lowest[i] = std::min(launches_[i].step, lowest[i + 1]);
  size_t next = 0;  // the first launch behind the line
  int64_t number = 0;
  simdjson::dom::parser parser;
  lines([&](std::string_view line, int64_t offset) {
    ++number;
    MetricsRecord record;
    record.line = line;
    // The bytes behind the line are readable: the buffer has them.
    if (const auto error = parser.parse(line.data(), line.size(), false).get(record.object)) {
      throw DataError(str_cat(path_, ":", number, ": is no JSON object (", simdjson::error_message(error),
                              "): ", in_quotes(line, 60), "; the file is damaged: mend or remove the line"));
    }
    while (next < launches_.size() && launches_[next].offset <= offset) ++next;
    record.step = step_of(record.object);
    if (record.step < 0) return;
    record.is_launch = text_in(record.object, "kind") == "launch";
    record.counts = record.step <= lowest[next];
    use(record);
  });
}

}  // namespace pesc
