#include "runtime/generator.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "ops/core/philox.h"
#include "runtime/ranks.h"

namespace pesc {
namespace {

struct Active {
  size_t prompt = 0;  // index into the local prompts
  int32_t slot = 0;
  int64_t length = 0;         // tokens in the cache
  std::vector<int32_t> next;  // tokens to feed: the prompt, then one at a time
};

HostBatch batch_of(const std::vector<Active>& active, const std::vector<Prompt>& prompts,
                   std::vector<int32_t>& last_rows) {
  HostBatch b;
  last_rows.clear();
  for (const Active& a : active) {
    for (size_t i = 0; i < a.next.size(); ++i) {
      b.tokens.push_back(a.next[i]);
      b.positions.push_back(static_cast<int32_t>(a.length + static_cast<int64_t>(i)));
      b.samples.push_back(prompts[a.prompt].index);
    }
    last_rows.push_back(static_cast<int32_t>(b.tokens.size()) - 1);
    b.starts.push_back(static_cast<int32_t>(b.tokens.size()));
    b.slots.push_back(a.slot);
    b.past.push_back(static_cast<int32_t>(a.length));
  }
  return b;
}

bool all_finite(std::span<const float> logits) {
  return std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); });
}

void check_prompts(const std::vector<Prompt>& prompts, int64_t cache_length) {
  for (const Prompt& p : prompts) {
    if (p.tokens.empty()) throw DataError(str_cat("prompt ", p.index, " has no tokens"));
    if (static_cast<int64_t>(p.tokens.size()) >= cache_length) {
      throw DataError(str_cat("prompt ", p.index, " has ", p.tokens.size(),
                              " tokens; the longest that leaves room for an ", "answer here is ",
                              cache_length - 1));
    }
  }
}

// What the ranks tell each other before every pass: who still has prompts, and whether anyone's logits are
// wrong. Returns the number of active prompts.
int64_t agree_to_go_on(Communicator& world, size_t active, const std::string& wrong) {
  const int64_t mine[2] = {static_cast<int64_t>(active), wrong.empty() ? 0 : 1};
  const std::vector<int64_t> all = world.host_all_gather(std::span(mine));
  int64_t sum = 0;
  bool failed = false;
  for (size_t i = 0; i < all.size(); i += 2) {
    sum += all[i];
    failed |= all[i + 1] != 0;
  }
  if (failed) {
    run_collectively(world, [&] {
      if (!wrong.empty()) throw InternalError(wrong);
    });
  }
  return sum;
}

}  // namespace

namespace {

// No text belongs to the rows of a padded vocabulary.
void hold_back_padding(float* logits, int64_t vocab, const SamplingOptions& options) {
  if (options.pieces <= 0) return;
  for (int64_t id = options.pieces; id < vocab; ++id) {
    if (std::find(options.stop.begin(), options.stop.end(), id) == options.stop.end())
      logits[id] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace

int32_t sample_token(const float* logits, int64_t vocab, const SamplingOptions& options, float uniform) {
  const auto best = static_cast<int32_t>(std::max_element(logits, logits + vocab) - logits);
  if (options.temperature <= 0) return best;
  std::vector<double> p(static_cast<size_t>(vocab));
  double total = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    p[static_cast<size_t>(i)] =
        std::exp((static_cast<double>(logits[i]) - static_cast<double>(logits[best])) / options.temperature);
    total += p[static_cast<size_t>(i)];
  }
  std::vector<int32_t> order(static_cast<size_t>(vocab));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&p](int32_t a, int32_t b) {
    return p[static_cast<size_t>(a)] > p[static_cast<size_t>(b)];
  });
  size_t kept = 0;
  double mass = 0;
  // What cannot come is never kept, whatever the sums round to.
  while (kept < order.size() &&
         (kept == 0 || (mass < options.top_p * total && p[static_cast<size_t>(order[kept])] > 0))) {
    mass += p[static_cast<size_t>(order[kept++])];
  }
  double left = static_cast<double>(uniform) * mass;
  for (size_t i = 0; i < kept; ++i) {
    left -= p[static_cast<size_t>(order[i])];
    if (left < 0) return order[i];
  }
  return order[kept - 1];
}

Generated generate(Decoder& decoder, Communicator& world, const std::vector<Prompt>& prompts,
                   const GenerateOptions& how) {
  const SamplingOptions& options = how.sampling;
  Generated out;
  out.answers.resize(prompts.size());
  run_collectively(world, [&] { check_prompts(prompts, how.cache_length); });
  const int64_t vocab = decoder.model().vocab_size;
  size_t next_prompt = 0;
  std::vector<Active> active;
  std::vector<int32_t> free_slots(static_cast<size_t>(how.cache_slots));
  std::iota(free_slots.begin(), free_slots.end(), 0);
  std::vector<int32_t> last_rows;
  std::string wrong;
  while (true) {
    while (next_prompt < prompts.size() && !free_slots.empty()) {
      active.push_back({next_prompt, free_slots.back(), 0, prompts[next_prompt].tokens});
      free_slots.pop_back();
      ++next_prompt;
    }
    if (agree_to_go_on(world, active.size(), wrong) == 0) break;
    decoder.forward(batch_of(active, prompts, last_rows), {.kind = ForwardMode::kEval});
    std::vector<float> logits = decoder.logits(last_rows);
    std::vector<Active> still;
    for (size_t i = 0; i < active.size(); ++i) {
      Active& a = active[i];
      const Prompt& prompt = prompts[a.prompt];
      std::vector<int32_t>& answer = out.answers[a.prompt];
      a.length += static_cast<int64_t>(a.next.size());
      const std::span row(logits.data() + static_cast<int64_t>(i) * vocab, static_cast<size_t>(vocab));
      if (!all_finite(row)) {
        wrong =
            str_cat("the logits of prompt ", prompt.index, " at token ", answer.size() + 1,
                    " of its answer are not all finite numbers: the weights or the activations are not; look "
                    "at the base model's files, or go back to an earlier checkpoint");
        break;
      }
      const PhiloxCounter bits =
          philox({static_cast<uint32_t>(answer.size()), static_cast<uint32_t>(prompt.index), 0, 0x67656e},
                 {static_cast<uint32_t>(options.seed), static_cast<uint32_t>(options.seed >> 32)});
      hold_back_padding(row.data(), vocab, options);
      const int32_t token = sample_token(row.data(), vocab, options, philox_uniform(bits[0]));
      const bool stop = std::find(options.stop.begin(), options.stop.end(), token) != options.stop.end();
      if (!stop) answer.push_back(token);
      if (!stop && how.on_token) how.on_token(prompt, token);
      const bool whole = stop || static_cast<int64_t>(answer.size()) >= options.max_tokens;
      if (whole || a.length + 1 >= how.cache_length) {
        out.cut += whole ? 0 : 1;
        free_slots.push_back(a.slot);
        if (how.on_end) how.on_end();
        continue;
      }
      a.next = {token};
      still.push_back(std::move(a));
    }
    active = std::move(still);
  }
  return out;
}

}  // namespace pesc
