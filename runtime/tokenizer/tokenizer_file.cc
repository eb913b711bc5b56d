#include "runtime/tokenizer/tokenizer_file.h"

#include <algorithm>

#include "ops/core/check.h"
#include "runtime/text/json_mistake.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr size_t kDeepestJson = 48;
constexpr uint64_t kMostIds = uint64_t{1} << 21;

// Where the parser stands: in the document, or in one of the two large parts.
enum class Part { kDocument, kVocabulary, kMerges, kMergePair };

class TokenizerFileReader : public nlohmann::json_sax<json> {
 public:
  TokenizerFileReader(TokenizerFile& file, std::string_view text) : file_(file), text_(text) {}

  bool null() override { return value(nullptr, "null"); }
  bool boolean(bool v) override { return value(v, "true or false"); }
  bool number_integer(number_integer_t v) override { return value(v, "a number below 0"); }
  bool number_float(number_float_t v, const string_t& text) override {
    return value(v, str_cat("the number ", text).c_str());
  }
  bool binary(binary_t&) override { return false; }
  bool number_unsigned(number_unsigned_t v) override {
    if (part_ != Part::kVocabulary) return value(v, "a number");
    if (v >= kMostIds)
      refuse(str_cat("model.vocab: the piece '", printable(name_), "' has the id ", v, "; ", kMostIds - 1,
                     " is the highest possible"));
    auto& names = file_.model.names;
    if (v >= names.size())
      names.resize(std::max<size_t>(v + 1, std::min<size_t>(names.size() * 2, kMostIds)));
    highest_ = std::max(highest_, v + 1);
    ++file_.model.pieces;
    if (name_.empty()) return true;  // no text gives it
    if (!names[v].empty())
      refuse(str_cat("model.vocab: '", printable(names[v]), "' and '", printable(name_),
                     "' have the same id ", v));
    names[v].swap(name_);
    return true;
  }
  bool string(string_t& v) override {
    if (part_ == Part::kMerges) {
      if (v.starts_with("#version")) return true;
      const size_t space = v.find(' ');
      if (space == std::string::npos || v.find(' ', space + 1) != std::string::npos) bad_merge();
      file_.model.merges.emplace_back(v.substr(0, space), v.substr(space + 1));
      return true;
    }
    if (part_ == Part::kMergePair) {
      if (pair_size_ == 2) bad_merge();
      auto& pair = file_.model.merges.back();
      (pair_size_++ == 0 ? pair.first : pair.second).swap(v);
      return true;
    }
    return value(std::move(v), "a string");
  }
  bool key(string_t& v) override {
    if (part_ == Part::kVocabulary) {
      name_.swap(v);
      return true;
    }
    if (open_.back()->contains(v)) refuse(str_cat("the key '", printable(v), "' comes twice"));
    key_ = v;
    return true;
  }
  bool start_object(size_t) override {
    if (part_ != Part::kDocument) wrong("an object");
    if (in_model() && key_ == "vocab") {
      note("vocab");
      part_ = Part::kVocabulary;
      return true;
    }
    return open(json::object());
  }
  bool end_object() override {
    if (part_ == Part::kVocabulary) {
      part_ = Part::kDocument;
      file_.model.names.resize(highest_);
      return true;
    }
    open_.pop_back();
    return true;
  }
  bool start_array(size_t) override {
    if (part_ == Part::kMerges) {
      part_ = Part::kMergePair;
      pair_size_ = 0;
      file_.model.merges.emplace_back();
      return true;
    }
    if (part_ != Part::kDocument) wrong("an array");
    if (in_model() && key_ == "merges") {
      note("merges");
      part_ = Part::kMerges;
      return true;
    }
    return open(json::array());
  }
  bool end_array() override {
    if (part_ == Part::kMergePair) {
      if (pair_size_ != 2) bad_merge();
      part_ = Part::kMerges;
    } else if (part_ == Part::kMerges) {
      part_ = Part::kDocument;
    } else {
      open_.pop_back();
    }
    return true;
  }
  bool parse_error(size_t at, const std::string&, const json::exception& e) override {
    refuse(
        str_cat("is not valid JSON at byte ", at, ": ", json_mistake(text_, at, e.what(), JsonText::kFile)));
  }

 private:
  [[noreturn]] static void refuse(const std::string& what) { throw DataError(what); }
  [[noreturn]] void bad_merge() const {
    refuse(str_cat("model.merges: merge ", std::max<size_t>(file_.model.merges.size(), 1),
                   " or the one behind it is neither \"a b\" nor [\"a\", \"b\"]"));
  }
  [[noreturn]] void wrong(const char* what) const {
    if (part_ == Part::kVocabulary)
      refuse(str_cat("model.vocab: the piece '", printable(name_), "' has ", what, " for its id"));
    bad_merge();
  }
  // Within the document's "model".
  [[nodiscard]] bool in_model() const {
    return open_.size() == 2 && open_[1]->is_object() && file_.rest.contains("model") &&
           open_[1] == &file_.rest["model"];
  }
  void note(const char* part) { open_.back()->emplace(part, true); }
  template <class Value>
  bool value(Value&& v, const char* what) {
    if (part_ != Part::kDocument) wrong(what);
    (void)place(json(std::forward<Value>(v)));
    return true;
  }
  bool open(json container) {
    if (open_.size() >= kDeepestJson) refuse("objects and arrays are nested too deep");
    open_.push_back(place(std::move(container)));
    return true;
  }
  json* place(json v) {
    if (open_.empty()) {
      file_.rest = std::move(v);
      return &file_.rest;
    }
    json& in = *open_.back();
    if (in.is_array()) {
      in.push_back(std::move(v));
      return &in.back();
    }
    return &(in[key_] = std::move(v));
  }

  TokenizerFile& file_;
  std::string_view text_;
  Part part_ = Part::kDocument;
  std::vector<json*> open_;
  std::string key_, name_;
  size_t pair_size_ = 0;
  uint64_t highest_ = 0;
};

}  // namespace

TokenizerFile parse_tokenizer_file(std::string_view text) {
  // The JSON reader would take a zero byte for the end of its input and accept anything behind it.
  if (text.find('\0') != std::string_view::npos) throw DataError("holds a zero byte");
  TokenizerFile file;
  TokenizerFileReader reader(file, text);
  (void)json::sax_parse(text.begin(), text.end(), &reader);
  if (!file.rest.is_object()) throw DataError("is no JSON object");
  return file;
}

}  // namespace pesc
