#include "runtime/export.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "model/hf_names.h"
#include "runtime/hf/config_json.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {
namespace {

// The weights of a linear or of several, one below the other; a norm, a bias or a table.
SafetensorsWriteEntry entry_of(Stream& stream, std::string name, std::vector<const Parameter*> parts) {
  const ShardSpec& first = parts.front()->spec;
  int64_t rows = 0;
  for (const Parameter* p : parts) {
    const ShardSpec& s = p->spec;
    PESC_CHECK(s.rows == s.global_rows && s.cols == s.global_cols && s.cols == first.cols &&
                   p->master.dtype == DType::kF32,
               "a piece of ", s.name, " in ", dtype_name(p->master.dtype));
    rows += s.rows;
  }
  std::vector<int64_t> shape{rows, first.cols};
  if (rows == 1) shape.erase(shape.begin());  // vectors have one dimension in these files
  return {std::move(name), DType::kF32, shape, [&stream, parts = std::move(parts)](const ByteSink& sink) {
            for (const Parameter* p : parts) {
              std::vector<float> host(static_cast<size_t>(p->spec.size()));
              copy_to_host(stream, p->master, host.data());
              sink(std::as_bytes(std::span(host)));
            }
          }};
}

}  // namespace

std::vector<SafetensorsWriteEntry> dense_tensors(Stream& stream, const ModelConfig& model,
                                                 const ModelParameters& parameters) {
  std::map<std::string, const Parameter*> apart;
  for (const Parameter& p : parameters.all())
    if (p.dense) apart.emplace(p.spec.name, &p);
  std::vector<SafetensorsWriteEntry> entries;
  for (int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    for (const hf::Fused& fused : hf::fused_weights(traits_of(model.family).fused_linears, layer)) {
      std::vector<const Parameter*> parts;
      for (const Linear linear : fused.parts) {
        const auto part = apart.extract(hf::weight(layer, linear));
        PESC_CHECK(!part.empty(), "no ", hf::weight(layer, linear));
        parts.push_back(part.mapped());
      }
      entries.push_back(entry_of(stream, fused.name, std::move(parts)));
    }
  }
  for (const auto& [name, parameter] : apart) entries.push_back(entry_of(stream, name, {parameter}));
  return entries;
}

namespace {

// The tokenizer's file, and what belongs to it: names of special tokens and the chat template.
void copy_tokenizer(const std::string& from, const std::string& to) {
  std::error_code error;
  if (std::filesystem::equivalent(from, to, error)) return;
  for (const std::string& name :
       {tokenizer_file(from), std::string("tokenizer_config.json"), std::string("special_tokens_map.json"),
        std::string("added_tokens.json"), std::string("chat_template.jinja")}) {
    if (!folder_has(from, name)) continue;
    const std::string path = from + "/" + name;
    std::filesystem::copy_file(path, to + "/" + name, std::filesystem::copy_options::overwrite_existing,
                               error);
    if (error) throw IoError(str_cat(path, ": cannot be copied to ", to, ": ", error.message()));
  }
}

}  // namespace

void export_dense(const Job& job, Decoder& decoder, const std::string& folder) {
  PESC_CHECK(job.mesh().world() == 1, "export_dense on ", job.mesh().world(), " ranks");
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw IoError(str_cat("the folder '", folder, "' cannot be made: ", error.message()));
  // A shape names no begin- and end-of-text tokens; without them other programs would not know where to stop.
  ModelConfig config = job.model;
  if (config.bos_id < 0) config.bos_id = job.tokenizer->bos_id();
  // What is learned at the end of an answer must stop it, also where only generation_config.json said so.
  for (const int64_t end : {job.special.end, job.special.end_of_turn}) {
    if (end >= 0 && std::ranges::find(config.eos_ids, end) == config.eos_ids.end())
      config.eos_ids.push_back(end);
  }
  const ModelSection& section = job.config.model;
  write_model_config(folder, config,
                     section.path.empty() ? section.initializer_range : read_initializer_range(section.path));
  copy_tokenizer(section.tokenizer, folder);
  write_safetensors(folder + "/model.safetensors",
                    dense_tensors(decoder.stream(), job.model, decoder.parameters()), {{"format", "pt"}});
}

}  // namespace pesc
