#include "runtime/data/tokenize_file.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/ordered_work.h"
#include "runtime/data/refused_rows.h"
#include "runtime/data/row_fields.h"
#include "runtime/data/row_texts.h"
#include "runtime/data/tags.h"

namespace pesc {
namespace {

// Rows that are handed to a thread at once.
struct RawRows {
  std::vector<RawRow> rows;
  std::exception_ptr error;  // behind these rows
  uint64_t bytes_read = 0;   // of the file so far
};

// One row, as far as it needs no other one.
struct EncodedRow {
  enum class State {
    kNoRow,      // parsed.state says why
    kOtherPart,  // of the split
    kRefused,    // by the chat template or the tokenizer
    kTooLong,
    kNothingLearned,
    kKept,
  };
  State state = State::kNoRow;
  ParsedRow parsed;  // its row only where somebody wants it
  std::string where;
  std::string problem;  // of a row that is refused, or from which nothing is learned
  std::string tag;
  RowLosses lost;
  bool split = false, cut_inside = false;
  int64_t truncated = 0, supervised = 0;  // of the samples
  std::vector<TokenRow> samples;
};

struct EncodedRows {
  std::vector<EncodedRow> rows;
  std::exception_ptr error;  // behind these rows
  uint64_t bytes_read = 0;
};

// Empty for a row from which something is learned.
std::string why_dropped(const Row& row, const FittedRow& fitted, const RowLosses& lost,
                        int64_t max_seq_length) {
  if (lost.unsayable)
    return str_cat("the tokenizer has no token for an answer (", lost.example, "); dropped");
  const Sample& sample = fitted.samples.front();
  if (sample.supervised > 0) return "";
  if (!row.turns.empty() && std::ranges::none_of(row.turns, &Turn::learned))
    return "none of its answers is to be learned (\"weight\" or \"train\"); dropped";
  if (row.chat && !sample.truncated)
    return "the chat template shows none of its answers that are to be learned; dropped";
  return str_cat("nothing to learn is left of the row in its first ", max_seq_length,
                 " tokens; dropped (a larger max_seq_length would keep it)");
}

TokenRow token_row(Sample sample) {
  TokenRow row{std::move(sample.tokens), {}};
  row.supervised.reserve(sample.labels.size());
  for (const int32_t label : sample.labels) row.supervised.push_back(label != kUnsupervised ? 1 : 0);
  return row;
}

// Of one file: rows that the tokenizer cannot say as they are written, and fields that the chat template does
// not show.
class Losses {
 public:
  void add(const RowLosses& row, const std::string& where) {
    ++rows_;
    if (shown_.reasoning.messages == 0 && row.shown.reasoning.messages > 0) reasoning_example_ = where;
    if (shown_.tool_calls.messages == 0 && row.shown.tool_calls.messages > 0) calls_example_ = where;
    const auto first_unshown = [&](const ShownFields::Count& so_far, const ShownFields::Count& now,
                                   std::string& example) {
      if (so_far.shown == so_far.messages && now.shown < now.messages) example = where;
    };
    first_unshown(shown_.system, row.shown.system, system_example_);
    first_unshown(shown_.results, row.shown.results, results_example_);
    shown_.add(row.shown);
    if (row.unknown > 0) {
      if (unknown_++ == 0) unknown_example_ = str_cat(where, ": ", row.example);
    } else if (row.changed) {
      if (changed_++ == 0) changed_example_ = str_cat(where, ": ", row.example);
    }
  }
  void tell(const std::string& path, std::vector<std::string>& warnings) const {
    // Where some are shown, the template drops the others on purpose, such as earlier thoughts.
    const auto tell_unshown = [&](const ShownFields::Count& count, const char* what,
                                  const std::string& example) {
      if (count.messages == 0 || count.shown > 0) return;
      warnings.push_back(str_cat(path, ": ", count.messages, " messages of the assistant have ", what,
                                 ", and the chat template shows none of it (the first: ", example,
                                 "); it is not learned"));
    };
    tell_unshown(shown_.reasoning, "reasoning (\"reasoning_content\", \"thinking\" or \"reasoning\")",
                 reasoning_example_);
    tell_unshown(shown_.tool_calls, "\"tool_calls\"", calls_example_);
    const auto tell_left_out = [&](const ShownFields::Count& count, const char* whose,
                                   const std::string& example) {
      if (count.shown == count.messages) return;
      warnings.push_back(str_cat(path, ": ", count.messages - count.shown, " of ", count.messages,
                                 " messages of ", whose,
                                 " are not in what the chat template writes (the first: ", example,
                                 "); their rows are learned without them"));
    };
    tell_left_out(shown_.system, "the system", system_example_);
    tell_left_out(shown_.results, "tools", results_example_);
    FieldCounts unread;
    for (const auto& [name, count] : shown_.others) {
      if (count.shown == 0) unread.add(name, count.messages);
    }
    if (!unread.empty()) {
      warnings.push_back(str_cat(path, ": fields that the chat template does not read: ", unread.text(),
                                 "; what stands in them is neither seen nor learned"));
    }
    if (unknown_ > 0) {
      warnings.push_back(str_cat(path, ": ", unknown_, " of ", rows_,
                                 " rows have characters that the tokenizer has no piece "
                                 "for, and that are learned as unknown (",
                                 unknown_example_, "); no model with this tokenizer can write them"));
    }
    if (changed_ > 0) {
      warnings.push_back(str_cat(
          path, ": ", changed_, " of ", rows_,
          " rows do not come back from the tokenizer as they are "
          "written (",
          changed_example_, "); what comes back is what is learned, and what exact match compares with"));
    }
  }

  // Whether there are tools, which the template never reads.
  [[nodiscard]] bool tools_are_unread() const {
    const auto tools = shown_.others.find("tools");
    return tools != shown_.others.end() && tools->second.shown == 0;
  }

 private:
  int64_t rows_ = 0;
  int64_t unknown_ = 0;  // rows
  int64_t changed_ = 0;  // rows, others than those
  ShownFields shown_;
  std::string unknown_example_, changed_example_, reasoning_example_, calls_example_;
  std::string system_example_, results_example_;
};

class FileTokenizer {
 public:
  FileTokenizer(const DatasetFile& file, const RowEncoder& encoder, const DatasetOptions& options,
                RowSink& sink)
      : file_(file),
        encoder_(encoder),
        options_(options),
        reading_(options.rows),
        sink_(sink),
        rules_{options.max_seq_length, options.on_long_row, options.long_text},
        texts_(open_row_texts(file.path, options.rows)),
        tally_(file.path, reading_, texts_) {
    reading_.columns = file.columns;
  }

  void run() {
    OrderedWork<RawRows, EncodedRows>::run(
        options_.threads, [this](RawRows& part) { return read(part); },
        [this](RawRows&& part) { return encode(std::move(part)); },
        [this](EncodedRows&& part) { take(std::move(part)); });
    finish();
  }

 private:
  // --- by several threads

  bool read(RawRows& part) {
    constexpr int64_t kBytes = int64_t{1} << 17;
    int64_t bytes = 0;
    try {
      for (RawRow row; bytes < kBytes && texts_.next(row); row = {}) {
        bytes += row.bytes;
        part.rows.push_back(std::move(row));
      }
    } catch (...) {
      part.error = std::current_exception();
    }
    part.bytes_read = texts_.bytes_read();
    return part.error != nullptr || !part.rows.empty();
  }

  [[nodiscard]] EncodedRows encode(RawRows&& part) const {
    EncodedRows out;
    out.bytes_read = part.bytes_read;
    out.error = part.error;
    out.rows.reserve(part.rows.size());
    try {
      for (const RawRow& row : part.rows) out.rows.push_back(encode(row));
    } catch (...) {
      out.error = std::current_exception();
    }
    return out;
  }

  [[nodiscard]] EncodedRow encode(const RawRow& text) const {
    EncodedRow out;
    out.where = place_of(file_.path, text);
    out.parsed = parse_row_text(text, out.where, reading_);
    if (out.parsed.state == ParsedRow::State::kGood) encode(out);
    if (!options_.on_row) out.parsed.row = {};
    return out;
  }

  void encode(EncodedRow& out) const {
    using State = EncodedRow::State;
    Row& row = out.parsed.row;
    if (!options_.split.takes(row)) {
      out.state = State::kOtherPart;
      return;
    }
    if (options_.on_row) row.where = out.where;
    row.tag = out.tag = tag_of(file_.tag, row.tag, file_.path);
    FittedRow fitted;
    try {
      fitted = fit_row(encoder_, row, rules_, &out.lost);
    } catch (const DataError& error) {
      if (!concerns_row(error)) throw;
      out.problem = str_cat(out.where, ": ", error.what());
      out.state = State::kRefused;
      return;
    }
    if (fitted.samples.empty() && !out.lost.unsayable) {
      out.state = State::kTooLong;
      return;
    }
    out.problem = why_dropped(row, fitted, out.lost, options_.max_seq_length);
    if (!out.problem.empty()) {
      out.state = State::kNothingLearned;
      return;
    }
    out.state = State::kKept;
    out.split = fitted.split;
    out.cut_inside = fitted.cut_inside;
    for (Sample& sample : fitted.samples) {
      out.truncated += sample.truncated ? 1 : 0;
      out.supervised += sample.supervised;
      out.samples.push_back(token_row(std::move(sample)));
    }
  }

  // --- by the thread that has called

  void take(EncodedRows&& part) {
    for (EncodedRow& row : part.rows) take(row);
    if (part.error) std::rethrow_exception(part.error);
    tell_progress(part.bytes_read, false);
  }

  void take(EncodedRow& row) {
    using State = EncodedRow::State;
    if (!tally_.take(row.parsed, row.where)) return;
    switch (row.state) {
      case State::kNoRow:
      case State::kOtherPart:
        return;
      case State::kRefused:
        if (options_.rows.on_bad_row == OnBadRow::kFail) throw DataError(row.problem + how_to_skip());
        ++report_.bad;
        note(row.problem + "; skipped");
        return;
      case State::kTooLong:
        ++report_.too_long;
        note(str_cat(row.where, ": the row has more than ", options_.max_seq_length,
                     " tokens; dropped (data.on_long_row: DROP)"));
        return;
      case State::kNothingLearned:
        ++report_.dropped;
        note(str_cat(row.where, ": ", row.problem));
        return;
      case State::kKept:
        break;
    }
    if (options_.on_row) options_.on_row(row.parsed.row);
    losses_.add(row.lost, row.where);
    report_.cut_inside += row.cut_inside ? 1 : 0;
    report_.split += row.split ? 1 : 0;
    report_.split_rows += row.split ? std::ssize(row.samples) : 0;
    report_.truncated += row.truncated;
    report_.supervised += row.supervised;
    const int32_t tag = tag_number(row.tag);
    for (const TokenRow& sample : row.samples) {
      const int64_t length = std::ssize(sample.tokens);
      ++report_.rows;
      report_.tokens += length;
      report_.longest = std::max(report_.longest, length);
      digest_.add(sample);
      sink_.add(sample, tag);
    }
  }

  void finish() {
    RowsReport read = tally_.finish();
    // What concerns the file is said once, with the rows that are trained on.
    if (options_.split.part != RowPart::kValidation) {
      report_.bad += read.bad;
      report_.dropped += read.empty;
      for (std::string& message : read.messages) note(std::move(message));
      if (!read.unused_warning.empty()) report_.warnings.push_back(read.unused_warning);
    }
    losses_.tell(file_.path, report_.warnings);
    report_.path = file_.path;
    if (losses_.tools_are_unread()) read.fields.optional.remove("tools");
    report_.optional = read.fields.optional.text();
    report_.digest = digest_.value();
    sink_.finish(report_);
    tell_progress(texts_.file_size(), true);
  }

  [[nodiscard]] std::string how_to_skip() const {
    return options_.rows.policy_field.empty()
               ? ""
               : str_cat(" (", options_.rows.policy_field, ": SKIP leaves such rows out)");
  }

  void note(std::string message) {
    if (std::ssize(report_.messages) < options_.rows.max_messages)
      report_.messages.push_back(std::move(message));
  }

  [[nodiscard]] int32_t tag_number(const std::string& name) {
    const auto [place, is_new] = tag_numbers_.try_emplace(name, static_cast<int32_t>(report_.tags.size()));
    if (is_new) report_.tags.push_back(name);
    return place->second;
  }

  void tell_progress(uint64_t bytes, bool ended) {
    using Clock = std::chrono::steady_clock;
    if (options_.still_wanted) options_.still_wanted();
    if (options_.progress) options_.progress({file_.path, bytes, texts_.file_size(), report_.rows, ended});
    constexpr auto kAlive = std::chrono::seconds(2);
    const Clock::time_point now = Clock::now();
    if (!options_.alive || now - alive_ < kAlive) return;
    alive_ = now;
    options_.alive();
  }

  const DatasetFile& file_;
  const RowEncoder& encoder_;
  const DatasetOptions& options_;
  RowOptions reading_;
  RowSink& sink_;
  LengthRules rules_;
  RowTexts texts_;
  RowTally tally_;
  RowsDigest digest_;
  Losses losses_;
  FileReport report_;
  std::unordered_map<std::string, int32_t> tag_numbers_;
  std::chrono::steady_clock::time_point alive_ = std::chrono::steady_clock::now();
};

}  // namespace

void tokenize_file(const DatasetFile& file, const RowEncoder& encoder, const DatasetOptions& options,
                   RowSink& sink) {
  FileTokenizer(file, encoder, options, sink).run();
}

}  // namespace pesc
