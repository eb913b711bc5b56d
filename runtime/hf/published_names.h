// The tensors of a published folder under the names by which the model asks for them (model/hf_names.h).
#pragma once

#include "model/config.h"
#include "runtime/hf/hf_folder.h"

namespace pesc {

// Takes the prefix off the text part of a model of more than text (`language_model.`, or
// `model.language_model.` as transformers 5 saves it), and splits what the family's files hold fused. What
// the folder has no such tensor of is left as it is. Quantised weights get one name each (HfFolder::
// use_quantization). Reads no values. Throws DataError naming file and tensor where a name would stand for two
// tensors, a fused one has other rows than its parts, or a linear is quantised against the word of config.json.
// Call it once.
void use_model_names(HfFolder& folder, const ModelConfig& model);

}  // namespace pesc
