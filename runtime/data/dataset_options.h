// The files of a dataset, and how they are read.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "runtime/data/long_rows.h"
#include "runtime/data/row_file.h"
#include "runtime/data/row_split.h"
#include "runtime/data/tokenizing_progress.h"

namespace pesc {

struct DatasetFile {
  std::string path;
  std::string tag;    // not empty: the tag of all its rows, whatever they say
  double weight = 1;  // copies of the file per epoch, 0.25 being a quarter of it
  RowColumns columns{};
};

// Where tokenised rows are kept (runtime/data/token_cache.h).
struct TokenCacheOptions {
  std::string directory;
  // What, besides the settings here, the tokens of a row depend on: tokenizer, template, date, train_on.
  std::string encoding;
  // So long is waited for a process that writes there and shows no progress.
  double patience_seconds = 1800;
  // Whether this process says which file it reads, and how a long wait goes on. That it begins to wait or
  // tokenises it says in any case.
  bool announces = false;
};

struct DatasetOptions {
  int64_t max_seq_length = 0;
  OnLongRow on_long_row = OnLongRow::kCut;
  LongText long_text = LongText::kAsOtherRows;
  RowOptions rows;  // its columns are those of each file
  // Rows of the other part are passed over and counted nowhere.
  RowSplit split{};
  // Gets every row that is kept, with the tag that counts. The rows are then read anew, whatever `cache` says.
  std::function<void(const Row&)> on_row{};
  int threads = 1;  // that parse and tokenise; the result is the same
  // Nothing: the rows stay in memory.
  std::optional<TokenCacheOptions> cache{};
  // Called while rows are tokenised, by the thread that has called.
  std::function<void(const TokenizingProgress&)> progress{};
  // Called at times while the work goes on, be it another process's that this one waits for.
  std::function<void()> alive{};
  // Called often, in the same places and while this process waits; may throw an Error to end the work.
  std::function<void()> still_wanted{};
};

}  // namespace pesc
