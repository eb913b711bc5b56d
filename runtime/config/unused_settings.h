// Settings that are valid but have no effect, or less than they say, because of another setting or because of
// how the run was started.
#pragma once

#include <vector>

#include "configs/schema/experiment.pb.h"
#include "runtime/config/experiment.h"
#include "runtime/config/field_places.h"

namespace pesc {

// The settings without effect whose value differs from the default. They are warnings, not errors, because
// one file may serve several modes (`--set train.mode=LORA`). The caller prints them.
[[nodiscard]] std::vector<UnusedSetting> unused_settings(const proto::Experiment& experiment,
                                                         const FieldPlaces& places);

}  // namespace pesc
