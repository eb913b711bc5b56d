// Which template a folder or a name gives, and the tokens that go with it.
#include "runtime/chat/template_source.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>

#include "ops/core/check.h"

namespace pesc {
namespace {

class TemplateSourceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/template_source_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, std::string_view text) {
    std::filesystem::create_directories(std::filesystem::path(folder_ + "/" + name).parent_path());
    std::ofstream(folder_ + "/" + name) << text;
  }
  [[nodiscard]] TemplateSource find(const std::string& setting = "auto",
                                    ForTools for_tools = ForTools::kNo) const {
    return find_template(setting, folder_, known_, for_tools);
  }
  [[nodiscard]] std::string complaint(const std::string& setting = "auto") const {
    try {
      (void)find(setting);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  std::string folder_;
  TemplateTokens known_{{{"eos_token", "</s>"}}, {"<s>"}};
};

TEST_F(TemplateSourceTest, TheFileGoesBeforeTheConfiguration) {
  write("tokenizer_config.json", R"({"chat_template": "of the configuration"})");
  EXPECT_EQ(find().text, "of the configuration");
  EXPECT_EQ(find().name, folder_ + "/tokenizer_config.json (chat_template)");
  write("chat_template.jinja", "of the file\n");
  EXPECT_EQ(find().text, "of the file\n");
  EXPECT_EQ(find().name, folder_ + "/chat_template.jinja");
}

TEST_F(TemplateSourceTest, AProcessorsFileGoesBeforeTheConfiguration) {
  write("tokenizer_config.json", R"({"chat_template": "of the configuration"})");
  write("chat_template.json", R"({"chat_template": "of the processor"})");
  EXPECT_EQ(find().text, "of the processor");
  EXPECT_EQ(find().name, folder_ + "/chat_template.json (chat_template)");
  write("chat_template.json", R"({"other": 1})");
  EXPECT_EQ(find().text, "of the configuration");
  write("chat_template.json", R"({"chat_template": 5})");
  EXPECT_EQ(complaint(),
            folder_ + "/chat_template.json: chat_template is neither a text nor a list of named ones");
  write("chat_template.jinja", "of the file");
  EXPECT_EQ(find().text, "of the file");
}

TEST_F(TemplateSourceTest, AFileThatIsNoTemplateIsCalledByItsName) {
  for (const auto& [text, what] :
       {std::pair{"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
                  "is a Git LFS pointer"},
        std::pair{"", "is empty (0 bytes); a chat template is text, in Jinja"},
        std::pair{"<!DOCTYPE html><html></html>", "is a web page (HTML)"},
        std::pair{"PK\x03\x04 and more", "is a zip archive, and a chat template is text, in Jinja"}}) {
    write("chat_template.jinja", text);
    const std::string path = folder_ + "/chat_template.jinja";
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, path + ": " + what, complaint());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, path + ": " + what, complaint(path));
  }
}

TEST_F(TemplateSourceTest, OfNamedOnesTheDefaultIsTakenAndForToolsItsOwn) {
  write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]})");
  EXPECT_EQ(find().text, "d");
  EXPECT_EQ(find("auto", ForTools::kYes).text, "t");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "default", "template": "d"}]})");
  EXPECT_EQ(find("auto", ForTools::kYes).text, "d");
  write("chat_template.jinja", "file");
  write("additional_chat_templates/tool_use.jinja", "file for tools");
  EXPECT_EQ(find().text, "file");
  EXPECT_EQ(find("auto", ForTools::kYes).text, "file for tools");
}

TEST_F(TemplateSourceTest, WithoutOneItIsThePublishedPrompt) {
  EXPECT_EQ(find().name, "published (built in)");
  EXPECT_EQ(find_template("auto", "", known_).name, "published (built in)");
  write("tekken.json", "{}");
  EXPECT_EQ(find().name, "mistral (built in)");
  EXPECT_EQ(find().text, builtin_template("mistral"));
  known_.control.push_back("[SYSTEM_PROMPT]");
  EXPECT_EQ(find().text, builtin_template("mistral-v7"));
  // What the file says of itself counts.
  for (const int version : {3, 7, 11, 13}) {
    known_.mistral_version = version;
    EXPECT_EQ(find().text, builtin_template(version < 7 ? "mistral" : "mistral-v7")) << version;
  }
  write("tokenizer.json", "{}");
  EXPECT_EQ(find().name, "published (built in)");
}

TEST_F(TemplateSourceTest, AChatTemplateJsonWithoutATemplateIsRefused) {
  for (const char* text : {"{}", R"({"error": "Repository not found"})", R"({"chat_template": null})"}) {
    write("chat_template.json", text);
    EXPECT_NE(complaint("auto").find("chat_template.json: has no \"chat_template\""), std::string::npos)
        << text;
  }
}

TEST_F(TemplateSourceTest, ANameOrAFile) {
  write("chat_template.jinja", "the folder's");
  write("mine.jinja", "mine");
  for (const char* name : {"published", "chatml", "llama3", "mistral"})
    EXPECT_EQ(find(name).text, builtin_template(name));
  EXPECT_EQ(find(folder_ + "/mine.jinja").text, "mine");
  EXPECT_EQ(complaint("chatlm"),
            "data.chat_template is \"chatlm\"; it is auto, published, chatml, llama3, mistral, or the path "
            "of a file "
            "(with a slash, or ending in .jinja)");
  EXPECT_NE(complaint(folder_ + "/none.jinja").find("none.jinja"), std::string::npos);
}

TEST_F(TemplateSourceTest, TokensComeFromAllFiles) {
  write("special_tokens_map.json", R"({"bos_token": {"content": "<b>"}, "eos_token": "<old>",
      "additional_special_tokens": ["<x>", {"content": "<y>"}]})");
  write("tokenizer_config.json", R"({"eos_token": "<e>", "pad_token": null,
      "added_tokens_decoder": {"5": {"content": "<|im_end|>", "special": true}, "6": {"content": "<think>", "special": false}}})");
  const TemplateTokens tokens = find().tokens;
  const auto named = [&](const std::string& name) {
    const auto found = std::ranges::find(tokens.named, name, &std::pair<std::string, std::string>::first);
    return found == tokens.named.end() ? "none" : found->second;
  };
  EXPECT_EQ(named("bos_token"), "<b>");
  EXPECT_EQ(named("eos_token"), "<e>");
  EXPECT_EQ(named("pad_token"), "none");
  for (const char* text : {"<s>", "<b>", "<e>", "<x>", "<y>", "<|im_end|>"})
    EXPECT_EQ(std::ranges::count(tokens.control, text), 1) << text;
  EXPECT_EQ(std::ranges::count(tokens.control, "<think>"), 0);
}

TEST_F(TemplateSourceTest, MalformedFilesAreRefusedByName) {
  write("tokenizer_config.json", R"({"chat_template": 5})");
  EXPECT_EQ(complaint(),
            folder_ + "/tokenizer_config.json: chat_template is neither a text nor a list of named ones");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "d"}]})");
  EXPECT_NE(complaint().find("no template named \"default\""), std::string::npos);
  write("tokenizer_config.json", R"({"chat_template": ["x"]})");
  EXPECT_NE(complaint().find("an element of chat_template is no"), std::string::npos);
  write("tokenizer_config.json", "[]");
  EXPECT_EQ(complaint(), folder_ + "/tokenizer_config.json: is no JSON object");
  write("chat_template.jinja", std::string((1 << 20) + 1, 'x'));
  write("tokenizer_config.json", "{}");
  EXPECT_NE(complaint().find("a chat template has at most 1048576"), std::string::npos);
}

}  // namespace
}  // namespace pesc
