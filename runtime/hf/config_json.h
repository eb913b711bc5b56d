// config.json of a Hugging Face model folder, in the words of transformers 4 (rope_theta, rope_scaling) and 5
// (rope_parameters).
//
// Supported are the dense decoders of the families in model/families.h, with the quantised weights that
// quantization_config.h lists or without. Anything else
// is refused by name: a model that loads is computed as transformers computes it. A key that is absent means
// what it means there.
#pragma once

#include <string>
#include <string_view>

#include "model/config.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {

// Reads `folder`/config.json. Throws DataError naming the file and the key, IoError when the file cannot be
// read.
//
// `sliding_window` of the result is the window of the model or 0; the caller refuses a sequence length above
// it.
[[nodiscard]] ModelConfig read_model_config(const std::string& folder, Links links = Links::kInside);
// The same from the text of such a file; `file_name` is for messages.
[[nodiscard]] ModelConfig parse_model_config(std::string_view text, const std::string& file_name);

inline constexpr double kUsualInitializerRange = 0.02;  // as in transformers

// The text of a config.json for weights in float32, which transformers 4 and 5 both load; `where` is for
// messages. Throws DataError as write_model_config does.
[[nodiscard]] std::string model_config_text(const ModelConfig& config, const std::string& where,
                                            double initializer_range = kUsualInitializerRange);

// Writes `folder`/config.json, atomically, for weights in float32. transformers 4 and 5 both load it. Throws
// IoError, and DataError for a model whose upper layers have a sliding window (which ones is not known any
// more). initializer_range: the deviation that the dense weights began with, which other programs give to
// weights that they add.
void write_model_config(const std::string& folder, const ModelConfig& config,
                        double initializer_range = kUsualInitializerRange);

// `folder`/config.json's own, or the usual one.
[[nodiscard]] double read_initializer_range(const std::string& folder);

}  // namespace pesc
