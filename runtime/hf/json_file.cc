#include "runtime/hf/json_file.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/hf/safetensors.h"
#include "runtime/text/json_mistake.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr int kMaxDepth = 64;

// Below this every whole number is a float64 of its own.
constexpr double kWholeBelow = 9007199254740992.0;

// JSON has one kind of number: 10000.0, 1e4 and 10000 are the same.
void make_whole(nlohmann::json& value) {
  if (value.is_structured()) {
    for (nlohmann::json& child : value) make_whole(child);
  } else if (value.is_number_float()) {
    const auto number = value.get<double>();
    if (std::abs(number) < kWholeBelow && number == std::trunc(number)) value = static_cast<int64_t>(number);
  }
}

}  // namespace

nlohmann::json parse_json_document(std::string_view text, const std::string& file_name) {
  using nlohmann::json;
  check_first_bytes(text.substr(0, kFirstBytes), file_name, FileUse::kJson);
  text = without_byte_order_mark(text);
  // The JSON reader takes a zero byte for the end of its input and would accept anything behind it.
  if (text.find('\0') != std::string_view::npos) throw DataError(str_cat(file_name, ": holds a zero byte"));
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxDepth)
      throw DataError(str_cat(file_name, ": is nested deeper than ", kMaxDepth, " levels"));
    if (event == json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        throw DataError(str_cat(file_name, ": the key ", in_quotes(key), " appears twice in one object"));
      }
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::parse_error& error) {
    const size_t at = std::min<size_t>(error.byte, text.size());
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    throw DataError(str_cat(file_name, ":", line, ": is not valid JSON at byte ", at, ": ",
                            json_mistake(text, error.byte, error.what(), JsonText::kFile)));
  } catch (const json::exception& error) {
    throw DataError(str_cat(file_name, ": is no usable JSON: ", in_quotes(error.what())));
  }
}

std::string canonical_json(const nlohmann::json& document) {
  nlohmann::json whole = document;
  make_whole(whole);
  return whole.dump();  // its objects have their keys in order
}

nlohmann::json read_json_file(const std::string& folder, const std::string& name, uint64_t max_bytes,
                              Links links) {
  const MappedFile file(path_in_folder(folder, name, folder, links));
  check_first_bytes(file.first_bytes(), file.path(), FileUse::kJson);
  if (file.size() > max_bytes) {
    throw DataError(str_cat(file.path(), ": has ", file.size(), " bytes, the limit is ", max_bytes));
  }
  std::string text(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return parse_json_document(text, file.path());
}

}  // namespace pesc
