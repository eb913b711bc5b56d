// The TensorBoard files of a run: RUN/tensorboard/train, written by rank 0 while it trains, and
// RUN/tensorboard/eval, written by `pesc eval`.
//
// Each folder has one event file. It is written anew from metrics.jsonl (evaluations.jsonl) when a launch begins
// (an evaluation ends), and put in the place of the one before, so that no step stands there twice, whatever a
// launch computes again, and a torn record of a launch that was killed is gone. The first events of a file are
// its version and a SessionLog START at step 0, by which a TensorBoard that is running forgets the file before.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/metrics/events.h"

namespace pesc {

inline constexpr const char* kTensorboardFolder = "tensorboard";

class TrainEvents {
 public:
  // Writes RUN/tensorboard/train anew: what RUN/metrics.jsonl tells of steps up to `step`. Expert load is shown
  // every `histogram_steps` steps. Throws IoError or DataError; the file before then still stands.
  TrainEvents(const std::string& run_dir, int64_t step, int64_t histogram_steps);
  ~TrainEvents();
  TrainEvents(const TrainEvents&) = delete;
  TrainEvents& operator=(const TrainEvents&) = delete;

  // Appends what a further line of metrics.jsonl tells. Never throws: where the disk is full, the log says so
  // once, the line is left out, and the next launch, which writes all anew, makes up for it.
  void add(const std::string& line) noexcept;

 private:
  [[nodiscard]] Histograms histograms_at(int64_t step) const;
  void append(const std::string& records);

  int64_t histogram_steps_;
  std::string path_;
  int file_ = -1;
  bool told_ = false;
  simdjson::dom::parser parser_;
};

// Writes RUN/tensorboard/eval anew from RUN/evaluations.jsonl. Throws IoError or DataError.
void write_evaluation_events(const std::string& run_dir);

}  // namespace pesc
