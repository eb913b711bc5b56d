#include "runtime/data/row_events.h"

#include <algorithm>
#include <utility>

#include "runtime/text/json_mistake.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kLongestName = 64;
constexpr size_t kMostCounted = 16;  // names of one row

constexpr std::array<std::string_view, 11> kFieldNames = {"instruction", "input",  "output",       "corpus",
                                                          "dataset",     "system", "conversation", "messages",
                                                          "history",     "weight", "train"};
constexpr std::array<std::string_view, 5> kOfOtherForms = {"conversations", "prompt", "completion", "query",
                                                           "response"};

}  // namespace

std::optional<std::string>& RowEvents::text_of(Field field) {
  switch (field) {
    case kInstruction:
      return instruction;
    case kInput:
      return input;
    case kOutput:
      return output;
    case kCorpus:
      return corpus;
    case kDataset:
      return dataset;
    default:
      return system;
  }
}

std::vector<RowItem>& RowEvents::list() {
  RowItems& items = field_ == kConversation ? conversation : field_ == kMessages ? messages : history;
  return *items;
}

std::string_view RowEvents::key_name(int key) const {
  if (key == kItemWeight) return "weight";
  if (key == kItemTrain) return "train";
  if (key == kItemTraining) return "training";
  if (key == kItemLoss) return "loss";
  if (field_ == kHistory) return key == kFirst ? "0" : "1";
  if (field_ == kConversation) return key == kFirst ? "input" : "output";
  return key == kFirst ? "role" : "content";
}

// The list has been made by now, wherever this is asked.
std::string RowEvents::element() const {
  const RowItems& items = field_ == kConversation ? conversation : field_ == kMessages ? messages : history;
  return str_cat(kFieldNames[static_cast<size_t>(field_)], "[", items->size() - 1, "]");
}

std::string RowEvents::place() const {
  if (depth_ == 1) return shown(field_);
  if (field_ == kHistory) return str_cat(element(), "[", key_name(key_), "]");
  return str_cat(element(), ".", key_name(key_));
}

// With the file's own name, where it has another one.
std::string RowEvents::shown(Field field) const {
  const std::string_view ours = kFieldNames[static_cast<size_t>(field)];
  const std::string theirs = columns_.theirs(ours);
  if (theirs == ours) return str_cat("\"", ours, "\"");
  return str_cat("\"", printable(theirs), "\" (", columns_.field, ".", ours, ")");
}

// Of a field that is not known, as it is counted: without the element's number.
std::string RowEvents::other_place() const {
  if (depth_ == 1) return other_;
  return str_cat(kFieldNames[static_cast<size_t>(field_)], "[].", other_);
}

// A row counts once for each.
void RowEvents::count(const std::string& name, FieldCounts& in) {
  if (counted_.size() >= kMostCounted || std::ranges::find(counted_, name) != counted_.end()) return;
  counted_.push_back(name);
  in.add(name);
}

bool RowEvents::open() {
  ++depth_;
  ++containers;
  return depth_ <= kMaxDepth || fail("the row is nested deeper than ", kMaxDepth, " levels");
}

// Before every value but null: a field that nothing reads is refused or counted. What is as good as absent
// (row_fields.h) is not refused.
bool RowEvents::value_comes(bool empty) {
  if (!refusal_.empty()) return fail(refusal_);
  const bool of_row = depth_ == 1;
  if (of_row && fields.size() < 200) {
    fields += fields.empty() ? "\"" : ", \"";
    fields += (field_ == kOther ? printable(other_)
                                : printable(columns_.theirs(kFieldNames[static_cast<size_t>(field_)]))) +
              "\"";
  }
  if (of_row && !form_.empty()) {
    of_other_forms.emplace(form_);
    if (!empty) says_response |= form_ == "response";
    return true;
  }
  const bool other = (of_row && field_ == kOther) || (in_value() && key_ == kOtherKey);
  if (!other) return true;
  const std::string_view why = of_row ? refused_row_field(other_) : refused_element_field(other_);
  if (!why.empty()) {
    const std::string name = of_row ? str_cat("\"", other_, "\"") : str_cat(element(), ".", other_);
    return empty || fail(name, " ", why);
  }
  count(other_place(), counts.unused);
  return true;
}

// A value that is not the one expected at its place; at an unknown place anything goes.
bool RowEvents::scalar(std::string_view what) {
  if (depth_ == 0) return fail("the row is ", what, ", not a JSON object");
  if (depth_ == 1 && field_ != kOther) {
    const bool control = field_ == kWeight || field_ == kTrain;
    return fail(place(), " is ", what, ", not ",
                control           ? "a number or a boolean"
                : field_ < kTexts ? "a string"
                                  : "a list",
                what == "an object" && text_.find("{\"0\":") != text_.npos ? kPandasColumns : "");
  }
  if (in_list_ && depth_ == 2) {
    return fail(kFieldNames[static_cast<size_t>(field_)], "[", list().size(), "] is ", what, ", not ",
                field_ == kHistory ? "a pair, [question, answer]" : "an object");
  }
  if (in_value() && field_ == kHistory && key_ >= 2)
    return fail(element(), " has more than a question and its answer");
  if (in_value() && key_ == kSecond && field_ == kMessages && what == "an array")
    return fail(place(),
                " is a list of parts; only text is supported: write the text of its parts as one string, "
                "\"content\": \"..\"");
  if (in_mark()) return fail(place(), " is ", what, ", not a number or a boolean");
  if (in_value() && key_ != kOtherKey) return fail(place(), " is ", what, ", not a string");
  return true;
}

// A null field counts as absent.
bool RowEvents::null() {
  if (!refusal_.empty()) return fail(refusal_);
  if (depth_ == 1) return true;
  if (in_value() && field_ != kHistory) return true;
  return scalar("null");
}

// `weight`, `train` and the like: 1 and true learn an answer, 0 and false only show it.
bool RowEvents::take_weight(double value, std::string_view shown) {
  const bool one = value == 1;
  if (depth_ == 1) {
    if (one) return true;
    return fail(place(), " is ", shown,
                "; rows have no weight of their own: leave the row out, or give its file "
                "a weight (data.train.weight)");
  }
  if (!one && value != 0) return fail(place(), " is ", shown, "; an answer is learned (1) or only shown (0)");
  std::optional<bool>& learned = list().back().learned;
  if (learned && *learned != one)
    return fail(place(), " contradicts another of \"weight\", \"train\", \"training\" and \"loss\"");
  learned = one;
  count(str_cat(kFieldNames[static_cast<size_t>(field_)], "[].", key_name(key_)), counts.optional);
  return true;
}

bool RowEvents::boolean(bool value) {
  if (!value_comes(value == neutral_boolean(other_))) return false;
  if (depth_ == 1 && (field_ == kTrain || field_ == kWeight))
    return take_weight(value ? 1 : 0, value ? "true" : "false");
  if (in_mark()) return take_weight(value ? 1 : 0, value ? "true" : "false");
  return scalar("a boolean");
}

bool RowEvents::number(double value) {
  if (!value_comes(neutral_number(other_, value))) return false;
  const bool of_row = depth_ == 1 && (field_ == kTrain || field_ == kWeight);
  if (of_row || in_mark()) return take_weight(value, str_cat(value));
  return scalar("a number");
}

bool RowEvents::take_text(std::string& value, std::optional<std::string>& to) {
  if (value.find('\0') != std::string::npos) return fail(place(), " holds a NUL character");
  to = std::move(value);
  return true;
}

bool RowEvents::string(std::string& value) {
  if (!value_comes(value.empty())) return false;
  if (depth_ == 1 && field_ < kTexts) return take_text(value, text_of(field_));
  if (in_value() && key_ < 2) {
    if (!take_text(value, list().back().texts[static_cast<size_t>(key_)])) return false;
    if (field_ == kHistory) ++key_;
    return true;
  }
  return scalar("a string");
}

bool RowEvents::start_object(size_t /*elements*/) {
  // A list of objects at an unknown place: rows wrapped in an object, perhaps.
  if (depth_ == 2 && other_list_ && holds_rows.empty()) holds_rows = other_;
  if (depth_ == 1) other_list_ = false;
  if (in_list_ && depth_ == 2 && field_ != kHistory) {
    list().emplace_back();
    item_seen_ = {};
    in_item_ = true;
    return open();
  }
  if (depth_ == 0) return open();
  return value_comes(false) && scalar("an object") && open();
}

bool RowEvents::start_array(size_t /*elements*/) {
  if (depth_ == 1 && (field_ == kConversation || field_ == kMessages || field_ == kHistory)) {
    if (!value_comes(false)) return false;
    (field_ == kConversation ? conversation : field_ == kMessages ? messages : history).emplace();
    in_list_ = true;
    return open();
  }
  if (in_list_ && depth_ == 2 && field_ == kHistory) {
    list().emplace_back();
    in_item_ = true;
    key_ = kFirst;
    return open();
  }
  if (depth_ == 1) other_list_ = field_ == kOther;
  // Refused, if it is, only when something stands in it.
  if (!value_comes(true)) return false;
  if (depth_ == 1 && field_ == kOther && form_.empty() && !refused_row_field(other_).empty()) {
    refusal_ = str_cat("\"", other_, "\" ", refused_row_field(other_));
  } else if (in_value() && key_ == kOtherKey && !refused_element_field(other_).empty()) {
    refusal_ = str_cat(element(), ".", other_, " ", refused_element_field(other_));
  }
  return scalar("an array") && open();
}

// Here, and not once all are read: a row of nothing but empty elements must not fill the memory.
bool RowEvents::check_item() {
  const RowItem& item = list().back();
  const bool last_may_lack_it =
      answers_ == Answers::kAllButLast &&
      (field_ == kConversation || (field_ == kMessages && item.texts[0] == "assistant"));
  for (int k = 0; k < 2; ++k) {
    if (item.texts[static_cast<size_t>(k)]) continue;
    // An answer left out of a turn that is not the last is refused later, as empty.
    if (k == 1 && last_may_lack_it) continue;
    if (field_ == kHistory) return fail(element(), " is no pair of texts, [question, answer]");
    return fail(element(), " has no \"", key_name(k), "\"");
  }
  return true;
}

bool RowEvents::end_object() {
  --depth_;
  if (!in_item_ || depth_ != 2) return true;
  in_item_ = false;
  return check_item();
}

bool RowEvents::end_array() {
  --depth_;
  refusal_.clear();
  if (in_item_ && depth_ == 2 && field_ == kHistory) {
    in_item_ = false;
    return check_item();
  }
  if (depth_ == 1) in_list_ = false;
  return true;
}

// The name of a field of the row.
bool RowEvents::row_key(const std::string& name) {
  const std::string_view ours = columns_.ours(name);
  if (!columns_.names.empty()) {
    if (columns_.names.contains(name)) seen_columns.insert(name);
    if (all_names.size() < 200)
      all_names += str_cat(all_names.empty() ? "\"" : ", \"", printable(name), "\"");
  }
  field_ = kOther;
  form_ = {};
  for (int f = 0; f < kFields; ++f) {
    if (kFieldNames[static_cast<size_t>(f)] == ours) field_ = static_cast<Field>(f);
  }
  if (field_ == kOther) {
    other_ = name.substr(0, kLongestName);
    const auto* const form = std::ranges::find(kOfOtherForms, ours);
    if (form == kOfOtherForms.end()) return true;
    form_ = *form;
    return seen_of_other_forms_.emplace(form_).second || fail("\"", printable(name), "\" appears twice");
  }
  bool& seen = seen_[static_cast<size_t>(field_)];
  if (seen) return fail(place(), " appears twice");
  seen = true;
  return true;
}

bool RowEvents::key(std::string& name) {
  if (depth_ == 1) return row_key(name);
  if (in_value()) {
    key_ = kOtherKey;
    for (int k = 0; k < kKeys; ++k) {
      if (key_name(k) == name) key_ = k;
    }
    if (key_ == kOtherKey) {
      other_ = name.substr(0, kLongestName);
      return true;
    }
    bool& seen = item_seen_[static_cast<size_t>(key_)];
    if (seen) return fail(place(), " appears twice");
    seen = true;
  }
  if (depth_ == 2 && !in_list_ && name == "0") holds_columns = true;
  return true;
}

bool RowEvents::parse_error(size_t position, const std::string& /*last_token*/,
                            const Json::exception& error) {
  return fail("is not valid JSON at byte ", position,
              " of the row: ", json_mistake(text_, position, error.what()));
}

}  // namespace pesc
