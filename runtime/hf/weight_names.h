// Comparison of the tensors in a model folder with those that the model asks for, by name: what is missing,
// what is left over, and how the two embeddings relate.
#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "runtime/hf/hf_folder.h"

namespace pesc {

struct WeightReport {
  std::string summary;                // what is read, from which files, and whether the embeddings are tied
  std::vector<std::string> warnings;  // one sentence each
};

// `wanted` are the names of the model's dense parameters. Where the embeddings are tied and the folder holds
// the output embedding alone, `folder` reads the input embedding from it from now on. Throws DataError where
// a tensor is missing, or one is left over whose name lies in a module that the model computes. Reads no
// values.
[[nodiscard]] WeightReport compare_weights(HfFolder& folder, const ModelConfig& model,
                                           const std::vector<std::string>& wanted);

// Where the embeddings are tied and the folder holds an output embedding all the same: throws DataError
// unless it is the input embedding again. Reads both.
void check_tied_head(const HfFolder& folder, const ModelConfig& model);

}  // namespace pesc
