// The names of families and of their traits in config.json.
#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/check.h"
#include "runtime/hf/config_parts.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using namespace std::string_view_literals;

// "llama, mistral, mistral3": that name of each row, and that of the models of which it is the text part.
std::string all_rows(std::string_view FamilyTraits::*name, std::string_view FamilyTraits::*multimodal) {
  std::string out;
  for (const FamilyTraits& row : kFamilies) {
    out += str_cat(out.empty() ? "" : ", ", row.*name);
    if (!(row.*multimodal).empty()) out += str_cat(", ", row.*multimodal);
  }
  return out;
}
std::string all_architectures() {
  return all_rows(&FamilyTraits::architecture, &FamilyTraits::multimodal_architecture);
}
std::string all_types() {
  return all_rows(&FamilyTraits::model_type, &FamilyTraits::multimodal_type);
}

}  // namespace

const FamilyTraits& read_family(const ConfigFields& fields) {
  const std::optional<std::string> type = fields.string("model_type");
  const std::optional<std::vector<std::string>> architectures = fields.strings("architectures");
  const FamilyTraits* by_type = type ? find_family(*type) : nullptr;
  const FamilyTraits* by_architecture = nullptr;
  for (const FamilyTraits& row : kFamilies) {
    if (architectures && architectures->size() == 1 && architectures->front() == row.architecture)
      by_architecture = &row;
  }
  if (architectures && !architectures->empty() && by_architecture == nullptr) {
    fields.fail("architectures", str_cat("the architecture ", in_quotes(architectures->front()),
                                         " is not supported; supported are ", all_architectures()));
  }
  if (type && by_type == nullptr) {
    fields.fail("model_type", str_cat("the model type ", in_quotes(*type),
                                      " is not supported; supported are ", all_types()));
  }
  if (by_type == nullptr && by_architecture == nullptr) {
    fields.fail("model_type", str_cat("is missing; supported are ", all_types()));
  }
  if (by_type != nullptr && by_architecture != nullptr && by_type != by_architecture) {
    fields.fail("model_type", str_cat("'", by_type->model_type, "' contradicts architectures ['",
                                      by_architecture->architecture, "']"));
  }
  return by_type != nullptr ? *by_type : *by_architecture;
}

const FamilyTraits* find_multimodal(const ConfigFields& fields) {
  const std::optional<std::string> type = fields.string("model_type");
  const std::optional<std::vector<std::string>> architectures = fields.strings("architectures");
  for (const FamilyTraits& row : kFamilies) {
    if (row.multimodal_type.empty()) continue;
    if (type ? *type == row.multimodal_type
             : architectures && architectures->size() == 1 &&
                   architectures->front() == row.multimodal_architecture)
      return &row;
  }
  return nullptr;
}

std::span<const std::string_view> activation_names(Activation activation) {
  static constexpr std::array kSilu = {"silu"sv, "swish"sv};  // two names of one function
  switch (activation) {
    case Activation::kSilu:
      return kSilu;
  }
  throw InternalError("activation_names: no such activation");
}

const char* rope_kind_name(RopeKind kind) {
  switch (kind) {
    case RopeKind::kDefault:
      return "default";
    case RopeKind::kLinear:
      return "linear";
    case RopeKind::kLlama3:
      return "llama3";
  }
  throw InternalError("rope_kind_name: no such kind");
}

std::string rope_kind_names(std::span<const RopeKind> kinds) {
  std::string out;
  for (const RopeKind kind : kinds) out += str_cat(out.empty() ? "" : ", ", rope_kind_name(kind));
  return out;
}

}  // namespace pesc
