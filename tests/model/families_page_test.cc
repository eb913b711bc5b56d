// The table of model/families.md says what the rows of model/families.h say.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "model/families.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

const char* text(Biases biases) {
  switch (biases) {
    case Biases::kNone:
      return "none";
    case Biases::kQkv:
      return "q, k, v";
  }
  throw InternalError("no such Biases");
}
const char* text(QkNorm norm) {
  switch (norm) {
    case QkNorm::kNone:
      return "none";
    case QkNorm::kPerHead:
      return "each head";
  }
  throw InternalError("no such QkNorm");
}
const char* text(NormPlaces places) {
  switch (places) {
    case NormPlaces::kBeforeBlocks:
      return "before blocks";
  }
  throw InternalError("no such NormPlaces");
}
const char* text(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "SiLU";
  }
  throw InternalError("no such Activation");
}
const char* text(Multipliers multipliers) {
  switch (multipliers) {
    case Multipliers::kNone:
      return "none";
  }
  throw InternalError("no such Multipliers");
}
const char* text(SoftCaps caps) {
  switch (caps) {
    case SoftCaps::kNone:
      return "none";
  }
  throw InternalError("no such SoftCaps");
}
const char* text(RopeKind kind) {
  switch (kind) {
    case RopeKind::kDefault:
      return "default";
    case RopeKind::kLinear:
      return "linear";
    case RopeKind::kLlama3:
      return "llama3";
  }
  throw InternalError("no such RopeKind");
}
const char* text(RopeLayers layers) {
  switch (layers) {
    case RopeLayers::kAll:
      return "all layers";
    case RopeLayers::kListed:
      return "listed layers";
  }
  throw InternalError("no such RopeLayers");
}
const char* text(WindowLayers layers) {
  switch (layers) {
    case WindowLayers::kNone:
      return "no layer";
    case WindowLayers::kAll:
      return "all layers";
    case WindowLayers::kUpper:
      return "upper layers";
    case WindowLayers::kWithoutRope:
      return "layers without RoPE";
  }
  throw InternalError("no such WindowLayers");
}
const char* text(FusedLinears fused) {
  switch (fused) {
    case FusedLinears::kNone:
      return "none";
    case FusedLinears::kQkvAndGateUp:
      return "q, k, v; gate, up";
  }
  throw InternalError("no such FusedLinears");
}

std::string line_of(const FamilyTraits& row) {
  std::string kinds;
  for (const RopeKind kind : row.rope_kinds) kinds += str_cat(text(kind), ", ");
  const std::string part_of =
      row.multimodal_type.empty() ? std::string("none") : str_cat("`", row.multimodal_type, "`");
  return str_cat("| `", row.model_type, "` | `", row.architecture, "` | ", part_of, " | ", text(row.biases),
                 " | ", text(row.qk_norm), " | ", text(row.norm_places), " | ", text(row.activation), " | ",
                 text(row.multipliers), " | ", text(row.soft_caps), " | ", kinds, text(row.rope_layers),
                 " | ", text(row.window_layers), " | ", text(row.fused_linears), " |\n");
}

TEST(FamiliesPage, ItsTableIsThatOfTheRows) {
  std::stringstream text;
  text << std::ifstream(PESC_SOURCE_DIR "/model/families.md").rdbuf();
  const std::string page = text.str();
  std::string table;
  for (const FamilyTraits& row : kFamilies) table += line_of(row);
  const size_t begin = page.find("| `");
  const size_t end = page.find("\n\n", begin);
  ASSERT_NE(end, std::string::npos) << "model/families.md has no table of families";
  EXPECT_EQ(page.substr(begin, end + 1 - begin), table) << "correct the table of model/families.md";
}

}  // namespace
}  // namespace pesc
