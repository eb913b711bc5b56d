// Recorded routing (a test mode): the choice of experts of a run, kept so that another layout can replay it
// and be compared over any number of steps; rounding would flip choices otherwise.
//
// One file per launch and rank, `routing-LAUNCH-RANK.bin`: records { step u32, layer u32, sample i64,
// position i32, tokens i32, k i32, 0 i32 } followed by tokens * k bytes of expert numbers, for consecutive
// positions of one sample. A step that a later launch made again is in both, with the same choices.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "model/routing_tape.h"

namespace pesc {

class RoutingRecorder : public RoutingTape {
 public:
  RoutingRecorder(const std::string& directory, uint64_t launch, int rank, int64_t top_k);
  // The records that follow are of this step. Those of a try before, not kept yet, are forgotten: a step that
  // is computed once more is recorded once.
  void begin_step(int64_t step);
  // Keeps the records since begin_step.
  void end_step();
  bool replay(const Batch&, int64_t, std::vector<int32_t>&) override { return false; }
  void record(const Batch& batch, int64_t layer, const std::vector<int32_t>& experts) override;
  // Writes out what was kept; throws IoError when it cannot.
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
  // Throws DataError where a token of this rank's batches was not recorded in the step, or with an expert
  // that the model does not have. Asked before a step begins, when all ranks can still agree: in the middle
  // of a forward the others would wait for this one.
  void check(const HostBatch& batch, int64_t layers, int64_t experts) const;
  // Of a batch that was checked.
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
