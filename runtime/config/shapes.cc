#include "runtime/config/shapes.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "ops/core/check.h"
#include "runtime/config/experiment.h"
#include "runtime/config/unknown_names.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/config_json.h"

namespace pesc {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSuffix = ".textproto";
constexpr std::array<std::pair<const char*, const char*>, 4> kSizes{
    {{"7B", "llama-2-7b"}, {"13B", "llama-2-13b"}, {"34B", "yi-34b"}, {"70B", "llama-2-70b"}}};

ModelConfig read_shape_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UsageError(path.string() + ": the shape cannot be read");
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  const std::string kind = other_kind(std::string_view(text).substr(0, kFirstBytes), FileUse::kText);
  if (!kind.empty()) throw UsageError(str_cat(path.string(), ": ", kind));
  // As the shape of an experiment, whose fields and checks are the same; on its first line, so that lines
  // count as in the file.
  return parse_experiment(
             "train { max_steps: 1 } model { shape { " + std::string(without_byte_order_mark(text)) + "\n} }",
             path.string(), {}, ExperimentUse::kBench)
      .model.shape;
}

// A shape has no weights, so none that are quantised.
ModelConfig shape_of_folder(const std::string& folder, Links links) {
  ModelConfig shape = read_model_config(folder, links);
  shape.quantized.reset();
  return shape;
}

}  // namespace

ModelConfig load_shape(const std::string& name, Links links) {
  std::error_code ignored;
  if (fs::is_directory(name, ignored)) return shape_of_folder(name, links);
  if (fs::path(name).filename() == "config.json") return shape_of_folder(fs::path(name).parent_path(), links);
  if (name.ends_with(kSuffix)) return read_shape_file(name);
  std::vector<std::string> known;
  for (const auto& entry : fs::directory_iterator(PESC_SHAPES, ignored)) {
    if (entry.path().extension() == kSuffix) known.push_back(entry.path().stem());
  }
  std::sort(known.begin(), known.end());
  std::string shape = name;
  for (const auto& [size, of] : kSizes) {
    if (name == size) shape = of;
    known.emplace_back(size);
  }
  if (std::find(known.begin(), known.end(), shape) == known.end()) {
    throw UsageError(str_cat("there is no shape '", name, "'; did you mean '", nearest_name(name, known),
                             "'? Known are ", joined(known), ". Or name a folder with a config.json"));
  }
  return read_shape_file(fs::path(PESC_SHAPES) / (shape + kSuffix));
}

}  // namespace pesc
