// Rows to tokens with a chat template and with the published prompt; rows shown to people.
#include "runtime/data/row_encoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/dataset.h"
#include "runtime/data/long_rows.h"
#include "runtime/data/show_row.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

constexpr const char* kChatml =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

// Byte b is token b; 256 ends a text, 257 begins and 258 ends a turn.
std::string byte_tokenizer_json() {
  nlohmann::ordered_json vocab = nlohmann::ordered_json::object();
  int next = 256;
  for (int b = 0; b < 256; ++b) {
    const bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    const int letter = plain ? b : next++;
    std::string name;
    if (letter < 128) {
      name += static_cast<char>(letter);
    } else {
      name += static_cast<char>(0xC0 | (letter >> 6));
      name += static_cast<char>(0x80 | (letter & 63));
    }
    vocab[name] = b;
  }
  nlohmann::ordered_json added = nlohmann::ordered_json::array();
  int id = 256;
  for (const char* name : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"})
    added.push_back({{"id", id++}, {"content", name}, {"special", true}});
  return nlohmann::ordered_json{
      {"added_tokens", added},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::ordered_json::array()}}}}
      .dump();
}

class RowEncoderTest : public ::testing::Test {
 protected:
  RowEncoderTest() {
    folder_.write("tokenizer.json", byte_tokenizer_json());
    folder_.write("tokenizer_config.json", R"({"eos_token": "<|endoftext|>"})");
    folder_.write("chat_template.jinja", kChatml);
    tokenizer_ = open_tokenizer(folder_.path());
  }
  [[nodiscard]] RowEncoder encoder(const std::string& setting = "auto",
                                   TrainOn train_on = TrainOn::kAll) const {
    return RowEncoder(*tokenizer_, open_templates({setting, ""}, folder_.path(), *tokenizer_, Links::kInside),
                      train_on);
  }
  [[nodiscard]] static Row row(const RowEncoder& encoder, const std::string& json) {
    return parse_any_row(json, "f:1", Answers::kAll, encoder.row_use());
  }
  // The tokens as text, what is learned between bars.
  [[nodiscard]] std::string written(const Sample& sample) const {
    std::string out;
    bool inside = false;
    for (size_t t = 0; t < sample.tokens.size(); ++t) {
      const bool learned = t > 0 && sample.labels[t - 1] != kUnsupervised;
      if (learned) {
        EXPECT_EQ(sample.labels[t - 1], sample.tokens[t]);
      }
      if (learned != inside) out += "#";
      inside = learned;
      out += tokenizer_->decode_all(std::vector<int32_t>{sample.tokens[t]});
    }
    return out + (inside ? "#" : "");
  }

  TokenizerFolder folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

constexpr const char* kTwoTurns =
    R"({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]})";

TEST_F(RowEncoderTest, ATemplateGivesTheLearnedTokensWithTheEndOfTurn) {
  const RowEncoder chat = encoder();
  EXPECT_EQ(chat.end_of_turn(), 258);
  EXPECT_EQ(chat.row_use(), RowUse::kTemplate);
  const Row two = row(chat, kTwoTurns);
  EXPECT_EQ(
      written(chat.encode(two, 1000)),
      "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n#b<|im_end|>#\n<|im_start|>user\nc<|im_end|>\n"
      "<|im_start|>assistant\n#d<|im_end|>#\n");
  EXPECT_EQ(
      written(encoder("auto", TrainOn::kLast).encode(two, 1000)),
      "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
      "<|im_start|>assistant\n#d<|im_end|>#\n");
}

TEST_F(RowEncoderTest, APromptIsTheSampleUpToTheAnswer) {
  const RowEncoder chat = encoder();
  for (const char* json : {kTwoTurns, R"({"prompt": "x<|im_end|>y", "completion": "z", "system": "s"})"}) {
    const Row asked = row(chat, json);
    const std::vector<int32_t> prompt = chat.encode_prompt(asked);
    const Sample sample = chat.encode(asked, 1000);
    ASSERT_LT(prompt.size(), sample.tokens.size());
    EXPECT_TRUE(std::equal(prompt.begin(), prompt.end(), sample.tokens.begin()));
    EXPECT_EQ(sample.labels[prompt.size() - 1], sample.tokens[prompt.size()]);
    EXPECT_EQ(chat.canonical_answer(asked, 1000), asked.turns.back().answer);
  }
  const Row shown = row(
      chat, R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, )"
            R"({"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "train": false}]})");
  EXPECT_EQ(chat.canonical_answer(shown, 1000), "d");
  // A question of the command line is one of a row.
  EXPECT_EQ(chat.encode_prompt(Row{"", "s", {{"x", ""}}, ""}),
            chat.encode_prompt(row(chat, R"({"prompt": "x", "completion": "z", "system": "s"})")));
}

TEST_F(RowEncoderTest, LongRowsAreCut) {
  const RowEncoder chat = encoder();
  const Row two = row(chat, kTwoTurns);
  const Sample whole = chat.encode(two, 1000);
  const auto length = std::ssize(whole.tokens);
  EXPECT_EQ(whole.supervised, 4);
  EXPECT_FALSE(chat.encode(two, length).truncated);
  const Sample cut = chat.encode(two, length - 2);  // the newline and the end of the last turn
  EXPECT_TRUE(cut.truncated);
  EXPECT_EQ(cut.supervised, 3);
  EXPECT_EQ(chat.encode(two, 5).supervised, 0);
}

TEST_F(RowEncoderTest, LongConversationsAreCutBehindAnEndOfTurn) {
  const RowEncoder chat = encoder();
  const Row two = row(chat, kTwoTurns);
  const std::string first = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n#b<|im_end|>#";
  const std::string second = "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n#d<|im_end|>#";
  const auto length = std::ssize(chat.encode(two, 1000).tokens);
  const auto cut_to = [&](int64_t most) { return fit_row(chat, two, {most, OnLongRow::kCut}); };
  EXPECT_EQ(written(cut_to(length).samples[0]), first + second + "\n");
  EXPECT_EQ(written(cut_to(length - 1).samples[0]), first + second);
  EXPECT_EQ(written(cut_to(length - 2).samples[0]), first);
  const auto of_first = std::ssize(cut_to(length - 2).samples[0].tokens);
  EXPECT_EQ(written(cut_to(of_first).samples[0]), first);
  const FittedRow inside = cut_to(of_first - 1);
  EXPECT_TRUE(inside.cut_inside);
  EXPECT_EQ(inside.samples[0].supervised, 1);
  EXPECT_FALSE(cut_to(length - 2).cut_inside);
  // Of the last answer alone nothing would be left.
  EXPECT_EQ(
      fit_row(encoder("auto", TrainOn::kLast), two, {length - 3, OnLongRow::kCut}).samples[0].supervised, 0);
}

TEST_F(RowEncoderTest, ThePublishedPromptIsTokenisedPieceByPiece) {
  const RowEncoder published = encoder("published");
  EXPECT_EQ(published.row_use(), RowUse::kPublished);
  EXPECT_EQ(published.end_of_turn(), -1);
  const Row two = row(published, kTwoTurns);
  const Sample expected = encode_row(*tokenizer_, two, 1000);
  const Sample got = published.encode(two, 1000);
  EXPECT_EQ(got.tokens, expected.tokens);
  EXPECT_EQ(got.labels, expected.labels);
  EXPECT_EQ(published.encode_prompt(two), encode_prompt(*tokenizer_, two));
  EXPECT_EQ(encoder("published", TrainOn::kLast).encode(two, 1000).supervised, 2);
  EXPECT_EQ(published.text_of(two).text,
            "### Human:\na\n### Assistant:\nb<|endoftext|>### Human:\nc\n### Assistant:\nd<|endoftext|>");
}

TEST_F(RowEncoderTest, RowsAsTextSayWhichTokensAreLearned) {
  for (const char* setting : {"auto", "published"}) {
    const RowEncoder made = encoder(setting);
    const Row two = row(made, kTwoTurns);
    const RowText text = made.text_of(two);
    const Sample sample = made.encode(two, 1000);
    EXPECT_EQ(text.ids, sample.tokens);
    EXPECT_EQ(text.text, tokenizer_->decode_all(text.ids));
    std::vector<bool> learned(text.ids.size());
    for (const TokenRange& range : text.learned)
      std::fill(learned.begin() + static_cast<int64_t>(range.begin),
                learned.begin() + static_cast<int64_t>(range.end), true);
    for (size_t t = 1; t < text.ids.size(); ++t)
      EXPECT_EQ(learned[t], sample.labels[t - 1] != kUnsupervised) << t;
    EXPECT_EQ(text.learned.size(), 2U);
  }
}

TEST_F(RowEncoderTest, ShownRowsMarkWhatIsLearned) {
  const RowEncoder chat = encoder();
  const RowText text = chat.text_of(row(chat, R"({"prompt": "\u001b[31mx", "completion": "h\u00e9"})"));
  EXPECT_EQ(shown_row(*tokenizer_, text.ids, text.learned, Marks::kBrackets),
            std::to_string(text.ids.size()) +
                " tokens, 4 of them learned:\n⟦<|im_start|>⟧user\n\\x1B[31mx⟦<|im_end|>⟧\n"
                "⟦<|im_start|>⟧assistant\n>>>h\u00e9⟦<|im_end|>⟧<<<\n\n");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "\x1B[32mh\u00e9\x1B[7m<|im_end|>\x1B[27m\x1B[0m\n",
                      shown_row(*tokenizer_, text.ids, text.learned, Marks::kColour));
}

TEST_F(RowEncoderTest, ShownControlTokensLookUnlikeTheSameTextOfAUser) {
  const RowEncoder chat = encoder();
  const RowText text =
      chat.text_of(row(chat, R"({"prompt": "<|im_end|> \u27e6<|im_end|>\u27e7", "completion": "x"})"));
  const std::string brackets = shown_row(*tokenizer_, text.ids, text.learned, Marks::kBrackets);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "user\n<|im_end|> \\u27E6<|im_end|>\\u27E7⟦<|im_end|>⟧\n",
                      brackets);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "<|im_end|>\\u27E7\x1B[7m<|im_end|>\x1B[27m\n",
                      shown_row(*tokenizer_, text.ids, text.learned, Marks::kColour));
}

// In transformers 5.24.0 such a piece is one token of a rendered text.
TEST_F(RowEncoderTest, ANamedTokenThatIsNoAddedTokenIsRefusedWhereTheTemplateWritesIt) {
  folder_.write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "<|endoftext|>"})");
  const auto open = [&](bool added, const std::string& text) {
    auto document = nlohmann::ordered_json::parse(byte_tokenizer_json());
    if (added) {
      document["added_tokens"].push_back({{"id", 259}, {"content", "<s>"}, {"special", true}});
    } else {
      document["model"]["vocab"]["<s>"] = 256;
      for (auto& token : document["added_tokens"]) token["id"] = token["id"].get<int>() + 1;
    }
    folder_.write("tokenizer.json", document.dump());
    folder_.write("chat_template.jinja", text);
    tokenizer_ = open_tokenizer(folder_.path());
    (void)encoder();
  };
  for (const std::string begin : {"{{ bos_token }}", "<s>"}) {
    EXPECT_NO_THROW(open(true, begin + kChatml));
    try {
      open(false, begin + kChatml);
      ADD_FAILURE() << "accepted: " << begin;
    } catch (const DataError& error) {
      EXPECT_EQ(error.what(), folder_ / "chat_template.jinja" +
                                  ": writes '<s>', the bos_token, of which this tokenizer makes 3 tokens and "
                                  "transformers one; add it to added_tokens of tokenizer.json with its id");
    }
  }
  EXPECT_NO_THROW(open(false, kChatml));
}

TEST_F(RowEncoderTest, ADateThatNoTemplateAsksForHasNoEffect) {
  EXPECT_EQ(encoder("published").why_no_date(),
            "the published prompt (### Human, ### Assistant) does not ask for the date (strftime_now)");
  EXPECT_EQ(encoder().why_no_date(), "the chat template " + (folder_ / "chat_template.jinja") +
                                         " does not ask for the date (strftime_now)");
  // One for rows with tools alone may ask; a question whether there is such a function is one for the date.
  std::filesystem::create_directory(folder_ / "additional_chat_templates");
  folder_.write("additional_chat_templates/tool_use.jinja",
                std::string("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}") + kChatml);
  const RowEncoder dated(*tokenizer_,
                         open_templates({"auto", "2025-01-31"}, folder_.path(), *tokenizer_, Links::kInside),
                         TrainOn::kAll);
  EXPECT_EQ(dated.why_no_date(), "");
}

TEST_F(RowEncoderTest, TheDigestIsOfTheContent) {
  const std::string digest = encoder().digest();
  EXPECT_EQ(encoder("auto", TrainOn::kLast).digest(), digest);
  folder_.write("copy.jinja", kChatml);
  EXPECT_EQ(encoder(folder_ / "copy.jinja").digest(), digest);
  EXPECT_NE(encoder("chatml").digest(), digest);
  EXPECT_NE(encoder("published").digest(), digest);
}

TEST_F(RowEncoderTest, RowsThatTheTemplateRefusesAreBadRows) {
  folder_.write(
      "strict.jinja",
      std::string("{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}") + kChatml);
  // Its probes have four messages.
  EXPECT_THROW((void)encoder(folder_ / "strict.jinja"), DataError);
  folder_.write(
      "strict.jinja",
      std::string("{% if messages|length == 3 %}{{ raise_exception('of three') }}{% endif %}") + kChatml);
  const RowEncoder strict = encoder(folder_ / "strict.jinja");
  folder_.write("rows.jsonl", std::string(R"({"prompt": "a", "completion": "b"})") + "\n" +
                                  R"({"prompt": "a", "completion": "b", "system": "s"})" + "\n");
  DatasetOptions options;
  options.max_seq_length = 100;
  options.rows.use = strict.row_use();
  options.rows.policy_field = "data.on_bad_row";
  try {
    const Dataset data({{folder_ / "rows.jsonl", "", 1}}, strict, options);
    FAIL() << "the row was taken";
  } catch (const DataError& error) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "rows.jsonl:2: ", error.what());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "of three", error.what());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "data.on_bad_row: SKIP", error.what());
  }
  options.rows.on_bad_row = OnBadRow::kSkip;
  const Dataset data({{folder_ / "rows.jsonl", "", 1}}, strict, options);
  EXPECT_EQ(data.rows(), 1);
  EXPECT_EQ(data.report().bad, 1);
}

// {{ content }} of a list writes [{'type': 'text', ...}], in transformers too.
TEST_F(RowEncoderTest, PartsThatATemplateWritesAsAListAreRefused) {
  const char* parts =
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "it's"}, {"type": "text", "text": "q"}]},
          {"role": "assistant", "content": "a"}]})";
  const auto turn = [](const std::string& content) {
    return "{% for m in messages %}<|im_start|>{{ m.role }} " + content + "<|im_end|>{% endfor %}";
  };
  for (const char* content : {"{{ m.content }}", "{{ m.content | trim }}", "{{ m.content ~ '' }}"}) {
    folder_.write("prints.jinja", turn(content));
    const RowEncoder prints = encoder(folder_ / "prints.jinja");
    EXPECT_EQ(written(prints.encode(row(prints, R"({"prompt": "q", "completion": "a"})"), 1000)).find("[{"),
              std::string::npos);
    for (const bool asked : {false, true}) {
      try {
        const Row read = row(prints, parts);
        if (asked) {
          (void)prints.encode_prompt(read, 1000);
        } else {
          (void)prints.encode(read, 1000);
        }
        FAIL() << content << " was taken";
      } catch (const DataError& error) {
        EXPECT_PRED_FORMAT2(::testing::IsSubstring, "message 0: its content is a list of parts",
                            error.what());
      }
    }
  }
  folder_.write(
      "loops.jinja",
      turn("{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}"
           "{% endfor %}{% endif %}"));
  const RowEncoder loops = encoder(folder_ / "loops.jinja");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "it'sq", written(loops.encode(row(loops, parts), 1000)));
}

// As of Qwen2.5, whose template writes messages of the roles that it knows, and passes over all others.
constexpr const char* kKnownRoles =
    "{% for m in messages %}{% if m.role in ['user', 'assistant'] or (m.role == 'tool' and tools) %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

TEST_F(RowEncoderTest, AQuestionThatTheTemplateDoesNotWriteIsRefused) {
  const RowEncoder made = encoder(folder_.write("known.jinja", kKnownRoles));
  const auto refusal = [&](const Row& read, bool asked) -> std::string {
    try {
      if (asked) {
        (void)made.encode_prompt(read, 1000);
      } else {
        (void)made.encode(read, 1000);
      }
    } catch (const DataError& error) {
      return error.what();
    }
    return "";
  };
  const auto conversation = [](const std::string& role, const std::string& content = "q") {
    return R"({"messages": [{"role": "user", "content": "first"}, {"role": "assistant", "content": "a"}, {"role": ")" +
           role + R"(", "content": ")" + content + R"("}, {"role": "assistant", "content": "a"}]})";
  };
  for (const bool asked : {false, true}) {
    EXPECT_EQ(refusal(row(made, conversation("user")), asked), "");
    EXPECT_EQ(refusal(row(made, conversation("human", " \\n")), asked), "");  // it says nothing
    for (const char* role : {"human", "User", "critic"}) {
      const std::string text = refusal(row(made, conversation(role)), asked);
      EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                          str_cat("message 2: its role is '", role, "', and nothing of it is in").c_str(),
                          text);
    }
  }
}

TEST_F(RowEncoderTest, ATemplateThatWritesNoQuestionIsRefused) {
  const std::string file = folder_.write(
      "answers.jinja",
      "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content + "
      "'<|im_end|>\n' }}{% endif %}{% endfor %}");
  try {
    (void)encoder(file);
    FAIL() << "was taken";
  } catch (const DataError& error) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "answers.jinja: the text of the user's messages is not found",
                        error.what());
  }
}

TEST_F(RowEncoderTest, TextsOfTheSystemThatTheTemplateLeavesOutAreCounted) {
  const std::string file = folder_.write(
      "rows.jsonl",
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"
      "\n"
      R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "tool", "content": "t"}, )"
      R"({"role": "assistant", "content": "b"}]})"
      "\n"
      R"({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"
      "\n");
  const auto warnings = [&](const std::string& name, const std::string& text) {
    const RowEncoder made = encoder(folder_.write(name, text));
    DatasetOptions options;
    options.max_seq_length = 200;
    options.rows.use = made.row_use();
    const Dataset data({{file, "", 1}}, made, options);
    EXPECT_EQ(data.rows(), 3);
    std::string all;
    for (const std::string& warning : data.report().warnings) all += warning + "\n";
    return all;
  };
  EXPECT_EQ(warnings("all.jinja", kChatml), "");
  EXPECT_EQ(warnings("known.jinja", kKnownRoles),
            file + ": 2 of 2 messages of the system are not in what the chat template writes (the first: " +
                file + ":2); their rows are learned without them\n" + file +
                ": 1 of 1 messages of tools are not in what the chat template writes (the first: " + file +
                ":2); their rows are learned without them\n");
}

TEST_F(RowEncoderTest, FieldsThatTheTemplateNeverShowsAreSaidOnceAFile) {
  const std::string file = folder_.write(
      "rows.jsonl",
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"
      "\n"
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b",)"
      R"( "reasoning_content": "\n hmm\nyes", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}]})"
      "\n"
      R"({"messages": [{"role": "user", "content": "look hmm"}, {"role": "assistant", "content": "c",)"
      R"( "reasoning_content": "hmm"}]})"
      "\n");
  const auto warnings = [&](const std::string& name, const std::string& before_content) {
    std::string text = kChatml;
    text.replace(text.find("+ m.content + "), 14, "+ m.content }}" + before_content + "{{ ");
    const RowEncoder made = encoder(folder_.write(name, text));
    DatasetOptions options;
    options.max_seq_length = 200;
    options.rows.use = made.row_use();
    const Dataset data({{file, "", 1}}, made, options);
    EXPECT_EQ(data.rows(), 3);
    std::string all;
    for (const std::string& warning : data.report().warnings) all += warning + "\n";
    return all;
  };
  const std::string thoughts = "{% if m.reasoning_content %}{{ m.reasoning_content|trim }}{% endif %}";
  const std::string last = "{% if loop.last and m.reasoning_content %}{{ m.reasoning_content }}{% endif %}";
  const std::string calls = "{% for c in m.tool_calls or [] %}{{ c|tojson }}{% endfor %}";
  const std::string none = warnings("none.jinja", "");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "rows.jsonl: 2 messages of the assistant have reasoning", none);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "rows.jsonl: 1 messages of the assistant have \"tool_calls\"",
                      none);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "rows.jsonl:2", none);
  EXPECT_EQ(warnings("both.jinja", thoughts + calls), "");
  EXPECT_EQ(warnings("last.jinja", last + calls), "");
  EXPECT_PRED_FORMAT2(::testing::IsNotSubstring, "reasoning", warnings("thoughts.jinja", thoughts));
  EXPECT_PRED_FORMAT2(::testing::IsNotSubstring, "tool_calls", warnings("calls.jinja", calls));
}

// What nothing reads is said, whichever of the two does not read it: the row's form, or the template.
TEST_F(RowEncoderTest, FieldsThatTheTemplateDoesNotReadAreNamed) {
  const std::string file = folder_.write(
      "rows.jsonl", R"({"messages": [{"role": "user", "content": "a", "name": "eve", "mood": ""}, )"
                    R"({"role": "assistant", "content": "b"}], "tools": [{"y": 2}], "id": 7})"
                    "\n"
                    R"({"messages": [{"role": "user", "content": "a", "mood": "gay", "learn": false}, )"
                    R"({"role": "assistant", "content": "b"}]})"
                    "\n");
  const auto report = [&](const std::string& name, const std::string& before) {
    const RowEncoder made = encoder(folder_.write(name, before + kChatml));
    DatasetOptions options;
    options.max_seq_length = 300;
    options.rows.use = made.row_use();
    const Dataset data({{file, "", 1}}, made, options);
    EXPECT_EQ(data.rows(), 2);
    std::string all;
    for (const std::string& warning : data.report().warnings) all += warning + "\n";
    return all;
  };
  const std::string unused =
      file +
      ": fields that nothing reads: \"id\" (1 row); what stands in them is neither seen "
      "nor learned\n";
  const auto unread = [&](const std::string& fields) {
    return unused + file + ": fields that the chat template does not read: " + fields +
           "; what stands in them is neither seen nor learned\n";
  };
  EXPECT_EQ(
      report("none.jinja", ""),
      unread(
          R"("messages[].learn" (1 row), "messages[].mood" (1 row), "messages[].name" (1 row), "tools" (1 row))"));
  EXPECT_EQ(report("tools.jinja", "{% if tools %}{{ tools|length }}{% endif %}"),
            unread(R"("messages[].learn" (1 row), "messages[].mood" (1 row), "messages[].name" (1 row))"));
  const std::string tools = "{% set t = tools %}";
  // Whether a field is there says nothing of what stands in it.
  EXPECT_EQ(report("there.jinja", tools + "{% if 'name' in messages[0] %}{% endif %}"),
            unread(R"("messages[].learn" (1 row), "messages[].mood" (1 row), "messages[].name" (1 row))"));
  EXPECT_EQ(
      report("get.jinja", tools + "{% set n = messages[0].get('name') %}{% set m = messages[0]['mood'] %}"),
      unread(R"("messages[].learn" (1 row))"));
  EXPECT_EQ(report("attribute.jinja", tools + "{{ messages[0].name }}"),
            unread(R"("messages[].learn" (1 row), "messages[].mood" (1 row))"));
  for (const char* whole : {"{{ messages[0] | tojson }}", "{{ messages | tojson }}", "{{ messages[0] }}",
                            "{% for k, v in messages[0].items() %}{% endfor %}"})
    EXPECT_EQ(report("whole.jinja", tools + whole), unused) << whole;
}

TEST_F(RowEncoderTest, ATemplateOfAnotherTokenizerIsRefused) {
  const auto refused = [&](const std::string& setting, const char* what) {
    try {
      (void)encoder(setting);
      FAIL() << setting << " was taken";
    } catch (const DataError& error) {
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, what, error.what());
    }
  };
  refused("llama3", "never learn to stop");
  // A special token by the configuration, of which the tokenizer knows nothing.
  folder_.write("tokenizer_config.json",
                R"({"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|eot_id|>"]})");
  refused("llama3", "'<|eot_id|>', which is no special token of this tokenizer");
}

}  // namespace
}  // namespace pesc
