// The weights of a Hugging Face model folder: model.safetensors, or model.safetensors.index.json and the
// shards it names. A folder that holds both is refused, unless the index names model.safetensors.
//
// Nothing is read but the slices that are asked for; a rank of a tensor-parallel group touches its own part
// of the files only. Nothing is written, and every file named by the index is checked before it is opened
// (see path_in_folder).
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/weight_source.h"
#include "runtime/hf/quantized_folder_tensor.h"
#include "runtime/hf/safetensors.h"

namespace pesc {

// "'a', 'b' and 7 more": the first of `names`, tamed as by `in_quotes`.
[[nodiscard]] std::string some_of(std::span<const std::string> names);

class HfFolder : public WeightSource {
 public:
  // Maps the files and checks their headers, and that each tensor of the index is in the file it names.
  // Throws DataError naming the file and the tensor, IoError when a file cannot be read.
  explicit HfFolder(const std::string& folder, Links links = Links::kInside);

  [[nodiscard]] const std::string& folder() const { return folder_; }
  // "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors": the files that are read.
  [[nodiscard]] std::string files_text() const;
  // Sentences about what in the folder does not agree or is not read.
  [[nodiscard]] const std::vector<std::string>& warnings() const { return warnings_; }
  // The bytes that the slices read so far occupy in the files.
  [[nodiscard]] int64_t bytes_read() const override { return bytes_read_.load(); }
  [[nodiscard]] bool has(const std::string& name) const override { return locate(name) != nullptr; }
  // See WeightSource. Takes F32, BF16 and F16 tensors, [rows, cols] or [n] (which is [1, n]), and refuses
  // values that are not finite. May be called from several threads.
  void read(const ShardSpec& piece, float* to) override;

  // From now on weights of linears that stand in the folder as codes and scales of this format are read as
  // QuantizedFolderTensors, under the name of the weight alone. Throws DataError where one is not whole.
  void use_quantization(FrozenFormat format);
  [[nodiscard]] std::optional<FrozenFormat> quantized(const std::string& name) const override;
  void read_codes(const ShardSpec& piece, const FrozenLinear& to) override;

  // The names of all tensors, sorted.
  [[nodiscard]] std::vector<std::string> names() const;
  // The tensors that stand in the shards and not in the index, which therefore are not read, and their files.
  [[nodiscard]] const std::map<std::string, std::string>& unlisted() const { return unlisted_; }
  // What the file says of tensor `name`, or of the one that it is a part of; null when there is none.
  [[nodiscard]] const SafetensorsEntry* entry(const std::string& name) const;
  // From now on `name`, which is not there, is read from tensor `source`.
  void read_from(const std::string& name, const std::string& source);
  // From now on `name`, which is there, is read as `to`, which is not.
  void rename(const std::string& name, const std::string& to);
  // From now on `name`, which is there, is read as these tensors, which are not: its rows in this order. Throws
  // DataError naming file, tensor and both shapes where it is no matrix of their rows together.
  struct Part {
    std::string name;
    int64_t rows;
  };
  void split(const std::string& name, const std::vector<Part>& parts);
  // Whether two tensors, of which neither is a part of one, have the same shape and hold the same values. Reads both.
  [[nodiscard]] bool same_values(const std::string& a, const std::string& b) const;
  // Identifies the base: XXH3-128 in hexadecimal of config.json's and every weights file's digest, in order
  // of name. A weights file's digest is the XXH3-128 of its name, size and bytes; that reads all of it, a few
  // GB/s at best, so ranks share the files. Part 0 is config.json, of which the canonical text is taken
  // (canonical_json): only a changed value changes its digest.
  static constexpr size_t kDigestLength = 32;  // characters
  [[nodiscard]] size_t digest_parts() const { return files_.size() + 1; }
  [[nodiscard]] std::string part_digest(size_t part) const;
  // Part 0 as an older pesc took it, of the bytes of config.json.
  [[nodiscard]] std::string raw_config_digest() const;
  [[nodiscard]] static std::string content_digest(const std::vector<std::string>& parts);

 private:
  struct Place {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
    int64_t row = 0, rows = -1;  // of the entry; -1: all of it
    std::shared_ptr<const QuantizedFolderTensor> quantized;
    // Of the whole tensor, not of the part.
    [[nodiscard]] std::vector<int64_t> shape() const {
      return quantized ? std::vector<int64_t>{quantized->rows(), quantized->cols()} : entry->shape;
    }
  };
  // The place of a tensor that has this shape, or is the part that has it.
  [[nodiscard]] const Place& place_of(const ShardSpec& piece) const;
  using WeightMap = std::map<std::string, std::vector<std::string>>;  // tensors by file
  [[nodiscard]] WeightMap read_index();
  void open_single();
  void open_index(const WeightMap& map);
  void check_total_size();
  void find_unread_files();
  void add_file(const std::string& name, const std::string& named_by);
  [[nodiscard]] const Place* locate(const std::string& name) const;

  std::string folder_;
  Links links_;
  int64_t total_size_ = -1;  // as the index has it; -1: it does not
  std::vector<std::string> warnings_;
  std::map<std::string, std::string> unlisted_;
  std::map<std::string, SafetensorsFile> files_;  // by file name
  std::map<std::string, Place> places_;           // by tensor name
  std::atomic<int64_t> bytes_read_{0};
};

}  // namespace pesc
