// Generation with a KV cache, on any layout: prompts are spread over the dp ranks, every rank joins every
// pass, and all tp ranks of a dp rank draw the same tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/decoder.h"

namespace pesc {

struct SamplingOptions {
  int64_t max_tokens = 128;  // generated per prompt, end-of-text included
  double temperature = 0;    // 0: greedy
  double top_p = 1;  // nucleus (Holtzman et al., 2020): the smallest set of tokens of this probability
  uint64_t seed = 0;
  std::vector<int64_t> stop;  // end-of-text ids
  // The tokenizer's: ids from here on, of a padded vocabulary, are never drawn unless they are in `stop`. 0:
  // all may be.
  int64_t pieces = 0;
};

struct Prompt {
  int64_t index = 0;  // global number: keys the random draws, so that they do not depend on the layout
  std::vector<int32_t> tokens;
};

// Draws from logits [vocab]; `uniform` in [0, 1). Greedy takes the lowest id among equals.
[[nodiscard]] int32_t sample_token(const float* logits, int64_t vocab, const SamplingOptions& options,
                                   float uniform);

// Called on every rank that holds the prompt, for each token of the answer as it is drawn; the stopping one
// is none of it.
using TokenCallback = std::function<void(const Prompt&, int32_t token)>;

struct GenerateOptions {
  SamplingOptions sampling;
  // Of the decoder's KV cache: prompts at one time, and tokens of one.
  int64_t cache_slots = 0;
  int64_t cache_length = 0;
  TokenCallback on_token{};
  std::function<void()> on_end{};  // after the last token of each answer
};

struct Generated {
  std::vector<std::vector<int32_t>> answers;  // of each prompt, without the stopping token
  int64_t cut = 0;                            // of them, those that the end of the cache cut
};

// Continues this dp rank's prompts (the same list on its tp ranks; may be empty). Collective over world. Prompts must fit
// the decoder's cache; an answer that reaches the end of the cache stops there. Throws AgreedError, naming prompt and
// token, where logits are not finite.
[[nodiscard]] Generated generate(Decoder& decoder, Communicator& world, const std::vector<Prompt>& prompts,
                                 const GenerateOptions& options);

}  // namespace pesc
