// Recorded routing (a test mode): the expert choices of a run, so that another layout can replay them and be
// compared over any number of steps. Without a replay, rounding would change some choices.
//
// A record names the run and the launch that made it (runtime/routing_record.h). A resumed run adds to its
// own record. A step that several launches computed is in the files of all of them; a replay takes it from
// the last one that has all of it.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "model/router_replay.h"
#include "runtime/routing_record.h"

namespace pesc {

class RouterReplayRecorder : public RouterReplay {
 public:
  // REQUIRES: check_routing_folder() has accepted the folder for this run. Throws UsageError when a record of
  // this launch and rank exists already; IoError.
  RouterReplayRecorder(const std::string& directory, const RoutingOwner& owner);
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
  void put(const RoutingRecord& head) { records_.append(reinterpret_cast<const char*>(&head), sizeof(head)); }

  std::string path_;
  std::ofstream file_;
  std::string records_;  // since begin_step
  int64_t top_k_;
  uint32_t step_ = 0;
};

class RouterReplayReader : public RouterReplay {
 public:
  // Reads every routing-*.bin of the directory. Throws DataError, naming the files, for a damaged one,
  // another k, and files of several runs, or of one launch with different numbers of ranks.
  RouterReplayReader(const std::string& directory, int64_t top_k);
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
