// train.compute_dtype and train.frozen_dtype: what is computed in, what frozen weights are held in.
#pragma once

#include "configs/schema/experiment.pb.h"
#include "runtime/config/experiment.h"
#include "runtime/config/field_checker.h"

namespace pesc {

// REQUIRES: out.parallel.device and out.pesc.mode. A combination that cannot be computed is refused by field.
void read_compute_types(const proto::Experiment& e, const FieldChecker& check, ExperimentConfig& out);

// Once the model is known: in a folder that is quantised, train.frozen_dtype AUTO is the folder's own format, and
// config.text says so from then on. F32 and BF16 dequantise the weights when they are read. Refused by field are another
// format, which would quantise anew; mode FULL on quantised weights; FP8 that is computed of blocks. Nothing else
// changes, and nothing at all for a model that is not quantised.
void use_folder_format(ExperimentConfig& config, const ModelConfig& model);

}  // namespace pesc
