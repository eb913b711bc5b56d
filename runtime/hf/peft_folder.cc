#include "runtime/hf/peft_folder.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "model/hf_names.h"
#include "ops/core/check.h"
#include "runtime/hf/content_digest.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/pesc_folder.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr std::string_view kLoraA = ".lora_A.weight";
constexpr const char* kRemedy = "take an adapter that was saved before its training diverged";

SafetensorsFile open_weights(const std::string& folder, Links links) {
  if (!folder_has(folder, kPeftWeights)) {
    throw DataError(str_cat(folder, ": has no ", kPeftWeights,
                            folder_has(folder, "adapter_model.bin")
                                ? "; it holds adapter_model.bin, which must be converted to safetensors first"
                                : "; give the folder of a whole PEFT adapter"));
  }
  return SafetensorsFile(path_in_folder(folder, kPeftWeights, folder, links));
}

LoraConfig on_every_linear() {
  LoraConfig all;
  all.r = 1;
  for (int i = 0; i < kLinears; ++i) all.target_modules.push_back(static_cast<Linear>(i));
  return all;
}

std::string list_text(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out.empty() ? "nothing" : out;
}

// The linears of a module that have LoRA.
std::vector<std::string> linears_of(const PeftModule& module) {
  std::vector<std::string> names;
  for (const PeftModule::Part& part : module.parts)
    if (part.block >= 0) names.emplace_back(linear_name(part.linear));
  return names;
}

// Whether PEFT puts LoRA on the module of this name.
bool is_target(const std::vector<std::string>& targets, const std::string& module) {
  return std::ranges::any_of(targets,
                             [&](const std::string& t) { return module == t || module.ends_with("." + t); });
}

}  // namespace

std::string PeftFolder::named() const {
  return str_cat("model.adapter ", in_quotes(folder_));
}

PeftFolder::PeftFolder(const std::string& folder, const ModelConfig& model, const PescConfig& pesc,
                       Links links)
    : folder_(folder),
      links_(links),
      config_(read_peft_config(folder, links)),
      file_(open_weights(folder, links)) {
  check_mode(pesc);
  check_targets(model, pesc.lora);
  for (int64_t layer = 0; layer < model.num_hidden_layers; ++layer)
    for (const PeftModule& module : peft_modules(model, pesc.lora, layer)) {
      check_rank(module, pesc.lora);
      add_module(module, layer, pesc.lora.r);
    }
  if (has_experts()) {
    check_experts(pesc.moe);
    for (const std::string& name : expert_names(model.num_hidden_layers, pesc.moe.num_experts)) {
      const SafetensorsEntry& entry = matrix(name);
      places_[name] = {&entry, {0, entry.shape.front(), 0, entry.shape.back()}};
    }
  }
  check_left_over(model);
}

void PeftFolder::check_mode(const PescConfig& pesc) const {
  if (pesc.mode == TrainMode::kFull)
    throw UsageError(str_cat(named(), ": train.mode FULL trains no adapter; use train.mode LORA or PESC"));
  if (pesc.lora.r == 0) {
    throw UsageError(str_cat(named(), " is a LoRA of rank ", config_.r,
                             ", but the experiment says lora.r 0; set lora.r: ", config_.r));
  }
  if (has_experts() && pesc.mode != TrainMode::kPesc) {
    throw UsageError(
        str_cat(named(),
                " has routers and adapters of PESC (modules_to_save), which train.mode LORA would "
                "leave out; use train.mode PESC"));
  }
}

void PeftFolder::check_targets(const ModelConfig& model, const LoraConfig& lora) const {
  const std::vector<PeftModule> possible = peft_modules(model, on_every_linear(), 0);
  std::set<std::string> found;
  for (const SafetensorsEntry& entry : file_.header().tensors) {
    if (!entry.name.starts_with(kPeftPrefix) || !entry.name.ends_with(kLoraA)) continue;
    const size_t begin = std::string_view(kPeftPrefix).size();
    const std::string module = entry.name.substr(begin, entry.name.size() - begin - kLoraA.size());
    const std::string end = last_part(module);
    if (std::ranges::none_of(possible, [&](const PeftModule& m) { return last_part(m.name) == end; })) {
      throw DataError(str_cat(file_.path(), ": has LoRA on ", in_quotes(module),
                              ", which is no linear of a layer of this base; only those can have LoRA here"));
    }
    if (!config_.target_modules.empty() && !is_target(config_.target_modules, module)) {
      throw DataError(str_cat(folder_, "/", kPeftConfigFile, ": target_modules does not name ",
                              in_quotes(module), ", of which ", kPeftWeights,
                              " has LoRA; the two files are not of one adapter"));
    }
    found.insert(end);
  }
  std::set<std::string> wanted;
  for (const PeftModule& module : peft_modules(model, lora, 0)) wanted.insert(last_part(module.name));
  if (found == wanted) return;
  std::vector<std::string> here, there;
  for (const PeftModule& module : possible)
    if (found.contains(last_part(module.name)))
      for (const std::string& linear : linears_of(module)) there.push_back(linear);
  for (const Linear linear : lora.target_modules) here.emplace_back(linear_name(linear));
  throw UsageError(str_cat(named(), " has LoRA on ", list_text(there),
                           ", but the experiment's lora.target_modules are ", list_text(here),
                           "; set lora.target_modules to those of the adapter to go on from it"));
}

void PeftFolder::check_rank(const PeftModule& module, const LoraConfig& lora) const {
  const std::string end = last_part(module.name);
  const int64_t rank = config_.rank_of(end);
  const double alpha = config_.alpha_of(end);
  if (!module.fused()) {
    if (rank != lora.r) {
      throw UsageError(str_cat(named(), " has rank ", rank, " on ", end, ", but the experiment says lora.r ",
                               lora.r, "; set lora.r: ", rank, " to go on from it"));
    }
    if (alpha != lora.lora_alpha) {
      throw UsageError(str_cat(named(), " has lora_alpha ", alpha, " on ", end,
                               ", but the experiment says lora.lora_alpha ", lora.lora_alpha,
                               "; set lora.lora_alpha: ", alpha, " to go on from it"));
    }
    return;
  }
  const int64_t want = module.blocks * lora.r;
  const double want_alpha = static_cast<double>(module.blocks) * lora.lora_alpha;
  if (rank == want && alpha == want_alpha) return;
  throw UsageError(
      str_cat(named(), " has rank ", rank, " and lora_alpha ", alpha, " on ", end, ", but ",
              list_text(linears_of(module)), " with lora.r ", lora.r, " and lora.lora_alpha ",
              lora.lora_alpha, " each are one LoRA of rank ", want, " and lora_alpha ", want_alpha,
              "; training can go on only from an adapter with a LoRA of its own for each of them, as "
              "`pesc export --format PEFT` writes it"));
}

void PeftFolder::check_experts(const MoeConfig& moe) const {
  const std::string base = folder_ + "/base";
  if (folder_has(base, "config.json")) {
    if (const auto experts = read_folder_experts(base, links_)) {
      PescConfig pesc;
      pesc.moe = moe;
      check_folder_experts(*experts, pesc, base, "model.adapter");
    }
  }
  const auto rows = [&](const std::string& name) {
    const SafetensorsEntry* entry = file_.header().find(kPeftPrefix + name);
    return entry == nullptr || entry->shape.empty() ? -1 : entry->shape.front();
  };
  const auto compare = [&](const char* field, int64_t here, int64_t there) {
    if (there < 0 || here == there) return;  // what lacks is named later
    throw UsageError(str_cat(named(), " has moe.", field, " ", there, ", but the experiment says ", here,
                             "; set moe.", field, ": ", there, " to go on from it"));
  };
  compare("num_experts", moe.num_experts, rows(hf::router(0)));
  compare("adapter_dim", moe.adapter_dim, rows(hf::adapter_down(0, 0)));
}

const SafetensorsEntry& PeftFolder::matrix(const std::string& name) {
  const std::string full = kPeftPrefix + name;
  const SafetensorsEntry* entry = file_.header().find(full);
  if (entry == nullptr) {
    throw DataError(str_cat(file_.path(), ": lacks tensor ", in_quotes(full),
                            ", which the adapter of this base and experiment has"));
  }
  if (entry->shape.size() != 2) {
    throw DataError(str_cat(file_.path(), ": tensor ", in_quotes(full), " has shape ",
                            shape_text(entry->shape), "; it must be a matrix"));
  }
  used_.insert(full);
  return *entry;
}

void PeftFolder::add_module(const PeftModule& module, int64_t layer, int64_t r) {
  const SafetensorsEntry& a = matrix(module.lora_a());
  const SafetensorsEntry& b = matrix(module.lora_b());
  const int64_t rank = module.blocks * r;
  if (a.shape[0] != rank || b.shape[1] != rank || b.shape[0] != module.rows) {
    throw DataError(str_cat(file_.path(), ": ", in_quotes(a.name), " and its B have shapes ",
                            shape_text(a.shape), " and ", shape_text(b.shape), ", but a LoRA of rank ", rank,
                            " of this base has ", rank, " rows of A and ",
                            shape_text(std::array{module.rows, rank}), " of B"));
  }
  check_zeros(module, b, r);
  for (const PeftModule::Part& part : module.parts) {
    if (part.block < 0) continue;
    places_[hf::lora_a(layer, part.linear)] = {&a, {part.block * r, r, 0, a.shape[1]}};
    places_[hf::lora_b(layer, part.linear)] = {&b, {part.row, part.rows, part.block * r, r}};
  }
}

// Of B of a fused module, outside of the blocks.
void PeftFolder::check_zeros(const PeftModule& module, const SafetensorsEntry& b, int64_t r) const {
  if (!module.fused()) return;
  const int64_t rank = module.blocks * r;
  std::vector<float> row(static_cast<size_t>(rank));
  for (const PeftModule::Part& part : module.parts) {
    for (int64_t i = part.row; i < part.row + part.rows; ++i) {
      read_tensor_slice(file_, b, {i, 1, 0, rank}, kRemedy, row.data());
      for (int64_t k = 0; k < rank; ++k) {
        if (k / r == part.block || row[static_cast<size_t>(k)] == 0) continue;
        throw DataError(str_cat(file_.path(), ": ", in_quotes(b.name), " is ", row[static_cast<size_t>(k)],
                                " at ", shape_text(std::array{i, k}), ", where a LoRA of ",
                                list_text(linears_of(module)),
                                " each has 0; training cannot go on from a LoRA of the fused module"));
      }
    }
  }
}

void PeftFolder::check_left_over(const ModelConfig& model) const {
  std::vector<std::string> left;
  for (const SafetensorsEntry& entry : file_.header().tensors)
    if (!used_.contains(entry.name)) left.push_back(entry.name);
  if (left.empty()) return;
  throw DataError(str_cat(file_.path(), ": ", left.size(), left.size() == 1 ? " tensor" : " tensors",
                          " would be left out: ", some_of(left), "; of a base of ", model.num_hidden_layers,
                          " layers with this experiment's lora", has_experts() ? " and moe" : "",
                          " training goes on from all of the adapter or not at all"));
}

void PeftFolder::read(const ShardSpec& piece, float* to) {
  const auto it = places_.find(piece.name);
  PESC_CHECK(it != places_.end(), "no ", piece.name, " in ", folder_);
  const auto& [entry, part] = it->second;
  if (part.rows != piece.global_rows || part.cols != piece.global_cols) {
    throw DataError(str_cat(file_.path(), ": tensor ", in_quotes(entry->name), " has shape ",
                            shape_text(entry->shape), ", of which ", piece.name, " is ",
                            shape_text(std::array{part.rows, part.cols}), ", but the base asks for ",
                            shape_text(std::array{piece.global_rows, piece.global_cols}),
                            "; the adapter belongs to another base"));
  }
  bytes_read_ += read_tensor_slice(
      file_, *entry, {part.row + piece.row, piece.rows, part.col + piece.col, piece.cols}, kRemedy, to);
}

std::string PeftFolder::base_digest() const {
  const auto it = file_.header().metadata.find(kPeftBaseDigest);
  return it == file_.header().metadata.end() ? "" : it->second;
}

std::string PeftFolder::digest() const {
  ContentDigest digest;
  digest.add_text(canonical_json(read_json_file(folder_, kPeftConfigFile, kMostConfigBytes, links_)));
  digest.add_file(kPeftWeights, file_.file());
  return digest.hex();
}

}  // namespace pesc
