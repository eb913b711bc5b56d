// Evaluation on the rows of data.eval, per dataset tag: the loss, the share of answers that are generated
// exactly, and the use of experts.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/data/dataset.h"
#include "runtime/data/rows.h"
#include "runtime/data/sampler.h"
#include "runtime/generator.h"
#include "runtime/job.h"

namespace pesc {

struct EvalResult {
  double loss = 0;  // nats per supervised token
  double tokens = 0;
  std::vector<double> expert_share;  // [experts] over all layers; empty without experts
};
// `total` is not one of the tags, since a tag may have any name.
struct EvalResults {
  EvalResult total;
  std::map<std::string, EvalResult> tags;
};

// Called on every rank before every batch; the evaluation ends when it returns true on any rank.
using StopRequested = std::function<bool()>;
// The loss over at most `limit` rows (0: all), chosen by rows_of_every_file, `batch_rows` at a time over all
// ranks. Returns nothing when stop_requested ended it. Throws AgreedError when a loss is not finite.
// Collective.
[[nodiscard]] std::optional<EvalResults> evaluate_loss(Job& job, Decoder& decoder, const Dataset& data,
                                                       int64_t batch_rows, int64_t limit,
                                                       const StopRequested& stop_requested = {});
// Throws AgreedError naming the first dataset whose loss is not finite. REQUIRES: the same losses on every
// rank.
void check_finite(const EvalResults& losses, bool reporting);

struct ExactMatch {
  int64_t rows = 0;
  int64_t exact = 0;
};
struct ExactMatches {
  ExactMatch total;
  std::map<std::string, ExactMatch> tags;
};
struct AnsweredRow {
  std::string tag, question, expected, answer;
  std::string canonical{};  // `expected` after encoding and decoding
  // Whether answer and canonical are equal, apart from white space at both ends.
  [[nodiscard]] bool exact() const;
};
// Generates the last answer of every row with the settings of `generate`; rows without turns (plain text) are
// skipped. Returns the answers in row order, the same on every rank. Rows whose prompt leaves no room in the
// cache count as wrong, and answers that the cache cuts are compared as they are; the log says so once. Rows
// whose prompt is refused (runtime/data/refused_rows.h) end it, or with data.on_bad_row SKIP are left out.
// Collective.
[[nodiscard]] std::vector<AnsweredRow> answer_rows(Job& job, Decoder& decoder, const std::vector<Row>& rows,
                                                   const GenerateSection& generate, int64_t cache_slots,
                                                   int64_t cache_length);
[[nodiscard]] ExactMatches exact_match(const std::vector<AnsweredRow>& rows);

// The number of answers on all ranks that the end of the cache cut; `mine` is generate()'s count on this
// rank. Collective.
[[nodiscard]] int64_t cut_answers(const Job& job, int64_t mine);

// The sampling options of the experiment, with stop_ids() as stop tokens.
[[nodiscard]] SamplingOptions sampling_options(const Job& job, const GenerateSection& generate);

// The ids that end an answer (runtime/data/special_tokens.h).
[[nodiscard]] std::vector<int64_t> stop_ids(const Job& job);

// Adds this rank's slice of the last forward's choices of experts to share[tag * experts + expert], over all
// layers. `tags` are those of the batch's tokens.
void count_choices(const Job& job, Decoder& decoder, const std::vector<int32_t>& tags,
                   std::vector<double>& share);
// The values over their sum; zeros when that is 0.
[[nodiscard]] std::vector<double> normalised(std::vector<double> values);

// Sums vectors of doubles over ranks, in rank order, bitwise the same on all. Collective; the same length
// everywhere.
[[nodiscard]] std::vector<double> sum_over_ranks(Communicator& world, const std::vector<double>& mine);

}  // namespace pesc
