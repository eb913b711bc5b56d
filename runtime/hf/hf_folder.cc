#include "runtime/hf/hf_folder.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "ops/core/check.h"
#include "runtime/hf/dtype_convert.h"
#include "runtime/hf/json_file.h"

namespace pesc {
namespace {

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = 64 << 20;
constexpr uint64_t kDigestBlock = 1 << 20;

class Digest {
 public:
  Digest() : state_(XXH3_createState(), XXH3_freeState) {
    PESC_CHECK(state_ != nullptr && XXH3_128bits_reset(state_.get()) == XXH_OK);
  }
  void add(const void* data, size_t bytes) {
    PESC_CHECK(XXH3_128bits_update(state_.get(), data, bytes) == XXH_OK);
  }
  // Lengths go in before what they measure, so that no two lists of files look alike.
  void add_number(uint64_t value) {
    std::array<unsigned char, 8> bytes = {};
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(value >> (8 * i));
    add(bytes.data(), bytes.size());
  }
  void add_file(const std::string& name, const MappedFile& file) {
    add_number(name.size());
    add(name.data(), name.size());
    add_number(file.size());
    std::vector<std::byte> block(std::min(file.size(), kDigestBlock));
    for (uint64_t at = 0; at < file.size(); at += kDigestBlock) {
      const std::span<std::byte> part(block.data(), std::min(file.size() - at, kDigestBlock));
      file.read_at(at, part);
      add(part.data(), part.size());
    }
  }
  [[nodiscard]] std::string hex() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
    std::string out;
    for (const unsigned char byte : canonical.digest) {
      out += "0123456789abcdef"[byte >> 4];
      out += "0123456789abcdef"[byte & 15];
    }
    return out;
  }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

}  // namespace

HfFolder::HfFolder(const std::string& folder) : folder_(folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw DataError(str_cat(folder,
                            ": is not a folder; give the folder of a Hugging Face model (config.json and "
                            "safetensors files)"));
  }
  if (folder_has(folder, kSingle)) {
    add_file(kSingle, folder);
    const SafetensorsFile& file = files_.at(kSingle);
    for (const SafetensorsEntry& entry : file.header().tensors)
      places_.emplace(entry.name, Place{&file, &entry});
  } else if (folder_has(folder, kIndex)) {
    open_index();
  } else {
    const bool torch =
        folder_has(folder, "pytorch_model.bin") || folder_has(folder, "pytorch_model.bin.index.json");
    throw DataError(
        str_cat(folder, ": has neither ", kSingle, " nor ", kIndex,
                torch ? "; it holds pytorch_model.bin, which must be converted to safetensors first" : ""));
  }
}

void HfFolder::open_index() {
  const nlohmann::json index = read_json_file(folder_, kIndex, kMaxIndexBytes);
  const std::string where = (std::filesystem::path(folder_) / kIndex).string();
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object() || map->empty()) {
    throw DataError(str_cat(where, ": needs a \"weight_map\" object of tensor and file names"));
  }
  for (const auto& [tensor, file_name] : map->items()) {
    if (!file_name.is_string()) {
      throw DataError(
          str_cat(where, ": weight_map: the file of tensor ", printable(tensor), " is not a string"));
    }
    const auto& name = file_name.get_ref<const std::string&>();
    if (!files_.contains(name)) add_file(name, str_cat(where, ": tensor ", printable(tensor)));
    const SafetensorsFile& file = files_.at(name);
    const SafetensorsEntry* entry = file.header().find(tensor);
    if (entry == nullptr) {
      throw DataError(str_cat(file.path(), ": there is no tensor ", printable(tensor), ", which ", where,
                              " places there"));
    }
    places_.emplace(tensor, Place{&file, entry});
  }
}

void HfFolder::add_file(const std::string& name, const std::string& named_by) {
  files_.emplace(name, SafetensorsFile(path_in_folder(folder_, name, named_by)));
}

const HfFolder::Place* HfFolder::locate(const std::string& name) const {
  const auto it = places_.find(name);
  return it == places_.end() ? nullptr : &it->second;
}

void HfFolder::read(const std::string& name, int64_t global_rows, int64_t global_cols, int64_t row,
                    int64_t rows, int64_t col, int64_t cols, float* to) {
  PESC_CHECK(0 <= row && 0 <= rows && row + rows <= global_rows && 0 <= col && 0 <= cols &&
                 col + cols <= global_cols,
             "slice of ", name, ": rows ", row, "+", rows, " of ", global_rows, ", columns ", col, "+", cols,
             " of ", global_cols);
  const std::array<int64_t, 2> want = {global_rows, global_cols};
  const Place* place = locate(name);
  if (place == nullptr) {
    throw DataError(str_cat(folder_, ": there is no tensor ", printable(name),
                            " (the model needs one of shape ", shape_text(want), ")"));
  }
  const auto& [file, entry] = *place;
  const std::vector<int64_t>& shape = entry->shape;
  const bool matches = (shape.size() == 1 && global_rows == 1 && shape[0] == global_cols) ||
                       (shape.size() == 2 && shape[0] == global_rows && shape[1] == global_cols);
  if (!matches) {
    throw DataError(str_cat(file->path(), ": tensor ", printable(name), " has shape ", shape_text(shape),
                            ", but config.json asks for ", shape_text(want)));
  }
  if (!converts_to_f32(entry->dtype)) {
    throw DataError(str_cat(file->path(), ": tensor ", printable(name), " is ", dtype_name(entry->dtype),
                            "; weights must be F32, BF16 or F16"));
  }
  const std::span<const std::byte> bytes = file->bytes(*entry);
  const auto element = static_cast<size_t>(dtype_bytes(entry->dtype));
  if (cols == global_cols) {
    convert_to_f32(entry->dtype, bytes.subspan(row * cols * element, rows * cols * element), to);
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      convert_to_f32(entry->dtype, bytes.subspan(((row + i) * global_cols + col) * element, cols * element),
                     to + i * cols);
    }
  }
  bytes_read_ += rows * cols * static_cast<int64_t>(element);
}

std::vector<std::string> HfFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

std::string HfFolder::part_digest(size_t part) const {
  Digest digest;
  if (part == 0) {
    digest.add_file("config.json", MappedFile(path_in_folder(folder_, "config.json", folder_)));
  } else {
    const auto& [name, file] = *std::next(files_.begin(), static_cast<std::ptrdiff_t>(part - 1));
    digest.add_file(name, file.file());
  }
  return digest.hex();
}

std::string HfFolder::content_digest(const std::vector<std::string>& parts) {
  Digest digest;
  for (const std::string& part : parts) digest.add(part.data(), part.size());
  return digest.hex();
}

}  // namespace pesc
