// Settings that are right by themselves and still change nothing, or less than they say, because of what
// another one says or because of how the run was started.
#pragma once

#include <vector>

#include "configs/schema/experiment.pb.h"
#include "runtime/config/experiment.h"
#include "runtime/config/field_places.h"

namespace pesc {

// Of those that have another value than their default. One file may serve several modes (`--set
// train.mode=LORA`), so these are warnings; what is left is the caller's to say.
[[nodiscard]] std::vector<UnusedSetting> unused_settings(const proto::Experiment& experiment,
                                                         const FieldPlaces& places);

}  // namespace pesc
