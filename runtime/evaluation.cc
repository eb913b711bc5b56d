#include "runtime/evaluation.h"

#include <glog/logging.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "runtime/data/refused_rows.h"
#include "runtime/terminal/progress.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

std::string trimmed(const std::string& s) {
  const char* kSpace = " \t\r\n";
  const size_t begin = s.find_first_not_of(kSpace);
  if (begin == std::string::npos) return "";
  return s.substr(begin, s.find_last_not_of(kSpace) - begin + 1);
}

}  // namespace

void count_choices(const Job& job, Decoder& decoder, const std::vector<int32_t>& tags,
                   std::vector<double>& share) {
  const Batch& b = decoder.batch();
  const auto k = static_cast<size_t>(job.config.pesc.moe.num_experts_per_tok);
  const auto experts = static_cast<size_t>(job.config.pesc.moe.num_experts);
  const auto first = static_cast<size_t>(std::min(b.slice * job.mesh().tp_rank(), b.tokens));
  for (int64_t layer = 0; layer < job.model.num_hidden_layers; ++layer) {
    const std::vector<int32_t> chosen = decoder.topk_indices(layer);
    for (size_t i = 0; i < chosen.size(); ++i) {
      share[static_cast<size_t>(tags[first + i / k]) * experts + static_cast<size_t>(chosen[i])] += 1;
    }
  }
}

std::vector<double> normalised(std::vector<double> values) {
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  for (double& v : values) v = total > 0 ? v / total : 0;
  return values;
}

std::vector<double> sum_over_ranks(Communicator& world, const std::vector<double>& mine) {
  std::vector<int64_t> bits(mine.size());
  std::transform(mine.begin(), mine.end(), bits.begin(), [](double v) { return std::bit_cast<int64_t>(v); });
  const std::vector<int64_t> all = world.host_all_gather(bits);
  std::vector<double> sum(mine.size(), 0.0);
  for (size_t i = 0; i < all.size(); ++i) sum[i % mine.size()] += std::bit_cast<double>(all[i]);
  return sum;
}

namespace {

// Whether any rank was asked to stop. Collective.
bool agreed_to_stop(Communicator& world, const StopRequested& stop_requested) {
  if (!stop_requested) return false;
  const int64_t mine = stop_requested() ? 1 : 0;
  const std::vector<int64_t> all = world.host_all_gather(std::span(&mine, 1));
  return std::any_of(all.begin(), all.end(), [](int64_t stop) { return stop != 0; });
}

// Each entry is one row, the eval files having no weights.
Sampler chosen_rows(const Dataset& data, int64_t limit) {
  if (limit <= 0 || limit >= data.rows()) return {data.epoch_size(), 0, RowOrder::kAsRead};
  std::vector<int64_t> sizes;
  for (const DatasetContent& file : data.content()) sizes.push_back(file.rows);
  return {data.epoch_size(), rows_of_every_file(sizes, limit)};
}

}  // namespace

std::optional<EvalResults> evaluate_loss(Job& job, Decoder& decoder, const Dataset& data, int64_t batch_rows,
                                         int64_t limit, const StopRequested& stop_requested) {
  const Mesh& mesh = job.mesh();
  const Sampler order = chosen_rows(data, limit);
  const int64_t rows = limit > 0 ? std::min(limit, data.rows()) : data.rows();
  const size_t tags = data.tags().size();
  const bool moe = job.config.pesc.mode == TrainMode::kPesc;
  const size_t experts = moe ? static_cast<size_t>(job.config.pesc.moe.num_experts) : 0;
  std::vector<double> sums(2 * tags, 0.0);
  std::vector<double> share(tags * experts, 0.0);
  std::vector<float> losses;
  ProgressBar bar("evaluating", rows, ProgressUnit::kCount,
                  job.first() ? ProgressShown::kYes : ProgressShown::kNo, "rows");
  for (int64_t begin = 0; begin < rows; begin += batch_rows) {
    bar.set(begin);
    if (agreed_to_stop(job.ranks->world(), stop_requested)) {
      (void)decoder.take_loss_sum();
      return std::nullopt;
    }
    const Range mine =
        BatchPlan{batch_rows, batch_rows, mesh.dp()}.local_range(begin, 0, mesh.dp_rank(), rows);
    const LocalBatch batch = make_local_batch(data, order, mine.begin, mine.size());
    decoder.forward(batch.host, {.kind = ForwardMode::kEval});
    losses.clear();
    decoder.loss(HeadMode::kLoss, 0, &losses);
    if (moe) count_choices(job, decoder, batch.tags, share);
    if (mesh.tp_rank() != 0) continue;
    size_t at = 0;
    for (size_t t = 0; t < batch.host.targets.size(); ++t) {
      if (batch.host.targets[t] < 0) continue;
      sums[2 * static_cast<size_t>(batch.tags[t])] += static_cast<double>(losses[at++]);
      sums[2 * static_cast<size_t>(batch.tags[t]) + 1] += 1;
    }
  }
  (void)decoder.take_loss_sum();
  sums.insert(sums.end(), share.begin(), share.end());
  sums = sum_over_ranks(job.ranks->world(), sums);
  EvalResults out;
  EvalResult& all = out.total;
  std::vector<double> share_of_all(experts);
  for (size_t i = 0; i < tags; ++i) {
    if (sums[2 * i + 1] == 0) continue;
    EvalResult h{sums[2 * i] / sums[2 * i + 1], sums[2 * i + 1], {}};
    const auto begin = sums.begin() + static_cast<int64_t>(2 * tags + i * experts);
    h.expert_share = normalised({begin, begin + static_cast<int64_t>(experts)});
    for (size_t e = 0; e < experts; ++e) share_of_all[e] += *(begin + static_cast<int64_t>(e));
    out.tags[data.tags()[i]] = std::move(h);
    all.loss += sums[2 * i];
    all.tokens += sums[2 * i + 1];
  }
  if (all.tokens > 0) all.loss /= all.tokens;
  all.expert_share = normalised(std::move(share_of_all));
  check_finite(out, job.first());
  return out;
}

void check_finite(const EvalResults& losses, bool reporting) {
  for (const auto& [tag, h] : losses.tags) {
    if (std::isfinite(h.loss)) continue;
    throw AgreedError(ExitCode::kInternal,
                      str_cat("the eval loss of dataset '", printable(tag, kUncut), "' is ", h.loss,
                              ": the model's weights or activations are not finite numbers; look at the base "
                              "model's files, or go back to an earlier checkpoint"),
                      reporting);
  }
}

bool AnsweredRow::exact() const {
  return trimmed(answer) == trimmed(canonical.empty() ? expected : canonical);
}

std::vector<int64_t> stop_ids(const Job& job) {
  return job.special.stops;
}

int64_t cut_answers(const Job& job, int64_t mine) {
  const auto counted = static_cast<double>(job.mesh().tp_rank() == 0 ? mine : 0);
  return std::llround(sum_over_ranks(job.ranks->world(), {counted})[0]);
}

SamplingOptions sampling_options(const Job& job, const GenerateSection& generate) {
  return {generate.max_new_tokens, generate.temperature, generate.top_p,
          generate.seed,           stop_ids(job),        job.tokenizer->vocab_size()};
}

std::vector<AnsweredRow> answer_rows(Job& job, Decoder& decoder, const std::vector<Row>& rows,
                                     const GenerateSection& how, int64_t cache_slots, int64_t cache_length) {
  const Mesh& mesh = job.mesh();
  const Range mine = split_range(static_cast<int64_t>(rows.size()), mesh.dp(), mesh.dp_rank());
  std::vector<Prompt> prompts;
  std::vector<bool> asked(rows.size());
  run_collectively(job.ranks->world(), [&] {
    RefusedRows refused(job.config.data.on_bad_row == BadRowPolicy::kSkip ? OnBadRow::kSkip : OnBadRow::kFail,
                        "data.on_bad_row");
    for (int64_t i = 0; i < std::ssize(rows); ++i) {
      const Row& row = rows[static_cast<size_t>(i)];
      if (row.turns.empty()) continue;
      try {
        Prompt p{i, job.encoder->encode_prompt(row, cache_length)};
        asked[static_cast<size_t>(i)] = true;
        if (i >= mine.begin && i < mine.end && std::ssize(p.tokens) < cache_length)
          prompts.push_back(std::move(p));
      } catch (const DataError& error) {
        refused.add(row, error);
      }
    }
    if (refused.rows() > 0 && job.first()) LOG(WARNING) << "answers: " << refused.text();
  });
  Generated generated;
  {
    // Of this rank's own part; those of the others are as large.
    ProgressBar bar("answering", static_cast<int64_t>(prompts.size()), ProgressUnit::kCount,
                    job.first() ? ProgressShown::kYes : ProgressShown::kNo, "questions");
    generated = generate(decoder, job.ranks->world(), prompts,
                         {.sampling = sampling_options(job, how),
                          .cache_slots = cache_slots,
                          .cache_length = cache_length,
                          .on_end = [&bar] { bar.add(1); }});
  }
  if (const int64_t all = cut_answers(job, generated.cut); job.first() && all > 0) {
    LOG(WARNING) << all << " answers are cut where question and answer have the " << cache_length
                 << " tokens of data.max_seq_length; they are compared as they are";
  }

  // One tp rank of each dp rank tells the others: index, length, text.
  std::string bytes;
  for (size_t i = 0; mesh.tp_rank() == 0 && i < prompts.size(); ++i) {
    const std::string text = job.tokenizer->decode(generated.answers[i]);
    const int64_t head[2] = {prompts[i].index, static_cast<int64_t>(text.size())};
    bytes.append(reinterpret_cast<const char*>(head), sizeof(head));
    bytes += text;
  }
  std::vector<std::string> text_of(rows.size());
  size_t answered = 0;
  for (const std::string& part : job.ranks->world().host_all_gather(bytes)) {
    for (size_t at = 0; at < part.size();) {
      int64_t head[2];
      std::memcpy(head, part.data() + at, sizeof(head));
      at += sizeof(head);
      text_of[static_cast<size_t>(head[0])] = part.substr(at, static_cast<size_t>(head[1]));
      at += static_cast<size_t>(head[1]);
      answered += 1;
    }
  }
  std::vector<AnsweredRow> out;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!asked[i]) continue;
    const Turn& last = rows[i].turns.back();
    out.push_back({rows[i].tag, last.prompt, last.answer, text_of[i],
                   job.encoder->canonical_answer(rows[i], cache_length)});
  }
  if (job.first() && answered < out.size()) {
    LOG(WARNING) << out.size() - answered << " of " << out.size()
                 << " questions are longer than data.max_seq_length; they count as answered wrongly";
  }
  return out;
}

ExactMatches exact_match(const std::vector<AnsweredRow>& rows) {
  ExactMatches out;
  for (const AnsweredRow& row : rows) {
    for (ExactMatch* m : {&out.total, &out.tags[row.tag]}) {
      m->rows += 1;
      m->exact += row.exact() ? 1 : 0;
    }
  }
  return out;
}

}  // namespace pesc
