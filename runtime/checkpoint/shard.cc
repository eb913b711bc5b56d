#include "runtime/checkpoint/shard.h"

#include <xxhash.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/checkpoint/finite.h"

namespace pesc {
namespace {

constexpr size_t kCheckedAtOnce = size_t{1} << 20;  // stays in the cache until it is hashed

// Hashes each 4 MiB block of a file while it is written.
class ChecksummingWriter {
 public:
  explicit ChecksummingWriter(std::unique_ptr<WritableFile> file)
      : file_(std::move(file)), state_(XXH3_createState()) {
    PESC_CHECK(state_ != nullptr, "no memory for a hash state");
    XXH3_64bits_reset(state_.get());
  }

  void append(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto room = static_cast<size_t>(kChecksumBlockBytes - in_block_);
      const auto part = bytes.first(std::min(room, bytes.size()));
      XXH3_64bits_update(state_.get(), part.data(), part.size());
      file_->append(part);
      in_block_ += static_cast<int64_t>(part.size());
      size_ += static_cast<int64_t>(part.size());
      if (in_block_ == kChecksumBlockBytes) end_block();
      bytes = bytes.subspan(part.size());
    }
  }
  void finish(proto::ManifestFile& entry) {
    if (in_block_ > 0) end_block();
    file_->sync();
    file_->close();
    entry.set_size(size_);
    entry.mutable_block_checksums()->Add(checksums_.begin(), checksums_.end());
  }

 private:
  struct FreeState {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  void end_block() {
    checksums_.push_back(XXH3_64bits_digest(state_.get()));
    XXH3_64bits_reset(state_.get());
    in_block_ = 0;
  }

  std::unique_ptr<WritableFile> file_;
  std::unique_ptr<XXH3_state_t, FreeState> state_;
  int64_t in_block_ = 0;
  int64_t size_ = 0;
  std::vector<uint64_t> checksums_;
};

void check_tensor(const ShardSpec& spec, const Tensor& t) {
  PESC_CHECK(t.dtype == DType::kF32 && t.rows == spec.rows && t.cols == spec.cols, spec.name, ": ",
             dtype_name(t.dtype), " [", t.rows, ", ", t.cols, "] for a piece of [", spec.rows, ", ",
             spec.cols, "]");
}

}  // namespace

Range rows_to_write(const ShardSpec& spec) {
  PESC_CHECK(spec.replicas > 0 && spec.replica >= 0 && spec.replica < spec.replicas, spec.name, ": replica ",
             spec.replica, " of ", spec.replicas);
  if (spec.size() == 0) return {};
  const int64_t most = std::min<int64_t>(spec.replicas, spec.rows);
  const auto parts = static_cast<int>(std::clamp<int64_t>(spec.size() * 4 / kShardPartBytes, 1, most));
  const std::string key = str_cat(spec.name, '@', spec.row, ',', spec.col);
  const auto first =
      static_cast<int>(XXH3_64bits(key.data(), key.size()) % static_cast<uint64_t>(spec.replicas));
  const int part = (spec.replica - first + spec.replicas) % spec.replicas;
  if (part >= parts) return {};
  return split_range(spec.rows, parts, part);
}

int64_t snapshot_bytes(std::span<const TrainableTensor> tensors) {
  int64_t bytes = 0;
  for (const TrainableTensor& t : tensors) {
    const int64_t rows = rows_to_write(t.spec).size();
    for (const Tensor* tensor : {&t.master, &t.exp_avg, &t.exp_avg_sq}) {
      if (tensor->present()) bytes += rows * tensor->cols * dtype_bytes(tensor->dtype);
    }
  }
  return bytes;
}

HostBuffer::~HostBuffer() {
  release();
}

void HostBuffer::release() noexcept {
  if (data_ != nullptr) host_release(device_, data_);
  data_ = nullptr;
  capacity_ = 0;
}

std::span<std::byte> HostBuffer::reserve(const Device& device, int64_t bytes) {
  if (bytes > capacity_) {
    release();
    device_ = device;
    data_ = static_cast<std::byte*>(host_allocate(device, "the copy of a checkpoint", bytes));
    capacity_ = bytes;
  }
  return {data_, static_cast<size_t>(bytes)};
}

ShardSnapshot::ShardSnapshot(const Device& device, std::span<const TrainableTensor> tensors,
                             HostBuffer& buffer) {
  int64_t total = 0;
  for (const TrainableTensor& t : tensors) {
    const std::pair<proto::TensorKind::Value, const Tensor*> kinds[] = {
        {proto::TensorKind::PARAM, &t.master},
        {proto::TensorKind::EXP_AVG, &t.exp_avg},
        {proto::TensorKind::EXP_AVG_SQ, &t.exp_avg_sq}};
    const Range rows = rows_to_write(t.spec);
    for (const auto& [kind, tensor] : kinds) {
      if (rows.size() == 0 || !tensor->present()) continue;
      check_tensor(t.spec, *tensor);
      const Tensor source = tensor->row_range(rows.begin, rows.end);
      total += source.bytes();
      pieces_.push_back({t.spec.name,
                         kind,
                         t.spec.global_rows,
                         t.spec.global_cols,
                         t.spec.row + rows.begin,
                         rows.size(),
                         t.spec.col,
                         t.spec.cols,
                         source,
                         {}});
    }
  }
  std::span<std::byte> rest = buffer.reserve(device, total);
  for (Piece& p : pieces_) {
    p.bytes = rest.first(static_cast<size_t>(p.source.bytes()));
    rest = rest.subspan(p.bytes.size());
  }
}

void ShardSnapshot::copy(HostCopies& copies) {
  for (const Piece& p : pieces_) copies.copy(p.source, p.bytes.data());
  copies.end();
}

std::string ShardSnapshot::header() const {
  nlohmann::json json = nlohmann::json::object();
  auto& metadata = json["__metadata__"];
  metadata["format"] = "pesc checkpoint shard";
  int64_t offset = 0;
  for (const Piece& p : pieces_) {
    const std::string key = str_cat(kind_name(p.kind), ':', p.name, '@', p.row, ',', p.col);
    const auto bytes = static_cast<int64_t>(p.bytes.size());
    PESC_CHECK(!json.contains(key), "two pieces ", key);
    json[key] = {{"dtype", "F32"}, {"shape", {p.rows, p.cols}}, {"data_offsets", {offset, offset + bytes}}};
    metadata[key] = str_cat('[', p.global_rows, ", ", p.global_cols, "]@", p.row, ',', p.col);
    offset += bytes;
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data start aligned
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(uint64_t{text.size()} >> (8 * i)));
  return bytes + text;
}

proto::Manifest ShardSnapshot::write(FileSystem& files, const std::string& directory,
                                     const std::string& file_name) const {
  proto::Manifest part;
  if (pieces_.empty()) return part;
  const std::string head = header();
  ChecksummingWriter writer(files.create_file(join_path(directory, file_name)));
  writer.append(std::as_bytes(std::span(head)));
  auto offset = static_cast<int64_t>(head.size());
  for (const Piece& p : pieces_) {
    for (size_t at = 0; at < p.bytes.size(); at += kCheckedAtOnce) {
      const auto part = p.bytes.subspan(at, std::min(kCheckedAtOnce, p.bytes.size() - at));
      if (const int64_t bad = first_not_finite(part); bad >= 0) {
        const int64_t element = static_cast<int64_t>(at / sizeof(float)) + bad;
        throw InternalError(str_cat("tensor '", p.name, "' (", kind_name(p.kind), ") holds ",
                                    float_at(part, bad), " at row ", p.row + element / p.cols, ", column ",
                                    p.col + element % p.cols,
                                    ", so this state is not saved. Lower train.learning_rate, or set "
                                    "train.max_grad_norm"));
      }
      writer.append(part);
    }
    auto& tensor = *part.add_tensors();
    tensor.set_name(p.name);
    tensor.set_kind(p.kind);
    tensor.set_dtype("F32");
    tensor.set_rows(p.global_rows);
    tensor.set_cols(p.global_cols);
    auto& piece = *tensor.add_pieces();
    piece.set_row(p.row);
    piece.set_rows(p.rows);
    piece.set_col(p.col);
    piece.set_cols(p.cols);
    piece.set_offset(offset);
    piece.set_bytes(static_cast<int64_t>(p.bytes.size()));
    offset += static_cast<int64_t>(p.bytes.size());
  }
  auto& file = *part.add_files();
  file.set_name(file_name);
  writer.finish(file);
  return part;
}

}  // namespace pesc
