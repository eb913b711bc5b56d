// What `pesc generate` does with one prompt or a file (generate.cc) and with a conversation
// (generate_chat.cc).
#pragma once

#include <cstdint>
#include <string>

#include "launcher/command_line.h"
#include "runtime/job.h"
#include "runtime/tokenizer/stream_decoder.h"

namespace pesc {

// The tokens of the longest text, prompt and answer together.
[[nodiscard]] int64_t longest_text(const ModelConfig& model);
// What sets that limit: "the model's sliding window", "the limit of the model's positions".
[[nodiscard]] const char* text_limit_name(const ModelConfig& model);

// Prints an answer to standard output while its tokens come: to a file or a pipe what the model wrote, to a
// terminal nothing that drives it.
class AnswerPrinter {
 public:
  explicit AnswerPrinter(const Tokenizer& tokenizer);
  void push(int32_t token) { print(decoder_.push(token)); }
  // What was held back, and the end of the line. The next answer may follow.
  void finish() { print(decoder_.finish() + "\n"); }

 private:
  void print(const std::string& answer) const;
  StreamDecoder decoder_;
  bool terminal_;
};

// generate --chat: a conversation, whose messages are the lines of standard input of rank 0. Collective.
int run_chat(const Process& process, const CommandLine& command, Job& job);

}  // namespace pesc
