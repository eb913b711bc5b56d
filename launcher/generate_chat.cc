// pesc generate --chat: a conversation at a terminal, or from a pipe. Rank 0 reads the lines of standard input,
// holds the history and prints; the other ranks get the tokens of each prompt from it.
//
// At a terminal, what is wrong with a message is said and the conversation goes on. From a pipe or a file
// nobody would see it: there it ends the program with the exit code of bad data.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launcher/generate.h"
#include "launcher/input_lines.h"
#include "runtime/data/chat_history.h"
#include "runtime/data/unknown_characters.h"
#include "runtime/evaluation.h"
#include "runtime/text/printable.h"
#include "runtime/text/utf8.h"

namespace pesc {
namespace {

// While a person thinks, the other ranks wait in a collective, which gives up after minutes: so often they
// hear that there is no message yet.
constexpr int kSignOfLife = 20;  // seconds

// A word behind a slash and nothing else: "/reset". A message that begins with "/etc" has more words.
bool is_command(const std::string& line) {
  return line.starts_with('/') && line.find_first_of(" \t") == std::string::npos;
}

// Rank 0's side: from lines to prompts.
class Speaker {
 public:
  Speaker(const Job& job, std::string system, ChatLimits limits)
      : job_(job), limits_(limits), history_(*job.encoder, std::move(system), limits) {
    if (terminal_) say("/reset forgets the conversation; /exit or Ctrl-D ends it");
  }

  // The tokens of the next prompt. Nothing where no message has come yet, and at the end.
  [[nodiscard]] std::optional<std::vector<int32_t>> next() {
    if (std::ferror(stdout) != 0) {  // nobody reads the answers any more; the exit code says so
      ended_ = true;
      return std::nullopt;
    }
    if (terminal_ && !prompted_) std::fputs("> ", stderr);
    prompted_ = true;
    const std::optional<std::string> line = lines_.next(kSignOfLife);
    if (!line) {
      ended_ = lines_.ended();
      if (ended_ && terminal_) std::fputs("\n", stderr);
      return std::nullopt;
    }
    prompted_ = false;
    ++number_;
    try {
      return prompt_of(*line);
    } catch (const DataError& error) {
      if (!terminal_) throw DataError(str_cat("standard input:", number_, ": ", error.what()));
      say(error.what());
      return std::nullopt;
    }
  }
  [[nodiscard]] bool ended() const { return ended_; }

  void answered(const std::vector<int32_t>& tokens, bool cut) {
    history_.answer(job_.tokenizer->decode(tokens));
    if (cut) say(str_cat("the answer is cut: the conversation has reached ", limits_.prompt + 1, " tokens"));
  }

 private:
  static void say(const std::string& text) {
    std::fprintf(stderr, "(%s)\n", printable(text, kUncut, Keep::kLines).c_str());
  }

  [[nodiscard]] std::optional<std::vector<int32_t>> prompt_of(const std::string& line) {
    if (line.find_first_not_of(" \t") == std::string::npos) return std::nullopt;
    if (is_command(line)) {
      obey(line);
      return std::nullopt;
    }
    if (const size_t at = valid_utf8_prefix(line); at < line.size())
      throw DataError(str_cat("the message is not valid UTF-8 (byte ", at + 1, ")"));
    if (line.find('\0') != std::string::npos) throw DataError("the message holds a NUL character");
    ChatPrompt prompt = history_.ask(line);
    if (prompt.dropped > 0) {
      say(str_cat("the oldest ", prompt.dropped == 1 ? "turn is" : str_cat(prompt.dropped, " turns are"),
                  " forgotten: with ", prompt.dropped == 1 ? "it" : "them",
                  " the conversation would leave no room for an answer"));
    }
    tell_unknown(line, prompt.tokens);
    return std::move(prompt.tokens);
  }

  void obey(const std::string& command) {
    if (command == "/exit") {
      ended_ = true;
    } else if (command == "/reset") {
      history_.reset();
      if (terminal_) say("the conversation is forgotten");
    } else {
      throw DataError(str_cat("there is no command ", in_quotes(command),
                              "; /reset and /exit are commands, and a message that is a single word behind a "
                              "slash begins with a space"));
    }
  }

  void tell_unknown(const std::string& line, const std::vector<int32_t>& tokens) const {
    if (std::ranges::none_of(tokens, [&](int32_t id) { return job_.tokenizer->is_unknown(id); })) return;
    const std::string found =
        unknown_characters(*job_.tokenizer, Row{"", "", {{line, ""}}, ""}, limits_.prompt);
    if (!found.empty())
      say(str_cat("the tokenizer has no piece for ", found, "; the model reads such characters as unknown"));
  }

  const Job& job_;
  ChatLimits limits_;
  ChatHistory history_;
  InputLines lines_{STDIN_FILENO};
  bool terminal_ = ::isatty(STDIN_FILENO) != 0;
  bool prompted_ = false;  // "> " stands there already
  bool ended_ = false;
  int64_t number_ = 0;  // of the line
};

// From rank 0 to all: what it does next.
constexpr char kNothingYet = 'w', kQuestion = 'a', kNoMore = 'e';

std::string packed(char what, const std::vector<int32_t>& tokens = {}) {
  std::string out(1 + tokens.size() * sizeof(int32_t), what);
  if (!tokens.empty()) std::memcpy(out.data() + 1, tokens.data(), tokens.size() * sizeof(int32_t));
  return out;
}

std::vector<int32_t> unpacked(const std::string& message) {
  std::vector<int32_t> tokens((message.size() - 1) / sizeof(int32_t));
  if (!tokens.empty()) std::memcpy(tokens.data(), message.data() + 1, tokens.size() * sizeof(int32_t));
  return tokens;
}

}  // namespace

int run_chat(const Process& process, const CommandLine& command, Job& job) {
  const GenerateSection& g = job.config.generate;
  // As much as a row of training may have, and an answer.
  const int64_t length = std::min(longest_text(job.model), job.config.data.max_seq_length + g.max_new_tokens);
  const ChatLimits limits{length - 1, length - std::clamp<int64_t>(g.max_new_tokens, 1, (length + 1) / 2)};
  const auto decoder = make_inference_decoder(job, job.mesh().dp(), length, 1);
  if (!command.base) load_trainable_weights(job, *decoder, command.checkpoint, CheckpointUse::kAnswer);
  std::optional<Speaker> conversation;
  AnswerPrinter printer(*job.tokenizer);
  GenerateOptions options{.sampling = sampling_options(job, g), .cache_slots = 1, .cache_length = length};
  if (job.first()) {
    conversation.emplace(job, command.system, limits);
    options.on_token = [&](const Prompt&, int32_t token) { printer.push(token); };
  }
  for (int64_t turn = 0;;) {
    std::string mine;
    run_collectively(process.world, [&] {
      if (!conversation) return;
      const auto tokens = conversation->next();
      mine = tokens ? packed(kQuestion, *tokens) : packed(conversation->ended() ? kNoMore : kNothingYet);
    });
    const std::string message = process.world.host_all_gather(mine).front();
    if (message.front() == kNoMore) return 0;
    if (message.front() == kNothingYet) continue;
    // The ranks that hold rank 0's part of the rows compute the answer, the others take part in it.
    std::vector<Prompt> prompts;
    if (job.mesh().dp_rank() == 0) prompts.push_back({turn, unpacked(message)});
    ++turn;  // the random draws of every turn are others
    const Generated generated = generate(*decoder, process.world, prompts, options);
    if (!conversation) continue;
    printer.finish();
    conversation->answered(generated.answers.front(), generated.cut > 0);
  }
}

}  // namespace pesc
