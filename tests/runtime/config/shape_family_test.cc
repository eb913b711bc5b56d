// model.shape.family knows the rows of model/families.h, all of them and no others.
#include <cctype>
#include <string>
#include <string_view>
#include <vector>

#include "configs/schema/experiment.pb.h"
#include "model/families.h"
#include "runtime/config/shapes.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

std::string capitals(std::string_view name) {
  std::string out;
  for (const char c : name) out += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return out;
}

TEST(ShapeFamily, EveryRowHasItsNameInTheSchema) {
  const std::string llama = read_file(std::string(PESC_SOURCE_DIR) + "/configs/models/llama-2-7b.textproto");
  const std::string line = "family: LLAMA\n";
  const size_t at = llama.find(line);
  ASSERT_NE(at, std::string::npos);
  const TempFolder folder;
  for (const FamilyTraits& row : kFamilies) {
    SCOPED_TRACE(row.model_type);
    std::string text = llama;
    text.replace(at, line.size(), "family: " + capitals(row.model_type) + "\n");
    write_file(folder / "shape.textproto", text);
    const ModelConfig shape = load_shape(folder / "shape.textproto");
    EXPECT_EQ(shape.family, row.family);
    EXPECT_EQ(shape.qkv_bias, row.qkv_bias());
    std::vector<int64_t> without;  // as transformers makes the list where there is none
    for (int64_t layer = 0; layer < shape.num_hidden_layers; ++layer)
      if (row.rope_layers == RopeLayers::kListed && (layer + 1) % 4 == 0) without.push_back(layer);
    EXPECT_EQ(shape.layers_without_rope, without);
  }
}

TEST(ShapeFamily, EveryNameInTheSchemaHasARow) {
  const google::protobuf::EnumDescriptor& names =
      *proto::Shape::descriptor()->FindFieldByName("family")->enum_type();
  EXPECT_EQ(names.value_count(), static_cast<int>(kFamilies.size()));
  for (int i = 0; i < names.value_count(); ++i) {
    bool found = false;
    for (const FamilyTraits& row : kFamilies)
      found = found || capitals(row.model_type) == names.value(i)->name();
    EXPECT_TRUE(found) << names.value(i)->name() << " has no row in model/families.h";
  }
}

}  // namespace
}  // namespace pesc
