// Loading on any layout, and the check of the base.
#include "runtime/checkpoint/piece_reader.h"
#include "runtime/checkpoint/store.h"

namespace pesc {

void load_checkpoint(FileSystem& files, const LoadedCheckpoint& checkpoint, Stream& stream,
                     std::span<const TrainableTensor> tensors) {
  PieceReader reader(files, checkpoint, stream, PieceReader::Values::kFinite);
  for (const TrainableTensor& t : tensors) {
    reader.read(t.spec, proto::TensorKind::PARAM, t.master);
    reader.read(t.spec, proto::TensorKind::EXP_AVG, t.exp_avg);
    reader.read(t.spec, proto::TensorKind::EXP_AVG_SQ, t.exp_avg_sq);
  }
}

void CheckpointStore::load(const LoadedCheckpoint& checkpoint, Stream& stream,
                           std::span<const TrainableTensor> tensors) const {
  load_checkpoint(files_, checkpoint, stream, tensors);
}

std::string check_base(const CheckpointState& saved, const std::string& path, const std::string& digest) {
  if (saved.base_digest != digest)
    throw DataError(str_cat(
        "the checkpoint of step ", saved.step, " belongs to the base model '", saved.base_path,
        "' with digest ", saved.base_digest, ", but '", path, "' has digest ", digest,
        ": set model.path to the model that the run was started from, or start in another run directory"));
  if (saved.base_path == path) return {};
  return str_cat("the base model was '", saved.base_path, "' when the checkpoint was saved; '", path,
                 "' has the same content");
}

}  // namespace pesc
