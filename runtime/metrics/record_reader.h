// The records of a metrics.jsonl, which may have gigabytes: read in pieces, each record parsed once.
#pragma once

#include <simdjson.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace pesc {

using LineUse = std::function<void(std::string_view line, int64_t at)>;

// Calls `use` with each line of a file of records and its number, from 1. A last line without a newline is left
// out. Throws IoError where the file cannot be read or is no regular file (a pipe is not waited for), DataError
// for a line of more than 256 MiB.
void for_each_record_line(const std::string& path, const LineUse& use);

struct MetricsRecord {
  std::string_view line;         // without its newline
  simdjson::dom::object object;  // of the line
  int64_t step = 0;
  bool is_launch = false;  // "kind": "launch"
  bool counts = true;      // false: a later launch goes on from a step before this one
};

// A launch that resumes computes again what stood behind its first step: records of later steps that stand
// before its own no longer count. To know them, the file is read twice.
class RecordReader {
 public:
  // Finds the launches. Throws IoError where the file cannot be read.
  explicit RecordReader(std::string path);

  // Calls `use` with every record that has a step, in the order of the file. The record is valid during the
  // call. Throws DataError naming the line for a line that is no JSON object; a last line without a newline is
  // what a process was writing when it died, or is writing now, and is left out.
  void read(const std::function<void(const MetricsRecord&)>& use);

  [[nodiscard]] bool torn() const { return torn_; }  // such a last line was left out
  [[nodiscard]] int64_t bytes() const { return bytes_; }

 private:
  struct Launch {
    int64_t offset = 0, step = 0;
  };
  // Calls `use` with each whole line and its offset.
  void lines(const LineUse& use);

  std::string path_;
  int64_t bytes_ = 0;  // of the file when it was opened; what is appended later is not read
  bool torn_ = false;
  std::vector<Launch> launches_;
  std::vector<char> buffer_;
};

// The number under `key`; `otherwise` where there is none, or null (a loss that was not finite).
[[nodiscard]] double number_in(const simdjson::dom::object& object, std::string_view key,
                               double otherwise = std::numeric_limits<double>::quiet_NaN());
[[nodiscard]] std::string_view text_in(const simdjson::dom::object& object, std::string_view key);
// Replaces `out` by the numbers of a flat array. Returns false, with `out` in any state, for anything else.
[[nodiscard]] bool numbers_of(const simdjson::dom::element& array, std::vector<double>& out);

}  // namespace pesc
