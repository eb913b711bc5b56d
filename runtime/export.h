// Dense models out: config.json, model.safetensors, the files of the tokenizer.
#pragma once

#include <string>
#include <vector>

#include "runtime/hf/safetensors_write.h"
#include "runtime/job.h"

namespace pesc {

// Writes the decoder's dense weights, which this one rank holds whole, as a Hugging Face folder in float32.
// The weights come last, so that a folder that was cut short does not look whole. Throws IoError.
void export_dense(const Job& job, Decoder& decoder, const std::string& folder);

// The dense weights, whole and in float32, as the family's files hold them: fused where they are. REQUIRES: the
// parameters are those of the only rank, trained or F32, and outlive the entries.
[[nodiscard]] std::vector<SafetensorsWriteEntry> dense_tensors(Stream& stream, const ModelConfig& model,
                                                               const ModelParameters& parameters);

}  // namespace pesc
