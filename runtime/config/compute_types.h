// train.compute_dtype and train.frozen_dtype: what is computed in, what frozen weights are held in.
#pragma once

#include "configs/schema/experiment.pb.h"
#include "runtime/config/experiment.h"
#include "runtime/config/field_checker.h"

namespace pesc {

// REQUIRES: out.parallel.device and out.pesc.mode. A combination that cannot be computed is refused by field.
void read_compute_types(const proto::Experiment& e, const FieldChecker& check, ExperimentConfig& out);

}  // namespace pesc
