#include "runtime/data/one_object.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <istream>
#include <memory>
#include <nlohmann/json.hpp>
#include <streambuf>
#include <string_view>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/row_bytes.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using nlohmann::json;

// Keys that make an object a row, of this program's form or of another's: what is wrong with it is the row's
// to say.
constexpr std::array<std::string_view, 20> kRowKeys = {
    "conversation", "conversations", "messages", "corpus",   "instruction", "output",  "history",
    "prompt",       "completion",    "chat",     "dialogue", "dialog",      "turns",   "text",
    "question",     "query",         "answer",   "response", "chosen",      "rejected"};

// The keys of the outermost value, where it is an object. `depth_` counts the containers that are open.
class OutermostKeys : public nlohmann::json_sax<json> {
 public:
  bool is_object = false;
  bool is_row = false;
  std::vector<std::string> keys;
  std::vector<std::string> lists_of_objects;

  bool null() override { return value(); }
  bool boolean(bool /*value*/) override { return value(); }
  bool number_integer(number_integer_t /*value*/) override { return value(); }
  bool number_unsigned(number_unsigned_t /*value*/) override { return value(); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return value(); }
  bool string(string_t& /*value*/) override { return value(); }
  bool binary(binary_t& /*value*/) override { return value(); }
  bool start_object(size_t /*elements*/) override {
    if (depth_ == 0) is_object = true;
    if (depth_ == 2 && first_of_list_) lists_of_objects.push_back(keys.back());
    return value() && ++depth_ > 0;
  }
  bool start_array(size_t /*elements*/) override {
    const bool of_outermost = depth_ == 1;
    if (!value()) return false;
    first_of_list_ = of_outermost;
    return ++depth_ > 0;
  }
  bool key(string_t& name) override {
    if (depth_ != 1) return true;
    is_row = is_row || std::ranges::find(kRowKeys, name) != kRowKeys.end();
    keys.push_back(name.substr(0, kLongestKey));
    return !is_row && keys.size() <= kMostKeys;
  }
  bool end_object() override { return --depth_ >= 0; }
  bool end_array() override {
    first_of_list_ = false;
    return --depth_ >= 0;
  }
  bool parse_error(size_t /*position*/, const std::string& /*token*/,
                   const json::exception& /*why*/) override {
    return false;
  }

 private:
  static constexpr size_t kMostKeys = 1000;  // more are an index of rows by their ids, perhaps
  static constexpr size_t kLongestKey = 200;

  // Any value: false where the outermost is none that has keys.
  bool value() {
    first_of_list_ = false;
    return is_object;
  }

  int64_t depth_ = 0;
  bool first_of_list_ = false;  // the next value is the first one of a list under an outermost key
};

// The decompressed bytes of the file as the JSON reader takes them.
class RowBuffer : public std::streambuf {
 public:
  explicit RowBuffer(const std::string& path) : bytes_(open_row_bytes(path)), block_(size_t{1} << 16) {}

 private:
  int_type underflow() override {
    const size_t n = bytes_->read(block_);
    setg(block_.data(), block_.data(), block_.data() + n);
    return n == 0 ? traits_type::eof() : traits_type::to_int_type(block_[0]);
  }

  std::unique_ptr<RowBytes> bytes_;
  std::vector<char> block_;
};

// "\"a\", \"b\" and 3 more"
std::string names_of_keys(const std::vector<std::string>& names) {
  constexpr size_t kMost = 8;
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), kMost); ++i)
    out += str_cat(i == 0 ? "\"" : ", \"", printable(names[i]), "\"");
  return names.size() > kMost ? str_cat(out, " and ", names.size() - kMost, " more") : out;
}

}  // namespace

std::string about_one_object(const std::string& path, ObjectLines lines_of_object) {
  RowBuffer buffer(path);
  std::istream in(&buffer);
  OutermostKeys found;
  if (!json::sax_parse(in, &found) || found.keys.empty()) return "";
  const std::vector<std::string>& lists = found.lists_of_objects;
  if (lists.empty() && lines_of_object == ObjectLines::kOne) return "";
  std::string text =
      str_cat("the file is one JSON object with the key", found.keys.size() == 1 ? " " : "s ",
              names_of_keys(found.keys),
              "; rows are expected as JSON Lines, one object a line, or as one JSON array, [{...}, {...}]");
  if (lists.size() == 1) {
    text += str_cat("; ", names_of_keys(lists),
                    " holds a list of objects, which looks like the rows: write that list alone "
                    "into a file");
  } else if (!lists.empty()) {
    text += str_cat("; ", names_of_keys(lists),
                    " hold lists of objects, which look like rows: write each list into a file of "
                    "its own");
  }
  return text;
}

}  // namespace pesc
