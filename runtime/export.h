// Dense models out: config.json, model.safetensors, the files of the tokenizer.
#pragma once

#include <string>

#include "runtime/job.h"

namespace pesc {

// Writes the decoder's dense weights, which this one rank holds whole, as a Hugging Face folder in float32.
// The weights come last, so that a folder that was cut short does not look whole. Throws IoError.
void export_dense(const Job& job, Decoder& decoder, const std::string& folder);

}  // namespace pesc
