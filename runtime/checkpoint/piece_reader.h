// Reading rectangles of a checkpoint's tensors, whatever layout saved them.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/manifest.h"

namespace pesc {

// The wanted rectangle is intersected with each saved one, and only the bytes of the intersection are read, a
// whole run of rows at once where it spans the saved piece's columns, else row by row.
class PieceReader {
 public:
  enum class Values { kAny, kFinite };  // kFinite: read() throws DataError for an element that is not
  // All three outlive the reader.
  PieceReader(FileSystem& files, const LoadedCheckpoint& checkpoint, Stream& stream, Values values);

  // The rectangle `spec` of a tensor into `into`, F32 [spec.rows, spec.cols], rows may be strided; nothing
  // when `into` is absent. Throws DataError when the tensor is not there or has another global shape,
  // IoError.
  void read(const ShardSpec& spec, proto::TensorKind::Value kind, const Tensor& into);

 private:
  void read_piece(const proto::ManifestPiece& piece, const ShardSpec& spec, const Tensor& into,
                  const std::string& label);
  const ReadableFile& open(int index);

  FileSystem& files_;
  const LoadedCheckpoint& checkpoint_;
  Stream& stream_;
  Values values_;
  std::map<std::pair<std::string_view, int>, const proto::ManifestTensor*> by_key_;
  std::map<int, std::unique_ptr<ReadableFile>> open_;
  std::vector<std::byte> buffer_;
};

}  // namespace pesc
