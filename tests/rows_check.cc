// Tokenises a file of rows into a cache, as `pesc train` does, and says how much of the time the tokenizer takes.
//
//   rows_check FOLDER TEMPLATE ROWS CACHE THREADS    FOLDER: of the tokenizer; TEMPLATE: as data.chat_template
//   -> {"bytes", "rows", "tokens", "s", "busy_s", "tokenizer_s"}
//
// `s` is by the clock, `busy_s` the processor time of all threads. `tokenizer_s` is the time by the clock in calls of
// the tokenizer, over all threads: on a busy machine, with one thread, tokenizer_s / s still is its share.
#include <atomic>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "ops/core/check.h"
#include "runtime/chat/model_templates.h"
#include "runtime/data/row_encoder.h"
#include "runtime/data/token_cache.h"
#include "runtime/data/token_cache_key.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {
namespace {

double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Another tokenizer, and the time that its calls take.
class TimedTokenizer : public Tokenizer {
 public:
  explicit TimedTokenizer(const Tokenizer& timed) : timed_(timed) {}
  [[nodiscard]] double seconds() const { return static_cast<double>(nanoseconds_) * 1e-9; }

  [[nodiscard]] std::vector<int32_t> encode(std::string_view text) const override {
    const Timer timer(nanoseconds_);
    return timed_.encode(text);
  }
  [[nodiscard]] Encoding encode_with_ranges(std::string_view text,
                                            const EncodeOptions& options) const override {
    const Timer timer(nanoseconds_);
    return timed_.encode_with_ranges(text, options);
  }
  [[nodiscard]] EncodedStart encode_start(std::string_view text, int64_t limit) const override {
    const Timer timer(nanoseconds_);
    return timed_.encode_start(text, limit);
  }
  [[nodiscard]] std::string decode(std::span<const int32_t> ids) const override {
    const Timer timer(nanoseconds_);
    return timed_.decode(ids);
  }
  [[nodiscard]] std::string decode_all(std::span<const int32_t> ids) const override {
    const Timer timer(nanoseconds_);
    return timed_.decode_all(ids);
  }
  [[nodiscard]] int32_t vocab_size() const override { return timed_.vocab_size(); }
  [[nodiscard]] int32_t bos_id() const override { return timed_.bos_id(); }
  [[nodiscard]] int32_t eos_id() const override { return timed_.eos_id(); }
  [[nodiscard]] bool is_unknown(int32_t id) const override { return timed_.is_unknown(id); }
  [[nodiscard]] bool is_control(int32_t id) const override { return timed_.is_control(id); }
  [[nodiscard]] int32_t piece_id(std::string_view piece) const override { return timed_.piece_id(piece); }
  [[nodiscard]] std::string piece(int32_t id) const override { return timed_.piece(id); }

 private:
  class Timer {
   public:
    explicit Timer(std::atomic<int64_t>& sum) : sum_(sum) {}
    ~Timer() { sum_ += static_cast<int64_t>((seconds_of(CLOCK_MONOTONIC) - begin_) * 1e9); }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

   private:
    std::atomic<int64_t>& sum_;
    double begin_ = seconds_of(CLOCK_MONOTONIC);
  };

  const Tokenizer& timed_;
  mutable std::atomic<int64_t> nanoseconds_ = 0;
};

int run(const std::string& folder, const std::string& chat_template, const std::string& rows,
        const std::string& cache, int threads) {
  const std::unique_ptr<Tokenizer> opened = open_tokenizer(folder);
  const TimedTokenizer tokenizer(*opened);
  const RowEncoder encoder(tokenizer, open_templates({chat_template, ""}, folder, tokenizer, Links::kInside));
  DatasetOptions options;
  options.max_seq_length = 2048;
  options.rows.use = encoder.row_use();
  options.threads = threads;
  options.cache = {cache, encoding_identity(encoder, tokenizer, tokenizer_digest(folder)), 60};
  const double before = tokenizer.seconds();
  const double busy = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
  const double begin = seconds_of(CLOCK_MONOTONIC);
  const auto made = cached_rows({rows, "", 1}, encoder, options);
  const nlohmann::json report = {{"bytes", std::filesystem::file_size(rows)},
                                 {"rows", made->report().rows},
                                 {"tokens", made->report().tokens},
                                 {"s", seconds_of(CLOCK_MONOTONIC) - begin},
                                 {"busy_s", seconds_of(CLOCK_PROCESS_CPUTIME_ID) - busy},
                                 {"tokenizer_s", tokenizer.seconds() - before}};
  std::cout << report.dump() << "\n";
  return 0;
}

}  // namespace
}  // namespace pesc

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: rows_check FOLDER TEMPLATE ROWS CACHE THREADS\n";
    return 64;
  }
  try {
    return pesc::run(argv[1], argv[2], argv[3], argv[4], std::stoi(argv[5]));
  } catch (const std::exception& error) {
    std::cerr << "rows_check: " << error.what() << "\n";
    return 70;
  }
}
