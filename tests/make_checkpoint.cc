// make_checkpoint --config E [--set FIELD=VALUE]...
//
// Saves step 1 of an experiment that was never trained, for tests of models that are too large to be: everything is as `pesc
// train` leaves it, but the trained tensors have values that are a function of their place. Takes memory for what is trained
// alone, and no optimizer state is saved.
#include <cmath>
#include <cstdio>
#include <deque>
#include <string>
#include <vector>

#include "model/parameters.h"
#include "ops/core/arena.h"
#include "parallel/mpi_session.h"
#include "runtime/base_digest.h"
#include "runtime/checkpoint/store.h"
#include "runtime/config/experiment.h"
#include "runtime/job.h"
#include "runtime/same_run.h"

namespace pesc {
namespace {

int run(int argc, char** argv) {
  const MpiSession session;
  const auto world = session.world();
  try {
    std::string path;
    std::vector<std::string> overrides;
    for (int i = 1; i + 1 < argc; i += 2) {
      const std::string name = argv[i];
      if (name == "--config") {
        path = argv[i + 1];
      } else if (name == "--set") {
        overrides.emplace_back(argv[i + 1]);
      } else {
        throw UsageError("no flag " + name);
      }
    }
    ExperimentConfig config = load_experiment(path, overrides);
    const HostPlacement place =
        place_rank_on_host(session.cores(), session.local_rank(), session.local_size(), 1);
    Job job = open_job(*world, place, std::move(config), DataUse::kNone);
    Arena weights = Arena::planning("weights"), compute = Arena::planning("compute weights");
    const ModelParameters parameters(job.model, job.config.pesc, job.mesh(), DType::kF32,
                                     {weights, compute, nullptr});
    std::deque<std::vector<float>> memory;
    std::vector<TrainableTensor> tensors;
    for (const Parameter& p : parameters.all()) {
      if (!p.trainable) continue;
      auto& values = memory.emplace_back(static_cast<size_t>(p.spec.size()));
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(0.1 * std::sin(1.3 * static_cast<double>(i)));
      tensors.push_back({p.spec, tensor_of(values.data(), p.spec.rows, p.spec.cols), {}, {}});
    }
    CheckpointState state;
    state.step = 1;
    state.consumed_samples = job.config.train.global_batch_size;
    state.seed = job.config.train.seed;
    state.config_text = job.config.text;
    state.base_path = job.config.model.path;
    state.base_digest = base_digest(job).value;
    state.versions = run_versions(job);
    state.extra[kTemplateDigest] = job.encoder->digest();
    posix_filesystem().create_directory(job.config.run_dir);
    Stream stream(job.device);
    CheckpointStore store(posix_filesystem(), job.config.run_dir, {});
    const SaveReport saved = store.save(*world, stream, state, tensors, 1);
    std::printf("%s\n", saved.directory.c_str());
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "make_checkpoint: %s\n", e.what());
    return 1;
  }
}

}  // namespace
}  // namespace pesc

int main(int argc, char** argv) {
  return pesc::run(argc, argv);
}
