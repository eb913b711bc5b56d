#include "runtime/tokenizer/token_decoder.h"

#include <nlohmann/json.hpp>

#include "runtime/text/utf8.h"
#include "runtime/tokenizer/aligned_text.h"
#include "runtime/tokenizer/component_json.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/unicode.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr const char* kNoCharacter = "\xEF\xBF\xBD";

class ByteLevelDecoder : public TokenDecoder {
 public:
  void decode(std::vector<std::string>& names, size_t /*source*/) const override {
    std::string bytes;
    for (const std::string& name : names) append_byte_level(name, bytes);
    names.assign(1, with_replacements(std::move(bytes)));
  }
  [[nodiscard]] bool is_byte_level() const override { return true; }
};

class ReplaceDecoder : public TokenDecoder {
 public:
  ReplaceDecoder(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void decode(std::vector<std::string>& names, size_t source) const override {
    size_t all = 0;
    for (std::string& name : names) {
      const std::vector<TextRange> found = all_matches(pattern_, name);
      if (found.empty()) {
        all += name.size();
        continue;
      }
      std::string out;
      size_t done = 0;
      for (const TextRange& match : found) {
        check_growth(all + out.size() + content_.size(), source, "decoder Replace");
        out.append(name, done, match.begin - done).append(content_);
        done = match.end;
      }
      name = out.append(name, done);
      all += name.size();
    }
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class FuseDecoder : public TokenDecoder {
 public:
  void decode(std::vector<std::string>& names, size_t /*source*/) const override {
    std::string all;
    for (const std::string& name : names) all += name;
    names.assign(1, std::move(all));
  }
};

class ByteFallbackDecoder : public TokenDecoder {
 public:
  void decode(std::vector<std::string>& names, size_t /*source*/) const override {
    std::vector<std::string> out;
    std::string run;
    const auto end_run = [&] {
      if (run.empty()) return;
      if (valid_utf8_prefix(run) == run.size()) {
        out.push_back(run);
      } else {
        out.insert(out.end(), run.size(), kNoCharacter);
      }
      run.clear();
    };
    for (std::string& name : names) {
      if (const int byte = byte_of(name); byte >= 0) {
        run += static_cast<char>(byte);
      } else {
        end_run();
        out.push_back(std::move(name));
      }
    }
    end_run();
    names = std::move(out);
  }

 private:
  static int digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  }
  // <0x41>; a sign before one digit counts too, as in the library.
  static int byte_of(const std::string& name) {
    if (name.size() != 6 || !name.starts_with("<0x") || name[5] != '>') return -1;
    const int high = name[3] == '+' ? 0 : digit(name[3]);
    const int low = digit(name[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
  }
};

class StripDecoder : public TokenDecoder {
 public:
  StripDecoder(std::string content, size_t start, size_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  void decode(std::vector<std::string>& names, size_t /*source*/) const override {
    for (std::string& name : names) {
      std::string_view rest = name;
      for (size_t i = 0; i < start_ && rest.starts_with(content_); ++i) rest.remove_prefix(content_.size());
      for (size_t i = 0; i < stop_ && rest.ends_with(content_); ++i) rest.remove_suffix(content_.size());
      name = std::string(rest);
    }
  }

 private:
  std::string content_;
  size_t start_, stop_;
};

class MetaspaceDecoder : public TokenDecoder {
 public:
  MetaspaceDecoder(std::string mark, bool drops_first) : mark_(std::move(mark)), drops_first_(drops_first) {}
  // The first name loses all of its marks, not only the one at its start.
  void decode(std::vector<std::string>& names, size_t /*source*/) const override {
    for (size_t i = 0; i < names.size(); ++i) {
      std::string out;
      for (size_t at = 0; at < names[i].size();) {
        if (std::string_view(names[i]).substr(at).starts_with(mark_)) {
          if (i > 0 || !drops_first_) out += ' ';
          at += mark_.size();
        } else {
          out += names[i][at++];
        }
      }
      names[i] = std::move(out);
    }
  }

 private:
  std::string mark_;
  bool drops_first_;
};

std::string one_character(const Component& part, const char* field) {
  std::string text = part.text(field);
  size_t end = 0;
  if (!text.empty()) (void)unicode::next_char(text, end);
  if (text.empty() || end != text.size()) part.refuse(str_cat("\"", field, "\" is not one character"));
  return text;
}

void append(const json& j, std::vector<std::unique_ptr<TokenDecoder>>& out, int depth) {
  const std::string type = component_type(j, "decoder");
  const Component part{j, "decoder", type};
  part.check_count(out.size());
  if (type == "Sequence") {
    part.check_depth(depth);
    for (const json& inner : part.array("decoders")) append(inner, out, depth + 1);
  } else if (type == "ByteLevel") {
    out.push_back(std::make_unique<ByteLevelDecoder>());
  } else if (type == "Replace") {
    Pattern pattern = read_pattern(part.at("pattern"), "decoder Replace");
    if (pattern.can_match_nothing())
      part.refuse("has a pattern that also matches nothing, which is not supported");
    out.push_back(std::make_unique<ReplaceDecoder>(std::move(pattern), part.text("content")));
  } else if (type == "Fuse") {
    out.push_back(std::make_unique<FuseDecoder>());
  } else if (type == "ByteFallback") {
    out.push_back(std::make_unique<ByteFallbackDecoder>());
  } else if (type == "Strip") {
    out.push_back(std::make_unique<StripDecoder>(one_character(part, "content"), part.count("start"),
                                                 part.count("stop")));
  } else if (type == "Metaspace") {
    const bool never = (j.contains("prepend_scheme") && part.text("prepend_scheme") == "never") ||
                       !part.boolean("add_prefix_space", true);
    out.push_back(std::make_unique<MetaspaceDecoder>(one_character(part, "replacement"), !never));
  } else {
    part.refuse_type("Replace, ByteFallback, Fuse, Strip, ByteLevel, Metaspace and Sequence");
  }
}

}  // namespace

std::vector<std::unique_ptr<TokenDecoder>> read_decoders(const json& j) {
  std::vector<std::unique_ptr<TokenDecoder>> out;
  if (!j.is_null()) append(j, out, 0);
  return out;
}

void append_byte_level(const std::string& name, std::string& bytes) {
  thread_local std::string its_bytes;
  bytes += from_byte_level(name, its_bytes) ? its_bytes : name;
}

std::string with_replacements(std::string bytes) {
  size_t valid = valid_utf8_prefix(bytes);
  if (valid == bytes.size()) return bytes;
  std::string out;
  std::string_view rest = bytes;
  for (;;) {
    out += rest.substr(0, valid);
    rest.remove_prefix(valid);
    if (rest.empty()) return out;
    out += kNoCharacter;
    // The longest part that a character could begin with: it is one where some bytes behind it would complete
    // it.
    size_t part = 1;
    static constexpr std::string_view kEnds[] = {"\x80", "\x80\x80"};
    for (size_t longer = rest.size() < 3 ? rest.size() : 3; longer > 1 && part == 1; --longer) {
      for (const std::string_view end : kEnds) {
        const std::string whole = std::string(rest.substr(0, longer)).append(end);
        if (valid_utf8_prefix(whole) == whole.size()) part = longer;
      }
    }
    rest.remove_prefix(part);
    valid = valid_utf8_prefix(rest);
  }
}

}  // namespace pesc
