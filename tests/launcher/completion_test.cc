// The completion's lists come from the tables and the schema; tests/end_to_end/comfort_test.py asks a real bash.
#include "launcher/completion.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "configs/schema/experiment.pb.h"
#include "launcher/flags.h"
#include "launcher/verbs.h"
#include "ops/core/check.h"
#include "runtime/config/overrides.h"

namespace pesc {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

bool has(const std::vector<std::string>& words, const std::string& word) {
  return std::ranges::find(words, word) != words.end();
}

// The number of fields that are no messages, each message counted wherever it stands.
size_t leaves(const Descriptor& message) {
  size_t count = 0;
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    count += field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE ? leaves(*field.message_type()) : 1;
  }
  return count;
}

TEST(Completion, NamesEveryFieldOfTheSchema) {
  const Descriptor& schema = *proto::Experiment::descriptor();
  const FieldNames all = field_names_below(schema);
  size_t fields = 0;
  for (const auto& [path, names] : all.names)
    for (const std::string& name : names) fields += name.ends_with("=") ? 1 : 0;
  EXPECT_EQ(fields, leaves(schema));
  EXPECT_TRUE(has(all.names.at(""), "run_dir="));
  EXPECT_TRUE(has(all.names.at(""), "train."));
  EXPECT_TRUE(has(all.names.at("data"), "train[0]."));
  EXPECT_TRUE(has(all.names.at("data.train[0]"), "path="));
  EXPECT_TRUE(has(all.names.at("model.shape"), "hidden_size="));
  EXPECT_EQ(all.values.at("train.mode"), (std::vector<std::string>{"PESC", "LORA", "FULL"}));
  EXPECT_EQ(all.values.at("model.follow_links"), (std::vector<std::string>{"true", "false"}));
}

// What is offered is what --set takes.
TEST(Completion, OfferedValuesAreTaken) {
  const FieldNames all = field_names_below(*proto::Experiment::descriptor());
  ASSERT_GT(all.values.size(), 10U);
  for (const auto& [path, values] : all.values) {
    for (const std::string& value : values) {
      proto::Experiment experiment;
      EXPECT_NO_THROW(apply_override(str_cat(path, "=", value), experiment)) << path << "=" << value;
    }
  }
}

TEST(Completion, TheScriptHasEveryVerbAndFlag) {
  const std::string script = bash_completion();
  for (const Verb& verb : verbs()) {
    const size_t at = script.find(str_cat("  ['", verb.name, "']='"));
    ASSERT_NE(at, std::string::npos) << verb.name;
    const std::string line = script.substr(at, script.find('\n', at) - at);
    for (const Flag& flag : flags()) {
      const std::string name = str_cat(flag.name.size() == 1 ? "-" : "--", flag.name);
      const bool listed = line.find("'" + name + "'") != std::string::npos ||
                          line.find(" " + name + " ") != std::string::npos ||
                          line.find(" " + name + "'") != std::string::npos ||
                          line.find("'" + name + " ") != std::string::npos;
      EXPECT_EQ(listed, reads(verb.name, flag)) << verb.name << " " << name;
    }
  }
  EXPECT_NE(script.find("['--format']='HF PEFT CAMELIDAE'"), std::string::npos);
  EXPECT_NE(script.find("['--merge_into']='ORIGINAL DEQUANTISED'"), std::string::npos);
  EXPECT_NE(script.find("['--checkpoint']='best D'"), std::string::npos);
  EXPECT_NE(script.find("['--config']='F'"), std::string::npos);
  EXPECT_NE(script.find("\ncomplete -F _pesc pesc\n"), std::string::npos);
}

TEST(Completion, OtherShellsAreRefused) {
  for (const char* shell : {"", "fish"}) {
    CommandLine command;
    command.verb = "completion";
    command.topic = shell;
    try {
      (void)run_completion(command);
      ADD_FAILURE() << "not refused: " << shell;
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find("bash is the only one"), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace pesc
