#include "runtime/hf/weight_names.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include "model/families.h"
#include "model/hf_names.h"
#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using namespace std::string_view_literals;

// What folders hold beside the language model, and a run on text does not need. A weight format that brings
// more parts gets a line for each.
constexpr std::array kSkippedParts = {
    "vision_tower."sv,          "model.vision_tower."sv,          "vision_model."sv,
    "multi_modal_projector."sv, "model.multi_modal_projector."sv, "model.mm_projector."sv};

// Buffers that old versions of transformers saved: derived from config.json, never learned.
constexpr std::array kDerivedBuffers = {".rotary_emb.inv_freq"sv,   ".rotary_emb.cos_cached"sv,
                                        ".rotary_emb.sin_cached"sv, ".attn.masked_bias"sv,
                                        ".attention.masked_bias"sv, ".self_attn.masked_bias"sv};
// A mask where it has four dimensions, else a bias.
constexpr std::array kCausalMasks = {".attn.bias"sv, ".attention.bias"sv, ".self_attn.bias"sv};

// What wrappers put before every name.
constexpr std::array kWrappers = {"base_model.model."sv, "module."sv, "_orig_mod."sv,
                                  "_fsdp_wrapped_module."sv};

// The modules that the model computes, and the marks of what belongs into one, whatever it is called.
constexpr std::array kComputed = {"model.layers."sv, "model.embed_tokens."sv, "model.norm."sv, "lm_head."sv};
constexpr std::array kAdapterMarks = {"lora_"sv, ".moe_adapter."sv, ".modules_to_save."sv, ".base_layer."sv};

bool has_mark(std::string_view name, std::string_view mark) {
  return name.find(mark) != std::string_view::npos;
}

bool is_skipped(std::string_view name) {
  return std::ranges::any_of(kSkippedParts, [&](std::string_view part) { return name.starts_with(part); });
}

bool is_derived(std::string_view name, const SafetensorsEntry* entry) {
  if (std::ranges::any_of(kDerivedBuffers, [&](std::string_view end) { return name.ends_with(end); }))
    return true;
  return entry != nullptr && entry->shape.size() == 4 &&
         std::ranges::any_of(kCausalMasks, [&](std::string_view end) { return name.ends_with(end); });
}

bool is_adapter(std::string_view name) {
  return std::ranges::any_of(kAdapterMarks, [&](std::string_view mark) { return has_mark(name, mark); });
}

bool is_computed(std::string_view name) {
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view wrapper : kWrappers) {
      if (!name.starts_with(wrapper)) continue;
      name.remove_prefix(wrapper.size());
      again = true;
    }
  }
  return std::ranges::any_of(kComputed, [&](std::string_view begin) { return name.starts_with(begin); });
}

// The number after "model.layers.", or -1.
int64_t layer_of(std::string_view name) {
  const size_t at = name.find(kComputed[0]);
  if (at == std::string_view::npos) return -1;
  int64_t layer = -1;
  for (const char c : name.substr(at + kComputed[0].size())) {
    if (c < '0' || c > '9' || layer > 1'000'000) break;
    layer = std::max<int64_t>(layer, 0) * 10 + (c - '0');
  }
  return layer;
}

[[noreturn]] void refuse_missing(const HfFolder& folder, const ModelConfig& model,
                                 const std::vector<std::string>& missing, size_t wanted) {
  std::string why;
  const std::string& first = missing.front();
  if (missing.size() == 1 && first == hf::kHead) {
    why =
        "; config.json says tie_word_embeddings false (or nothing): where the model has no head of its own, "
        "set "
        "tie_word_embeddings to true, else a file is missing";
  } else if (const auto it = folder.unlisted().find(first); it != folder.unlisted().end()) {
    why = str_cat(
        "; ", in_quotes(first), " stands in ", it->second,
        ", but model.safetensors.index.json does not list it: the index belongs to other files, download "
        "the folder again");
  } else {
    const std::vector<std::string> names = folder.names();
    const auto like = std::ranges::find_if(names, [&](const std::string& name) {
      return name.ends_with("embed_tokens.weight") && name != hf::kEmbedding;
    });
    if (missing.size() == wanted && !names.empty()) {
      const std::string& shown = like != names.end() ? *like : names.front();
      why = str_cat("; the names in the files are other ones, for instance ", in_quotes(shown),
                    ": save the model as transformers does (save_pretrained), under the names of its family");
    } else if (layer_of(first) > 0 && layer_of(first) == layer_of(missing.back())) {
      why =
          str_cat("; config.json says num_hidden_layers ", model.num_hidden_layers, " and model_type ",
                  traits_of(model.family).model_type, ": it belongs to other weights, or a file is missing");
    } else {
      why = "; config.json belongs to other weights, or a file is missing";
    }
  }
  throw DataError(str_cat(folder.folder(), ": of ", wanted, " tensors that the model needs, ", missing.size(),
                          missing.size() == 1 ? " is" : " are", " missing from ", folder.files_text(), ": ",
                          some_of(missing), why));
}

[[noreturn]] void refuse_left_over(const HfFolder& folder, const ModelConfig& model,
                                   const std::vector<std::string>& left) {
  std::string why = str_cat("config.json describes a ", traits_of(model.family).model_type,
                            " model, which has no such tensors: it belongs to other weights");
  const auto beyond = std::ranges::max_element(left, {}, layer_of);
  if (std::ranges::any_of(left, QuantizedFolderTensor::is_companion)) {
    why =
        model.quantized
            ? str_cat("config.json says that the linears are ", frozen_format_text(model.quantized->format),
                      " (quantization_config), which has no such parts: another form of quantisation is not "
                      "read; give the unquantised model")
            : std::string(
                  "they are parts of quantised weights, but config.json has no quantization_config: take the "
                  "config.json that belongs to the folder");
  } else if (std::ranges::any_of(left, is_adapter)) {
    why = "merge the adapter into the base first (PEFT: merge_and_unload)";
  } else if (layer_of(*beyond) >= model.num_hidden_layers) {
    why = str_cat("config.json says num_hidden_layers ", model.num_hidden_layers,
                  ", and the weights have layer ", layer_of(*beyond), ": one of them is wrong");
  }
  throw DataError(str_cat(folder.folder(), ": ", left.size(), left.size() == 1 ? " tensor" : " tensors",
                          " of modules that the model computes would be left out: ", some_of(left), "; ",
                          why));
}

// What is left over goes to one of these.
struct LeftOver {
  std::vector<std::string> computed, skipped, other;
};

LeftOver left_over(const HfFolder& folder, const ModelConfig& model, const std::set<std::string>& wanted) {
  LeftOver out;
  const auto sort = [&](const std::string& name, const SafetensorsEntry* entry) {
    if (wanted.contains(name) || is_derived(name, entry)) return;
    if (name == hf::kHead && model.tie_word_embeddings) return;  // check_tied_head
    if (is_skipped(name)) {
      out.skipped.push_back(name);
    } else if (is_computed(name) || is_adapter(name)) {
      out.computed.push_back(name);
    } else {
      out.other.push_back(name);
    }
  };
  for (const std::string& name : folder.names()) sort(name, folder.entry(name));
  for (const auto& [name, file] : folder.unlisted()) sort(name, nullptr);
  return out;
}

std::string embeddings_text(const HfFolder& folder, const ModelConfig& model) {
  if (!model.tie_word_embeddings)
    return str_cat("the embeddings are untied: ", hf::kHead,
                   " is a matrix of its own (tie_word_embeddings false)");
  return str_cat("the embeddings are tied: the head is ", folder.entry(hf::kEmbedding)->name,
                 " (tie_word_embeddings true)");
}

}  // namespace

WeightReport compare_weights(HfFolder& folder, const ModelConfig& model,
                             const std::vector<std::string>& wanted) {
  if (model.tie_word_embeddings && !folder.has(hf::kEmbedding) && folder.has(hf::kHead))
    folder.read_from(hf::kEmbedding, hf::kHead);
  std::vector<std::string> missing;
  std::ranges::copy_if(wanted, std::back_inserter(missing),
                       [&](const std::string& name) { return !folder.has(name); });
  if (!missing.empty()) refuse_missing(folder, model, missing, wanted.size());
  const LeftOver left = left_over(folder, model, {wanted.begin(), wanted.end()});
  if (!left.computed.empty()) refuse_left_over(folder, model, left.computed);
  WeightReport report;
  report.summary = str_cat("base ", folder.folder(), ": ", wanted.size(), " tensors of ", folder.files_text(),
                           "; ", embeddings_text(folder, model));
  if (model.quantized) {
    const auto held = std::ranges::count_if(
        wanted, [&](const std::string& name) { return folder.quantized(name).has_value(); });
    report.summary +=
        str_cat("; ", held, " of them stand there quantised: ", frozen_format_text(model.quantized->format));
  }
  if (!left.skipped.empty()) {
    report.summary +=
        str_cat("; ", left.skipped.size(), " tensors of parts that are not for text are skipped, such as ",
                in_quotes(left.skipped.front()));
  }
  report.warnings = folder.warnings();
  if (!left.other.empty()) {
    report.warnings.push_back(str_cat(folder.folder(), ": ", left.other.size(),
                                      left.other.size() == 1 ? " tensor" : " tensors",
                                      " that the model does not use: ", some_of(left.other)));
  }
  return report;
}

void check_tied_head(const HfFolder& folder, const ModelConfig& model) {
  if (!model.tie_word_embeddings || !folder.has(hf::kHead)) return;
  if (folder.same_values(hf::kEmbedding, hf::kHead)) return;
  throw DataError(str_cat(folder.folder(), ": config.json says tie_word_embeddings true, but ", hf::kHead,
                          " is another matrix than ", hf::kEmbedding,
                          "; set tie_word_embeddings to false to use it, or take it out of the file"));
}

}  // namespace pesc
