// What tokenizer_config.json has to say so that transformers does what a tokenizer.json says.
//
// The key tokenizer_class names PreTrainedTokenizerFast, which takes the file as it is (transformers 5 calls it TokenizersBackend). For
// a model of type qwen2, transformers 5.24.0 uses Qwen2Tokenizer, whatever tokenizer_class names. Qwen2Tokenizer takes vocabulary,
// merges, added tokens and post-processor from the file, but has its own normalizer, pre-tokenizer and decoder, and a token
// <|endoftext|>. Where the key auto_map names a class, transformers does not do so: with trust_remote_code=True it uses the class of
// auto_map, which takes the file as it is too, and otherwise the class of tokenizer_class. Seen in 5.24.0 for the types llama, mistral,
// qwen3, phi3, smollm3 and pesc_qwen2, and in 4.57.6 for all: transformers uses the class that tokenizer_class names.
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
