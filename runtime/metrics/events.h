// Records of a run as TensorBoard's events. What comes back are serialised proto::tensorboard::Event messages.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/metrics/evaluations_file.h"
#include "runtime/metrics/record_reader.h"

namespace pesc {

// The first event of every file.
[[nodiscard]] std::string file_version_event(double wall_time);
// Tells a reader to forget what it has read of `step` and later ones.
[[nodiscard]] std::string start_event(double wall_time, int64_t step);

// What a record of metrics.jsonl has to show; none for saves and launches. Scalars: `loss`, `aux_loss`,
// `grad_norm`, `learning_rate`, `speed/...`, `memory/...` and `eval/loss/TAG`. With `histograms`, the expert load
// as `experts/layer_N` and `experts/dataset/TAG`: bucket e counts the tokens of expert e, in percent.
enum class Histograms { kNo, kYes };
[[nodiscard]] std::vector<std::string> events_of_record(const MetricsRecord& record, Histograms histograms);

// What `pesc eval` has found at a step: `eval/...` scalars, and `answers/TAG` texts.
[[nodiscard]] std::vector<std::string> events_of_evaluation(const Evaluation& evaluation);

// One record of a TFRecord file: u64 length, its masked CRC-32C, the bytes, their masked CRC-32C.
[[nodiscard]] std::string tf_record(std::string_view bytes);

}  // namespace pesc
