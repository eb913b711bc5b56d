// Recorded routing (a test mode): the expert choices of a run, so that another layout can replay them and be
// compared over any number of steps. Without a replay, rounding would change some choices.
//
// One file per launch and rank, `routing-LAUNCH-RANK.bin`: records { step u32, layer u32, sample i64,
// position i32, tokens i32, k i32, 0 i32 } followed by tokens * k bytes of expert numbers, for consecutive
// positions of one sample. A step that a later launch repeated is in both files, with the same choices.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "model/pesc_moe.h"

namespace pesc {

class RoutingRecorder : public RoutingTape {
 public:
  RoutingRecorder(const std::string& directory, uint64_t launch, int rank, int64_t top_k);
  // Starts the records of a step. Drops records since the last begin_step without end_step, so that a
  // recomputed step is recorded once.
  void begin_step(int64_t step);
  // Keeps the records since begin_step.
  void end_step();
  bool replay(const Batch&, int64_t, std::vector<int32_t>&) override { return false; }
  void record(const Batch& batch, int64_t layer, const std::vector<int32_t>& experts) override;
  // Flushes the file. Throws IoError.
  void flush();

 private:
  std::string path_;
  std::ofstream file_;
  std::string records_;  // since begin_step
  int64_t top_k_;
  uint32_t step_ = 0;
};

class RoutingReplay : public RoutingTape {
 public:
  // Reads every routing-*.bin of the directory. Throws DataError for a damaged one or another k.
  RoutingReplay(const std::string& directory, int64_t top_k);
  void set_step(int64_t step) { step_ = static_cast<uint32_t>(step); }
  // Throws DataError when a token of this rank's batches was not recorded in the step, or with an expert that
  // the model does not have. Call it before a step, where all ranks can agree on the error; inside a forward
  // the other ranks would wait in a collective.
  void check(const HostBatch& batch, int64_t layers, int64_t experts) const;
  // REQUIRES: the batch passed check().
  bool replay(const Batch& batch, int64_t layer, std::vector<int32_t>& experts) override;
  void record(const Batch&, int64_t, const std::vector<int32_t>&) override {}

 private:
  using Key = std::tuple<uint32_t, uint32_t, int64_t>;  // step, layer, sample
  struct Run {
    int32_t position = 0;
    std::vector<uint8_t> experts;
  };
  // The k experts of a token in this step; null: not recorded.
  [[nodiscard]] const uint8_t* find(int64_t layer, int64_t sample, int32_t position) const;

  std::map<Key, std::vector<Run>> runs_;
  int64_t top_k_;
  uint32_t step_ = 0;
};

}  // namespace pesc
