#include "runtime/data/row_stream.h"

#include <cmath>

#include "ops/core/check.h"
#include "runtime/data/share.h"

namespace pesc {

RowStream::RowStream(const Dataset& data, uint64_t seed, Packing packing, int64_t max_seq_length)
    : data_(data), sampler_(data.epoch_size(), seed) {
  PESC_CHECK(data.longest_row() <= max_seq_length, "a row of ", data.longest_row(),
             " tokens in sequences of ", max_seq_length);
  if (packing == Packing::kNone) return;
  packed_ = std::make_unique<PackedRows>(data.epoch_size(), max_seq_length, seed, [this](int64_t index) {
    const Sampler::Place at = sampler_.place(index);
    return data_.length(data_.entry_row(at.entry, at.epoch, sampler_.seed()));
  });
}

LocalBatch RowStream::batch(const Range& rows) {
  if (!packed_) return make_local_batch(data_, sampler_, rows.begin, rows.size());
  LocalBatch batch;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    for (const int64_t conversation : packed_->conversations(row))
      add_conversation(data_, sampler_, conversation, batch);
  }
  return batch;
}

// Packed, an epoch has as many rows as its own order makes.
RowStream::Epochs RowStream::divide(double epochs) {
  PESC_CHECK(std::isfinite(epochs) && epochs >= 0, epochs, " epochs");
  if (!packed_) return {0, epochs, sampler_.epoch_size()};
  const auto whole = static_cast<int64_t>(epochs);
  Epochs out{packed_->first_row(whole), epochs - static_cast<double>(whole), 0};
  if (out.share > 0) out.shared_rows = packed_->first_row(whole + 1) - out.rows;
  return out;
}

int64_t RowStream::rows_for(double epochs) {
  const Epochs e = divide(epochs);
  return e.rows + share_of(e.share, e.shared_rows);
}

double RowStream::exact_rows_for(double epochs) {
  const Epochs e = divide(epochs);
  return static_cast<double>(e.rows) + e.share * static_cast<double>(e.shared_rows);
}

}  // namespace pesc
