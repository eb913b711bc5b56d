// What a model knows of held-out rows: the loss, the share of answers that it generates exactly, and the
// experts that it uses, each per dataset tag.
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

struct HeldOut {
  double loss = 0;  // nats per supervised token
  double tokens = 0;
  std::vector<double> expert_share;  // [experts] over all layers; empty without experts
};
// The total beside the tags, of which one may have any name.
struct HeldOutLosses {
  HeldOut total;
  std::map<std::string, HeldOut> tags;
};

// Asked on every rank before every batch; the evaluation ends when any rank's answer is true.
using StopRequested = std::function<bool()>;
// At most `limit` rows (0: all), of every file its share. Nothing when it was asked to stop. Throws
// AgreedError when a loss is not finite. Collective.
[[nodiscard]] std::optional<HeldOutLosses> held_out_loss(Job& job, Decoder& decoder, const Dataset& data,
                                                         int64_t micro_batch, int64_t limit,
                                                         const StopRequested& stop_requested = {});
// Throws AgreedError naming the first that is not finite. The same on every rank.
void check_finite(const HeldOutLosses& losses, bool speaker);

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
  std::string canonical{};  // `expected` as the tokenizer gives it back
  // The answer equals that, but for white space at both ends.
  [[nodiscard]] bool exact() const;
};
// Generates the last answer of every row as `generate` says; rows without turns (plain text) are left out.
// The answers in row order, the same on every rank. Rows whose prompt leaves no room in the cache count as
// wrong, and answers that it cuts are compared as they are; both are said once. Collective.
[[nodiscard]] std::vector<AnsweredRow> answer_rows(Job& job, Decoder& decoder, const std::vector<Row>& rows,
                                                   const GenerateSection& generate, int64_t cache_slots,
                                                   int64_t cache_length);
[[nodiscard]] ExactMatches exact_match(const std::vector<AnsweredRow>& rows);

// The answers of all ranks that the end of the cache cut, from what generate() counted on each. Collective.
[[nodiscard]] int64_t cut_answers(const Job& job, int64_t mine);

// The sampling that the experiment asks for, ended by stop_ids().
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
