// Recorded routing (a test mode): the choice of experts of a run, kept so that another layout can replay it
// and be compared over any number of steps; rounding would flip choices otherwise.
//
// A record carries the run and the launch that made it (runtime/routing_record.h). A run that goes on adds to
// its own record; a step that several of its launches have computed is in all of them, and a replay takes it
// from the last that has all of it.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "model/routing_tape.h"
#include "runtime/routing_record.h"

namespace pesc {

class RoutingRecorder : public RoutingTape {
 public:
  // Of a folder that check_routing_folder() has found to be the run's. Throws UsageError where there is a
  // record of this launch and rank already, IoError.
  RoutingRecorder(const std::string& directory, const RoutingOwner& owner);
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
  void put(const RoutingRecord& head) { records_.append(reinterpret_cast<const char*>(&head), sizeof(head)); }

  std::string path_;
  std::ofstream file_;
  std::string records_;  // since begin_step
  int64_t top_k_;
  uint32_t step_ = 0;
};

class RoutingReplay : public RoutingTape {
 public:
  // Reads every routing-*.bin of the directory. Throws DataError, naming the files, for a damaged one,
  // another k, and files of several runs, or of one launch with different numbers of ranks.
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
  using Runs = std::map<Key, std::vector<Run>>;
  // The steps of a file that were finished, by step.
  [[nodiscard]] std::map<uint32_t, Runs> read_steps(const RoutingFile& file) const;
  // The k experts of a token in this step; null: not recorded.
  [[nodiscard]] const uint8_t* find(int64_t layer, int64_t sample, int32_t position) const;

  Runs runs_;
  int64_t top_k_;
  uint32_t step_ = 0;
};

}  // namespace pesc
