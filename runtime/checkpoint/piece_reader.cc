#include "runtime/checkpoint/piece_reader.h"

#include <algorithm>
#include <string>

#include "runtime/checkpoint/finite.h"

namespace pesc {
namespace {

constexpr int64_t kReadBytes = int64_t{16} << 20;  // of host memory at a time

}  // namespace

PieceReader::PieceReader(FileSystem& files, const LoadedCheckpoint& checkpoint, Stream& stream, Values values)
    : files_(files), checkpoint_(checkpoint), stream_(stream), values_(values) {
  PESC_CHECK(checkpoint.manifest != nullptr, "a checkpoint that was not opened");
  for (const auto& tensor : checkpoint.manifest->tensors()) by_key_[{tensor.name(), tensor.kind()}] = &tensor;
}

void PieceReader::read(const ShardSpec& spec, proto::TensorKind::Value kind, const Tensor& into) {
  if (!into.present() || spec.size() == 0) return;
  PESC_CHECK(into.dtype == DType::kF32 && into.rows == spec.rows && into.cols == spec.cols, spec.name, ": [",
             into.rows, ", ", into.cols, "] for a piece of [", spec.rows, ", ", spec.cols, "]");
  PESC_CHECK(spec.row >= 0 && spec.col >= 0 && spec.row + spec.rows <= spec.global_rows &&
                 spec.col + spec.cols <= spec.global_cols,
             spec.name, ": a piece outside of its tensor");
  const auto found = by_key_.find({spec.name, kind});
  const std::string label =
      str_cat("checkpoint '", checkpoint_.directory, "': tensor '", spec.name, "' (", kind_name(kind), ")");
  if (found == by_key_.end())
    throw DataError(str_cat(label, " is not in it; it may be of another experiment"));
  const proto::ManifestTensor& tensor = *found->second;
  if (tensor.rows() != spec.global_rows || tensor.cols() != spec.global_cols)
    throw DataError(str_cat(label, " has shape [", tensor.rows(), ", ", tensor.cols(), "] in it and [",
                            spec.global_rows, ", ", spec.global_cols, "] here"));
  for (const auto& piece : tensor.pieces()) read_piece(piece, spec, into, label);
}

void PieceReader::read_piece(const proto::ManifestPiece& piece, const ShardSpec& spec, const Tensor& into,
                             const std::string& label) {
  const int64_t row0 = std::max(piece.row(), spec.row);
  const int64_t row1 = std::min(piece.row() + piece.rows(), spec.row + spec.rows);
  const int64_t col0 = std::max(piece.col(), spec.col);
  const int64_t col1 = std::min(piece.col() + piece.cols(), spec.col + spec.cols);
  if (row0 >= row1 || col0 >= col1) return;
  const ReadableFile& file = open(piece.file());
  const int64_t width = (col1 - col0) * 4;
  const int64_t at_once = std::max<int64_t>(1, kReadBytes / width);
  const Tensor columns = into.col_range(col0 - spec.col, col1 - spec.col);
  for (int64_t begin = row0; begin < row1; begin += at_once) {
    const int64_t end = std::min(begin + at_once, row1);
    buffer_.resize(static_cast<size_t>((end - begin) * width));
    const int64_t offset = piece.offset() + ((begin - piece.row()) * piece.cols() + col0 - piece.col()) * 4;
    if (col1 - col0 == piece.cols()) {
      file.read(offset, buffer_);
    } else {
      for (int64_t r = 0; r < end - begin; ++r)
        file.read(offset + r * piece.cols() * 4,
                  std::span(buffer_).subspan(static_cast<size_t>(r * width), static_cast<size_t>(width)));
    }
    if (const int64_t bad = values_ == Values::kFinite ? first_not_finite(buffer_) : -1; bad >= 0)
      throw DataError(str_cat(label, " holds ", float_at(buffer_, bad), " at row ",
                              begin + bad / (col1 - col0), ", column ", col0 + bad % (col1 - col0),
                              ": nothing can be done with such a state; move '", checkpoint_.directory,
                              "' away, and the checkpoint before it is taken"));
    copy_from_host(stream_, buffer_.data(), columns.row_range(begin - spec.row, end - spec.row));
  }
}

const ReadableFile& PieceReader::open(int index) {
  auto& file = open_[index];
  if (!file) file = files_.open(join_path(checkpoint_.directory, checkpoint_.manifest->files(index).name()));
  return *file;
}

}  // namespace pesc
