#include "runtime/data/tokenized_rows.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "ops/core/check.h"

namespace pesc {

void MemoryRows::add(const TokenRow& row, int32_t tag) {
  tokens_.insert(tokens_.end(), row.tokens.begin(), row.tokens.end());
  supervised_.insert(supervised_.end(), row.supervised.begin(), row.supervised.end());
  offsets_.push_back(std::ssize(tokens_));
  tags_.push_back(tag);
}

void MemoryRows::finish(FileReport report) {
  PESC_CHECK(report.rows == std::ssize(tags_), report.rows, " rows, of which ", tags_.size(), " are here");
  report_ = std::move(report);
  tokens_.shrink_to_fit();
  supervised_.shrink_to_fit();
}

int64_t MemoryRows::length(int64_t row) const {
  PESC_CHECK(row >= 0 && row < report_.rows, "row ", row, " of ", report_.rows);
  return offsets_[static_cast<size_t>(row) + 1] - offsets_[static_cast<size_t>(row)];
}

void MemoryRows::read(int64_t row, TokenRow& out) const {
  const int64_t size = length(row);
  const int64_t begin = offsets_[static_cast<size_t>(row)];
  out.tokens.assign(tokens_.begin() + begin, tokens_.begin() + begin + size);
  out.supervised.assign(supervised_.begin() + begin, supervised_.begin() + begin + size);
}

namespace {}  // namespace

struct RowsDigest::States {
  class DigestState {
   public:
    DigestState() : state_(XXH3_createState()) {
      PESC_CHECK(state_ != nullptr && XXH3_64bits_reset(state_) == XXH_OK, "no state of XXH3");
    }
    ~DigestState() { XXH3_freeState(state_); }
    DigestState(const DigestState&) = delete;
    DigestState& operator=(const DigestState&) = delete;
    template <class T>
    void add(std::span<const T> values) {
      PESC_CHECK(XXH3_64bits_update(state_, values.data(), values.size_bytes()) == XXH_OK, "XXH3");
    }
    [[nodiscard]] uint64_t value() const { return XXH3_64bits_digest(state_); }

   private:
    XXH3_state_t* state_;
  };
  DigestState lengths, tokens, supervised;
};

RowsDigest::RowsDigest() : states_(std::make_unique<States>()) {}
RowsDigest::~RowsDigest() = default;

// Lengths come in as numbers, so where the rows lie among others does not matter.
void RowsDigest::add(const TokenRow& row) {
  const int64_t length = std::ssize(row.tokens);
  states_->lengths.add(std::span(&length, 1));
  states_->tokens.add(std::span<const int32_t>(row.tokens));
  states_->supervised.add(std::span<const uint8_t>(row.supervised));
}

uint64_t RowsDigest::value() const {
  const uint64_t parts[] = {states_->lengths.value(), states_->tokens.value(), states_->supervised.value()};
  return XXH3_64bits(parts, sizeof parts);
}

}  // namespace pesc
