// What tokenizer_config.json has to say so that transformers does what a tokenizer.json says.
//
// It names PreTrainedTokenizerFast, which takes the file as it is (TokenizersBackend is that class's name in transformers 5). For a
// model of type qwen2, transformers 5.24.0 puts Qwen2Tokenizer in the place of whatever class the key tokenizer_class names, even of
// this one: it takes vocabulary, merges, added tokens and post-processor of the file, and has the normalizer, the pre-tokenizer and the
// decoder of Qwen2, and a token <|endoftext|>. It does not do so where auto_map names a class: it then obeys tokenizer_class, and with
// trust_remote_code=True that class, which does the same. Seen in 5.24.0 for the types llama, mistral, qwen3, phi3, smollm3 and
// pesc_qwen2, and in 4.57.6 for all: the class that tokenizer_class names is used.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace pesc {

// Whether Qwen2Tokenizer gives the tokens that `tokenizer` says. It may say no for one of which it does.
[[nodiscard]] bool has_steps_of_qwen2(const nlohmann::json& tokenizer);

// Whether the pre-tokenizer puts a space before the text. transformers 4.57.6 puts its own setting in the place of this one.
[[nodiscard]] bool adds_prefix_space(const nlohmann::json& tokenizer);

// A tokenizer.json without its vocabulary and merges. Throws DataError; `path` is for the message.
[[nodiscard]] nlohmann::json parse_tokenizer_steps(std::string_view text, const std::string& path);

}  // namespace pesc
