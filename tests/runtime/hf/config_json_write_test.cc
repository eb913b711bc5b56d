// initializer_range of a written config.json is the deviation that the weights began with.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/hf/config_json.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

TEST(ConfigJsonWrite, NamesTheInitialDeviation) {
  ModelConfig model;
  model.vocab_size = 50;
  model.hidden_size = 8;
  model.intermediate_size = 16;
  model.num_hidden_layers = 1;
  model.num_attention_heads = model.num_key_value_heads = 2;
  model.head_dim = 4;
  model.max_position_embeddings = 32;
  for (const double range : {kUsualInitializerRange, 0.006, 0.0}) {
    const TempFolder folder;
    write_model_config(folder.path(), model, range);
    EXPECT_EQ(read_initializer_range(folder.path()), range);
    nlohmann::json written;
    std::ifstream(folder.path() + "/config.json") >> written;
    EXPECT_EQ(written.at("initializer_range").get<double>(), range);
    // A folder that names none has the usual one.
    written.erase("initializer_range");
    std::ofstream(folder.path() + "/config.json") << written.dump();
    EXPECT_EQ(read_initializer_range(folder.path()), kUsualInitializerRange);
  }
}

}  // namespace
}  // namespace pesc
