// The rows that a run trains on, numbered along a stream without end: steps, epochs and the position in a
// checkpoint count them. Without packing, row g is conversation g of the sampler's stream; with it, a row is
// several of these (runtime/data/packing.h). Either way the dropout masks of a conversation are keyed by its
// number in the sampler's stream and the positions in it, so that they do not depend on where it is packed.
#pragma once

#include <cstdint>
#include <memory>

#include "parallel/shard_spec.h"
#include "runtime/data/dataset.h"
#include "runtime/data/packing.h"
#include "runtime/data/sampler.h"

namespace pesc {

enum class Packing { kNone, kBestFit };

class RowStream {
 public:
  // REQUIRES: `data`, whose rows have at most `max_seq_length` tokens, outlives it.
  RowStream(const Dataset& data, uint64_t seed, Packing packing, int64_t max_seq_length);
  RowStream(const RowStream&) = delete;
  RowStream& operator=(const RowStream&) = delete;

  // These rows of the stream, their conversations one after another.
  [[nodiscard]] LocalBatch batch(const Range& rows);
  // The number of rows of `epochs` epochs, which may be a fraction; and the same before it is made whole (see
  // share_of). Packed epochs differ in their numbers of rows, so that all of them are packed for it, once.
  [[nodiscard]] int64_t rows_for(double epochs);
  [[nodiscard]] double exact_rows_for(double epochs);
  [[nodiscard]] bool packs() const { return packed_ != nullptr; }

 private:
  // `rows` rows, and a share of `shared_rows` more.
  struct Epochs {
    int64_t rows = 0;
    double share = 0;
    int64_t shared_rows = 0;
  };
  [[nodiscard]] Epochs divide(double epochs);

  const Dataset& data_;
  Sampler sampler_;
  std::unique_ptr<PackedRows> packed_;  // null: each conversation is a row
};

}  // namespace pesc
