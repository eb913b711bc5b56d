#include "runtime/config/overrides.h"

#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "ops/core/check.h"
#include "runtime/config/text_parser.h"
#include "runtime/config/unknown_names.h"

namespace pesc {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

struct PathPart {
  std::string name;
  std::optional<int> index;
};

// By the path of a group of fields that exclude each other ("train.length"): the one that was set, and by
// what.
struct ChosenField {
  const FieldDescriptor* field;
  std::string assignment;
};
using ChosenFields = std::map<std::string, ChosenField>;

class Override {
 public:
  explicit Override(const std::string& assignment) : where_("--set " + assignment) {
    const size_t equals = assignment.find('=');
    if (equals == std::string::npos || equals == 0) fail("write --set path.to.field=value");
    split_path(assignment.substr(0, equals));
    value_ = assignment.substr(equals + 1);
  }

  void apply(Message& root) const {
    Message* at = &root;
    for (size_t i = 0; i < parts_.size(); ++i) {
      const FieldDescriptor& f = find(*at->GetDescriptor(), parts_[i]);
      if (i + 1 == parts_.size()) {
        assign(*at, f, parts_[i].index);
      } else {
        at = descend(*at, f, parts_[i].index);
      }
    }
  }

  // Notes which of the fields that exclude each other are set, and fails where another one was noted before.
  void choose(const Message& root, ChosenFields& chosen) const {
    const Descriptor* d = root.GetDescriptor();
    std::string path;
    for (size_t i = 0; i < parts_.size(); ++i) {
      const FieldDescriptor& f = find(*d, parts_[i]);
      choose_field(f, path, chosen);
      path += f.name();
      if (parts_[i].index) path += str_cat("[", *parts_[i].index, "]");
      if (i + 1 == parts_.size()) break;
      if (f.message_type() == nullptr) fail("'", f.name(), "' is a value and has no fields");
      d = f.message_type();
      path += '.';
    }
    // A group of fields at once: train={steps: 5}.
    const FieldDescriptor& last = find(*d, parts_.back());
    if (last.message_type() == nullptr || last.is_repeated()) return;
    const std::unique_ptr<Message> group(
        google::protobuf::MessageFactory::generated_factory()->GetPrototype(d)->New());
    read_value(*group, last, false);
    choose_set(group->GetReflection()->GetMessage(*group, &last), path + ".", chosen);
  }

 private:
  void choose_field(const FieldDescriptor& f, const std::string& prefix, ChosenFields& chosen) const {
    if (f.containing_oneof() == nullptr) return;
    const auto [known, is_new] =
        chosen.try_emplace(prefix + f.containing_oneof()->name(), ChosenField{&f, where_});
    if (is_new || known->second.field == &f) return;
    fail(prefix, f.name(), " and ", prefix, known->second.field->name(), " (", known->second.assignment,
         ") exclude each other; leave one out");
  }

  void choose_set(const Message& group, const std::string& prefix, ChosenFields& chosen) const {
    std::vector<const FieldDescriptor*> set;
    group.GetReflection()->ListFields(group, &set);
    for (const FieldDescriptor* f : set) {
      choose_field(*f, prefix, chosen);
      if (f->message_type() != nullptr && !f->is_repeated())
        choose_set(group.GetReflection()->GetMessage(group, f), str_cat(prefix, f->name(), "."), chosen);
    }
  }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw UsageError(str_cat(where_, ": ", parts...));
  }

  void split_path(const std::string& path) {
    for (size_t begin = 0; begin <= path.size();) {
      const size_t end = std::min(path.find('.', begin), path.size());
      parts_.push_back(parse_part(path.substr(begin, end - begin)));
      begin = end + 1;
    }
  }

  // "train" or "train[0]". A name with '-', as Megatron's flags have, is a name; no field has it.
  [[nodiscard]] PathPart parse_part(const std::string& piece) const {
    const auto is_name = [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-';
    };
    const auto is_digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
    const size_t bracket = std::min(piece.find('['), piece.size());
    PathPart part{piece.substr(0, bracket), std::nullopt};
    bool good = !part.name.empty() && std::all_of(part.name.begin(), part.name.end(), is_name);
    if (bracket < piece.size()) {
      const std::string index =
          piece.ends_with(']') ? piece.substr(bracket + 1, piece.size() - bracket - 2) : "";
      good = good && !index.empty() && index.size() <= 6 && std::all_of(index.begin(), index.end(), is_digit);
      if (good) part.index = std::stoi(index);
    }
    if (!good) fail("'", piece, "' is not a field name; write path.to.field=value");
    return part;
  }

  [[nodiscard]] const FieldDescriptor& find(const Descriptor& d, const PathPart& part) const {
    const FieldDescriptor* f = d.FindFieldByName(part.name);
    if (f == nullptr) fail(unknown_field(part.name, d));
    if (part.index && !f->is_repeated())
      fail("'", f->name(), "' is not a list; leave out [", *part.index, "]");
    return *f;
  }

  void check_index(const FieldDescriptor& f, std::optional<int> index, int size) const {
    if (index && *index <= size) return;
    fail("'", f.name(), "' is a list with ", size, size == 1 ? " entry" : " entries", "; write ", f.name(),
         "[0]", size > 0 ? str_cat(" to ", f.name(), "[", size, "]") : std::string(), ", where [", size,
         "] appends one");
  }

  Message* descend(Message& at, const FieldDescriptor& f, std::optional<int> index) const {
    const auto* r = at.GetReflection();
    if (f.message_type() == nullptr) fail("'", f.name(), "' is a value and has no fields");
    if (!f.is_repeated()) return r->MutableMessage(&at, &f);
    const int size = r->FieldSize(at, &f);
    check_index(f, index, size);
    return *index == size ? r->AddMessage(&at, &f) : r->MutableRepeatedMessage(&at, &f, *index);
  }

  // The value is first read into an empty message of the same type, so that other fields that a value carries
  // along ("5 seed: 7") are seen.
  void assign(Message& at, const FieldDescriptor& f, std::optional<int> index) const {
    const auto* r = at.GetReflection();
    const std::unique_ptr<Message> scratch(at.New());
    read_value(*scratch, f, index.has_value());
    std::vector<const FieldDescriptor*> set;
    r->ListFields(*scratch, &set);
    const bool one = !index || (set.size() == 1 && r->FieldSize(*scratch, &f) == 1);
    if (set.size() > 1 || (set.size() == 1 && set.front() != &f) || !one)
      fail("'", value_, "' is more than one value");
    if (!index) {
      r->ClearField(&at, &f);
      at.MergeFrom(*scratch);
      return;
    }
    const int size = r->FieldSize(at, &f);
    check_index(f, index, size);
    at.MergeFrom(*scratch);
    if (*index < size) {
      r->SwapElements(&at, &f, *index, size);
      r->RemoveLast(&at, &f);
    }
  }

  void read_value(Message& scratch, const FieldDescriptor& f, bool one_of_list) const {
    const bool list = value_.starts_with('[');
    const bool group = value_.starts_with('{');
    if (f.message_type() != nullptr && !group && !(list && f.is_repeated() && !one_of_list)) {
      fail("'", f.name(), "' is a group of fields (", joined(field_names(*f.message_type())), "); write ",
           f.name(),
           f.is_repeated() ? "[0].field=value or " + f.name() + "=[{...}]" : std::string(".field=value"));
    }
    if (f.cpp_type() != FieldDescriptor::CPPTYPE_STRING) {
      if (value_.find_first_not_of(" \t") == std::string::npos) fail("'", f.name(), "' has no value");
      parse_inline_text(f.name() + ": " + value_, where_, scratch);
    } else if (!f.is_repeated() || one_of_list) {
      add_string(scratch, f, value_);
    } else {
      add_strings(scratch, f);
    }
  }

  void add_strings(Message& scratch, const FieldDescriptor& f) const {
    std::string items = value_;
    if (items.starts_with('[')) {
      if (!items.ends_with(']')) fail("the list has no closing ]");
      items = items.substr(1, items.size() - 2);
      if (items.find_first_not_of(" \t") == std::string::npos) return;
    }
    for (size_t begin = 0; begin <= items.size();) {
      const size_t end = std::min(items.find(',', begin), items.size());
      const size_t first = items.find_first_not_of(" \t", begin);
      if (first >= end) fail("the list has an empty entry");
      add_string(scratch, f, items.substr(first, items.find_last_not_of(" \t", end - 1) + 1 - first));
      begin = end + 1;
    }
  }

  void add_string(Message& scratch, const FieldDescriptor& f, const std::string& value) const {
    if (value.size() > 1 && value.starts_with('"') && value.ends_with('"')) {
      const std::unique_ptr<Message> parsed(scratch.New());
      parse_inline_text(f.name() + ": " + value, where_, *parsed);
      scratch.MergeFrom(*parsed);
    } else if (f.is_repeated()) {
      scratch.GetReflection()->AddString(&scratch, &f, value);
    } else {
      scratch.GetReflection()->SetString(&scratch, &f, value);
    }
  }

  std::string where_;
  std::vector<PathPart> parts_;
  std::string value_;
};

}  // namespace

void apply_override(const std::string& assignment, Message& message) {
  Override(assignment).apply(message);
}

void check_overrides_agree(const std::vector<std::string>& assignments, const Message& message) {
  ChosenFields chosen;
  for (const std::string& assignment : assignments) Override(assignment).choose(message, chosen);
}

}  // namespace pesc
