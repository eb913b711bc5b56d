#include "runtime/hf/hf_folder.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "ops/core/check.h"
#include "runtime/hf/dtype_convert.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/tensor_slice.h"
#include "runtime/text/printable.h"

namespace pesc {

std::string some_of(std::span<const std::string> names) {
  constexpr size_t kShown = 5;
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i)
    out += (i == 0 ? "" : ", ") + in_quotes(names[i]);
  if (names.size() > kShown) out += " and " + std::to_string(names.size() - kShown) + " more";
  return out;
}

namespace {

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = 64 << 20;

// The weight files of a folder, whether anything names them or not, sorted; of PyTorch's own only an adapter,
// since a folder often holds its weights in both formats.
std::vector<std::string> weight_files(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (auto it = std::filesystem::directory_iterator(folder, error); !error && it != end(it);
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(".safetensors") || name == "adapter_model.bin") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

template <class Map>
std::vector<std::string> file_names(const Map& map) {
  std::vector<std::string> names;
  for (const auto& [name, value] : map) names.push_back(name);
  return names;
}

[[noreturn]] void refuse_two_sets(const std::string& folder, const std::vector<std::string>& shards) {
  const bool there = std::any_of(shards.begin(), shards.end(),
                                 [&](const std::string& name) { return folder_has(folder, name); });
  throw DataError(str_cat(
      folder, ": holds two sets of weights: ", kSingle, ", and ", kIndex, " which names ", some_of(shards),
      there ? ". Which is meant cannot be seen: delete " : ", none of which is there. Delete ", kIndex,
      there ? " and its files" : "", " to use ", kSingle, ", or delete ", kSingle,
      " to use the files that the index names", there ? "" : ", once they are there"));
}

[[noreturn]] void refuse_without_weights(const std::string& folder) {
  const std::string none = str_cat(folder, ": has neither ", kSingle, " nor ", kIndex);
  const std::vector<std::string> files = weight_files(folder);
  const auto adapter =
      std::ranges::find_if(files, [](const std::string& name) { return name.starts_with("adapter_model."); });
  if (adapter != files.end()) {
    throw DataError(
        str_cat(none, "; it holds ", *adapter,
                ", an adapter without its base: merge it into the base first (PEFT: merge_and_unload), "
                "or name the base"));
  }
  if (files.size() == 1 && files.front().find("-of-") == std::string::npos) {
    throw DataError(str_cat(none, "; it holds ", in_quotes(files.front()), ": rename it to ", kSingle,
                            " if it is the whole model"));
  }
  if (!files.empty()) {
    throw DataError(str_cat(none, "; it holds ", some_of(files),
                            ", but only the index says which tensors are "
                            "where and whether all shards are there: download ",
                            kIndex, " too"));
  }
  constexpr std::array<const char*, 6> kOthers = {".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"};
  std::error_code error;
  for (auto it = std::filesystem::directory_iterator(folder, error); !error && it != end(it);
       it.increment(error)) {
    const std::string kind = it->path().extension().string();
    if (std::ranges::find(kOthers, kind) == kOthers.end()) continue;
    throw DataError(str_cat(none, "; it holds ", in_quotes(it->path().filename().string()),
                            ", which must be converted to safetensors first"));
  }
  throw DataError(str_cat(none, "; give the folder of a Hugging Face model with safetensors files"));
}

}  // namespace

HfFolder::HfFolder(const std::string& folder, Links links) : folder_(folder), links_(links) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw DataError(str_cat(folder,
                            ": is not a folder; give the folder of a Hugging Face model (config.json and "
                            "safetensors files)"));
  }
  const bool single = folder_has(folder, kSingle);
  if (folder_has(folder, kIndex)) {
    const WeightMap map = read_index();
    if (single && !map.contains(kSingle)) refuse_two_sets(folder, file_names(map));
    if (single && map.size() == 1) {
      open_single();
    } else {
      open_index(map);
    }
  } else if (single) {
    open_single();
  } else {
    refuse_without_weights(folder);
  }
  find_unread_files();
}

void HfFolder::open_single() {
  add_file(kSingle, folder_);
  const SafetensorsFile& file = files_.at(kSingle);
  for (const SafetensorsEntry& entry : file.header().tensors)
    places_.emplace(entry.name, Place{&file, &entry, 0, -1, nullptr});
}

HfFolder::WeightMap HfFolder::read_index() {
  const nlohmann::json index = read_json_file(folder_, kIndex, kMaxIndexBytes, links_);
  const std::string where = (std::filesystem::path(folder_) / kIndex).string();
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object() || map->empty()) {
    throw DataError(str_cat(where, ": needs a \"weight_map\" object of tensor and file names"));
  }
  WeightMap tensors;
  for (const auto& [tensor, file_name] : map->items()) {
    if (!file_name.is_string()) {
      throw DataError(
          str_cat(where, ": weight_map: the file of tensor ", in_quotes(tensor), " is not a string"));
    }
    tensors[file_name.get<std::string>()].push_back(tensor);
  }
  const auto metadata = index.find("metadata");
  if (metadata != index.end() && metadata->is_object()) {
    const auto size = metadata->find("total_size");
    if (size != metadata->end() && size->is_number_unsigned()) total_size_ = size->get<int64_t>();
  }
  return tensors;
}

void HfFolder::open_index(const WeightMap& map) {
  const std::string where = (std::filesystem::path(folder_) / kIndex).string();
  for (const auto& [name, tensors] : map) {
    add_file(name, str_cat(where, ": tensor ", in_quotes(tensors.front())));
    const SafetensorsFile& file = files_.at(name);
    for (const std::string& tensor : tensors) {
      const SafetensorsEntry* entry = file.header().find(tensor);
      if (entry == nullptr) {
        throw DataError(str_cat(file.path(), ": there is no tensor ", in_quotes(tensor), ", which ", where,
                                " places there"));
      }
      places_.emplace(tensor, Place{&file, entry, 0, -1, nullptr});
    }
  }
  std::vector<std::string> twice;
  for (const auto& [name, file] : files_) {
    for (const SafetensorsEntry& entry : file.header().tensors) {
      const Place* place = locate(entry.name);
      if (place == nullptr) unlisted_.emplace(entry.name, name);
      if (place != nullptr && place->entry != &entry) {
        twice.push_back(str_cat(entry.name, " of ", name));
      }
    }
  }
  if (!twice.empty()) {
    warnings_.push_back(str_cat(where, ": ", twice.size(),
                                " tensors stand in several files, and are read from the file that the index "
                                "names; not read are: ",
                                some_of(twice)));
  }
  check_total_size();
}

void HfFolder::check_total_size() {
  int64_t bytes = 0;
  for (const auto& [name, place] : places_) bytes += static_cast<int64_t>(place.entry->bytes());
  if (total_size_ <= 0 || total_size_ == bytes) return;
  warnings_.push_back(str_cat((std::filesystem::path(folder_) / kIndex).string(), ": metadata.total_size is ",
                              total_size_, " bytes, but the tensors that the index lists have ", bytes,
                              "; the index may belong to other files"));
}

void HfFolder::find_unread_files() {
  std::vector<std::string> unread;
  for (const std::string& name : weight_files(folder_)) {
    // Mistral's own format holds the same weights again, by other names.
    if (!files_.contains(name) && !name.starts_with("consolidated")) unread.push_back(name);
  }
  if (unread.empty()) return;
  warnings_.push_back(str_cat(folder_, ": the weights are read from ", files_text(), "; not read ",
                              unread.size() == 1 ? "is " : "are ", some_of(unread),
                              "; delete what does not belong to the model"));
}

void HfFolder::add_file(const std::string& name, const std::string& named_by) {
  files_.emplace(name, SafetensorsFile(path_in_folder(folder_, name, named_by, links_)));
}

std::string HfFolder::files_text() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : files_) names.push_back(name);
  return some_of(names);
}

const HfFolder::Place* HfFolder::locate(const std::string& name) const {
  const auto it = places_.find(name);
  return it == places_.end() ? nullptr : &it->second;
}

const HfFolder::Place& HfFolder::place_of(const ShardSpec& piece) const {
  const auto& [name, global_rows, global_cols, row, rows, col, cols, replica, replicas] = piece;
  PESC_CHECK(0 <= row && 0 <= rows && row + rows <= global_rows && 0 <= col && 0 <= cols &&
                 col + cols <= global_cols,
             "slice of ", name, ": rows ", row, "+", rows, " of ", global_rows, ", columns ", col, "+", cols,
             " of ", global_cols);
  const std::array<int64_t, 2> want = {global_rows, global_cols};
  const Place* place = locate(name);
  if (place == nullptr) {
    throw DataError(str_cat(folder_, ": there is no tensor ", in_quotes(name),
                            " (the model needs one of shape ", shape_text(want), ")"));
  }
  std::vector<int64_t> shape = place->shape();
  if (place->rows >= 0) shape.front() = place->rows;
  const bool matches = (shape.size() == 1 && global_rows == 1 && shape[0] == global_cols) ||
                       (shape.size() == 2 && shape[0] == global_rows && shape[1] == global_cols);
  if (!matches) {
    throw DataError(str_cat(place->file->path(), ": tensor ", in_quotes(place->entry->name), " has shape ",
                            shape_text(shape), ", but config.json asks for ", shape_text(want)));
  }
  return *place;
}

void HfFolder::read(const ShardSpec& piece, float* to) {
  const Place& place = place_of(piece);
  const TensorSlice slice{place.row + piece.row, piece.rows, piece.col, piece.cols};
  bytes_read_ +=
      place.quantized
          ? place.quantized->read_values(slice, to)
          : read_tensor_slice(
                *place.file, *place.entry, slice,
                "download the base again, or take one that was saved before its training diverged", to);
}

std::optional<FrozenFormat> HfFolder::quantized(const std::string& name) const {
  const Place* place = locate(name);
  if (place == nullptr || !place->quantized) return std::nullopt;
  return place->quantized->format();
}

void HfFolder::read_codes(const ShardSpec& piece, const FrozenLinear& to) {
  const Place& place = place_of(piece);
  PESC_CHECK(place.quantized, piece.name, " is not quantised");
  bytes_read_ += place.quantized->read_codes({place.row + piece.row, piece.rows, piece.col, piece.cols}, to);
}

void HfFolder::use_quantization(FrozenFormat format) {
  const char* codes = is_nf4(format) ? "U8" : "F8_E4M3";
  const auto find = [&](const std::string& name) {
    const Place* place = locate(name);
    return place == nullptr ? StoredTensor{} : StoredTensor{place->file, place->entry};
  };
  std::vector<std::string> weights;
  for (const auto& [name, place] : places_) {
    const bool linear = name.starts_with("model.layers.") || name.starts_with("lm_head.");
    if (!linear || !name.ends_with(".weight")) continue;
    const std::vector<std::string> parts = QuantizedFolderTensor::companions(format, name);
    const auto there = [&](const std::string& part) {
      return !part.ends_with(".input_scale_ub") && places_.contains(part);
    };
    if (place.entry->type == codes || std::ranges::any_of(parts, there)) weights.push_back(name);
  }
  for (const std::string& name : weights) {
    places_.at(name).quantized = std::make_shared<const QuantizedFolderTensor>(format, name, find);
    for (const std::string& part : QuantizedFolderTensor::companions(format, name)) places_.erase(part);
  }
}

const SafetensorsEntry* HfFolder::entry(const std::string& name) const {
  const Place* place = locate(name);
  return place == nullptr ? nullptr : place->entry;
}

void HfFolder::read_from(const std::string& name, const std::string& source) {
  const Place* place = locate(source);
  PESC_CHECK(place != nullptr && places_.emplace(name, *place).second, name, " from ", source);
}

void HfFolder::rename(const std::string& name, const std::string& to) {
  read_from(to, name);
  places_.erase(name);
}

void HfFolder::split(const std::string& name, const std::vector<Part>& parts) {
  const Place* place = locate(name);
  PESC_CHECK(place != nullptr && place->rows < 0, name, " in parts");
  const Place whole = *place;
  int64_t rows = 0;
  std::string text;
  for (const Part& part : parts) {
    rows += part.rows;
    text += str_cat(text.empty() ? "" : ", ", part.rows, " of ", in_quotes(part.name));
  }
  const std::vector<int64_t> shape = whole.shape();
  if (shape.size() != 2 || shape.front() != rows) {
    throw DataError(str_cat(whole.file->path(), ": tensor ", in_quotes(name), " has shape ",
                            shape_text(shape), ", but config.json asks for ", rows, " rows: ", text));
  }
  places_.erase(name);
  int64_t row = 0;
  for (const Part& part : parts) {
    PESC_CHECK(
        places_.emplace(part.name, Place{whole.file, whole.entry, row, part.rows, whole.quantized}).second,
        part.name, " of ", name);
    row += part.rows;
  }
}

bool HfFolder::same_values(const std::string& a, const std::string& b) const {
  const Place* one = locate(a);
  const Place* other = locate(b);
  PESC_CHECK(one != nullptr && other != nullptr && one->rows < 0 && other->rows < 0, a, " and ", b);
  if (one->entry->shape != other->entry->shape) return false;
  const std::span<const std::byte> first = one->file->bytes(*one->entry);
  const std::span<const std::byte> second = other->file->bytes(*other->entry);
  if (one->entry->type == other->entry->type) return std::ranges::equal(first, second);
  if (!one->entry->dtype || !other->entry->dtype) return false;
  if (!converts_to_f32(*one->entry->dtype) || !converts_to_f32(*other->entry->dtype)) return false;
  constexpr size_t kBlock = 1 << 16;  // values
  const auto one_size = static_cast<size_t>(dtype_bytes(*one->entry->dtype));
  const auto other_size = static_cast<size_t>(dtype_bytes(*other->entry->dtype));
  std::vector<float> x(kBlock), y(kBlock);
  const size_t values = first.size() / one_size;
  for (size_t at = 0; at < values; at += kBlock) {
    const size_t n = std::min(kBlock, values - at);
    convert_to_f32(*one->entry->dtype, first.subspan(at * one_size, n * one_size), x.data());
    convert_to_f32(*other->entry->dtype, second.subspan(at * other_size, n * other_size), y.data());
    if (std::memcmp(x.data(), y.data(), n * sizeof(float)) != 0) return false;
  }
  return true;
}

std::vector<std::string> HfFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

}  // namespace pesc
