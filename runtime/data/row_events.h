// What one row holds at its known places, read event by event (SAX): only the known texts are kept, so a row
// of sixteen million brackets costs a counter, not a tree of sixteen million nodes.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/row_columns.h"
#include "runtime/data/row_fields.h"
#include "runtime/data/rows.h"

namespace pesc {

// An element of `conversation` (input, output), of `messages` (role, content) or of `history` (question,
// answer). A null text counts as absent.
struct RowItem {
  std::array<std::optional<std::string>, 2> texts;
  std::optional<bool> learned;  // `weight`, `train`, `training`, `loss`: 1 or true, 0 or false
};
using RowItems = std::optional<std::vector<RowItem>>;

// What is told of an object of columns, {"instruction": {"0": ...}}, which pandas writes by default.
inline constexpr const char* kPandasColumns =
    "; with pandas, write rows: df.to_json(path, orient=\"records\", lines=True)";

// `depth_` counts the containers that are open: at 1 stand the row's own values, at 2 the elements of its
// lists, at 3 the elements' values.
class RowEvents {
 public:
  // `columns` outlives it.
  RowEvents(std::string_view text, Answers answers, const RowColumns& columns)
      : text_(text), answers_(answers), columns_(columns) {}

  std::optional<std::string> instruction, input, output, corpus, dataset, system;
  RowItems conversation, messages, history;
  RowFields counts;            // each once
  std::string fields;          // of the row, those that are not null: "\"a\", \"b\""; the first of them
  bool holds_columns = false;  // an unknown field is an object with the key "0": a column of pandas
  std::string holds_rows;      // the first unknown field that holds a list of objects; empty: none does
  std::string problem;         // empty when all is well

  // Fields of other forms that are not null (runtime/data/row_forms.h), by their names here.
  std::set<std::string, std::less<>> of_other_forms;
  bool says_response = false;          // "response" is there and not empty
  int64_t containers = 0;              // lists and objects of the row
  std::set<std::string> seen_columns;  // names of `columns` that the row has
  std::string all_names;  // of its fields, null or not, where there are `columns`; the first of them

  using Json = nlohmann::json;
  bool null();
  bool boolean(bool value);
  bool number_integer(Json::number_integer_t value) { return number(static_cast<double>(value)); }
  bool number_unsigned(Json::number_unsigned_t value) { return number(static_cast<double>(value)); }
  bool number_float(Json::number_float_t value, const std::string& /*text*/) { return number(value); }
  bool binary(Json::binary_t& /*value*/) { return scalar("binary data"); }
  bool string(std::string& value);
  bool start_object(size_t elements);
  bool start_array(size_t elements);
  bool end_object();
  bool end_array();
  bool key(std::string& name);
  bool parse_error(size_t position, const std::string& last_token, const Json::exception& error);

 private:
  enum Field {
    kInstruction,
    kInput,
    kOutput,
    kCorpus,
    kDataset,
    kSystem,
    kTexts,
    kConversation = kTexts,
    kMessages,
    kHistory,
    kWeight,  // of the whole row
    kTrain,
    kFields,
    kOther = kFields
  };
  enum Key {
    kFirst,
    kSecond,
    kMarks,
    kItemWeight = kMarks,
    kItemTrain,
    kItemTraining,
    kItemLoss,
    kKeys,
    kOtherKey = kKeys
  };

  template <class... Parts>
  bool fail(const Parts&... parts) {
    problem = str_cat(parts...);
    return false;
  }
  bool number(double value);
  bool scalar(std::string_view what);
  bool value_comes(bool empty);
  bool take_text(std::string& value, std::optional<std::string>& to);
  bool take_weight(double value, std::string_view shown);
  bool open();
  bool check_item();
  [[nodiscard]] bool in_value() const { return in_item_ && depth_ == 3; }
  // Of an element: whether it is learned.
  [[nodiscard]] bool in_mark() const {
    return in_value() && field_ != kHistory && key_ >= kMarks && key_ < kKeys;
  }
  [[nodiscard]] std::optional<std::string>& text_of(Field field);
  [[nodiscard]] std::vector<RowItem>& list();
  [[nodiscard]] std::string_view key_name(int key) const;
  [[nodiscard]] std::string element() const;
  [[nodiscard]] std::string place() const;
  [[nodiscard]] std::string other_place() const;
  [[nodiscard]] std::string shown(Field field) const;
  bool row_key(const std::string& name);
  void count(const std::string& name, FieldCounts& in);

  std::string_view text_;
  Answers answers_;
  const RowColumns& columns_;
  int depth_ = 0;
  Field field_ = kOther;     // at depth 1
  int key_ = kOtherKey;      // of an element
  std::string other_;        // the name of a field or key that is not known, cut
  std::string_view form_;    // our name of the unknown field at depth 1 where it is one of other forms
  std::string refusal_;      // of a container that is refused unless it is empty
  bool other_list_ = false;  // the value of an unknown field at depth 1 is a list
  bool in_list_ = false;
  bool in_item_ = false;
  std::array<bool, kFields> seen_{};
  std::set<std::string, std::less<>> seen_of_other_forms_;
  std::array<bool, kKeys> item_seen_{};
  std::vector<std::string> counted_;  // what is in `counts`
};

}  // namespace pesc
