#include "runtime/export.h"

#include <algorithm>
#include <filesystem>

#include "runtime/hf/config_json.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/hf/safetensors_write.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

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
  std::vector<SafetensorsWriteEntry> entries;
  for (const Parameter& p : decoder.parameters().all()) {
    if (!p.dense) continue;
    const ShardSpec& s = p.spec;
    std::vector<int64_t> shape{s.global_rows, s.global_cols};
    if (s.global_rows == 1) shape.erase(shape.begin());  // vectors have one dimension in these files
    entries.push_back({s.name, DType::kF32, shape, [&decoder, &p](const ByteSink& sink) {
                         std::vector<float> host(static_cast<size_t>(p.spec.size()));
                         copy_to_host(decoder.stream(), p.master, host.data());
                         sink(std::as_bytes(std::span(host)));
                       }});
  }
  write_safetensors(folder + "/model.safetensors", entries, {{"format", "pt"}});
}

}  // namespace pesc
