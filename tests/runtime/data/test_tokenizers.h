// Tokenizers for the tests: a byte tokenizer whose ids can be read off, and real sentencepiece models,
// trained on the spot with spm_train (Debian package sentencepiece).
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>

#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// A folder of its own, removed at the end.
class TokenizerFolder {
 public:
  TokenizerFolder() : path_((std::filesystem::temp_directory_path() / "pesc-data-XXXXXX").string()) {
    if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
  }
  ~TokenizerFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TokenizerFolder(const TokenizerFolder&) = delete;
  TokenizerFolder& operator=(const TokenizerFolder&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  // Writes a file and returns its path.
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream out(*this / name, std::ios::binary);
    out << text;
    if (!out.flush()) throw std::runtime_error("cannot write " + name);
    return *this / name;
  }

 private:
  std::string path_;
};

// Byte b is id b + 3; 0 is unknown, 1 begins and 2 ends a text, unless told that there is no such token.
class ByteTokenizer : public Tokenizer {
 public:
  explicit ByteTokenizer(int32_t bos = 1, int32_t eos = 2) : bos_(bos), eos_(eos) {}
  [[nodiscard]] std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c) + 3);
    return ids;
  }
  [[nodiscard]] std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id >= 3) text += static_cast<char>(id - 3);
    }
    return text;
  }
  [[nodiscard]] std::string decode_all(std::span<const int32_t> ids) const override { return decode(ids); }
  [[nodiscard]] Encoding encode_with_ranges(std::string_view text, const EncodeOptions&) const override {
    Encoding out{encode(text), {}};
    for (size_t i = 0; i < text.size(); ++i) out.ranges.push_back({i, i + 1});
    return out;
  }
  [[nodiscard]] int32_t vocab_size() const override { return 259; }
  [[nodiscard]] int32_t bos_id() const override { return bos_; }
  [[nodiscard]] int32_t eos_id() const override { return eos_; }

 private:
  int32_t bos_, eos_;
};

// Trains `folder`/tokenizer.model with the options given (besides the corpus and the place).
inline void train_sentencepiece(const TokenizerFolder& folder, const std::string& options) {
  std::string text;
  for (int i = 0; i < 200; ++i) {
    text += "Hello world, the quick brown fox number " + std::to_string(i) + " jumps over the lazy dog.\n";
    text += "### Human: what is " + std::to_string(i * 7) + " plus " + std::to_string(i * 3) + "?\n";
    text += "### Assistant: the answer is " + std::to_string(i * 10) + "\n### System: be brief\n";
  }
  const std::string corpus = folder.write("corpus.txt", text);
  const std::string command = "spm_train --input=" + corpus + " --model_prefix=" + (folder / "tokenizer") +
                              " --minloglevel=2 " + options + " >/dev/null 2>&1";
  ASSERT_EQ(std::system(command.c_str()), 0) << "is Debian's package sentencepiece installed? " << command;
}

// As Llama-2's model: BPE, byte fallback, text kept as it is, a space mark put in front.
inline constexpr const char* kLlamaLike =
    "--vocab_size=420 --model_type=bpe --byte_fallback --normalization_rule_name=identity "
    "--remove_extra_whitespaces=false";
// sentencepiece's own defaults, which tidy the text up, and no begin-of-text token.
inline constexpr const char* kDefaultsNoBos = "--vocab_size=90 --bos_id=-1";

}  // namespace pesc
