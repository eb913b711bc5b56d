#include "runtime/config/resolved.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <map>

#include "ops/core/check.h"
#include "runtime/config/experiment.h"
#include "runtime/config/overrides.h"
#include "runtime/config/text_parser.h"

namespace pesc {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;

// Calls visit(field, index or -1) for every field that is set, each entry of a list by itself.
template <class Visit>
void for_each_set(const Message& message, const Visit& visit) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* f : fields) {
    if (!f->is_repeated()) visit(*f, -1);
    const int n = f->is_repeated() ? message.GetReflection()->FieldSize(message, f) : 0;
    for (int i = 0; i < n; ++i) visit(*f, i);
  }
}

const Message& nested(const Message& message, const FieldDescriptor& f, int index) {
  const auto* r = message.GetReflection();
  return index < 0 ? r->GetMessage(message, &f) : r->GetRepeatedMessage(message, &f, index);
}

std::string path_of(const std::string& prefix, const FieldDescriptor& f, int index) {
  return prefix + f.name() + (index < 0 ? std::string() : str_cat("[", index, "]"));
}

void collect_places(const Message& message, const TextFormat::ParseInfoTree* tree, const std::string& prefix,
                    FieldPlaces& out) {
  if (tree == nullptr) return;
  for_each_set(message, [&](const FieldDescriptor& f, int index) {
    const std::string path = path_of(prefix, f, index);
    const auto location = tree->GetLocation(&f, index);
    if (location.line >= 0) out.of_field[path] = str_cat(out.file, ":", location.line + 1);
    if (f.message_type() != nullptr) {
      collect_places(nested(message, f, index), tree->GetTreeForNested(&f, index), path + ".", out);
    }
  });
}

// What stood below an overridden field stands in the file no more.
void place_override(const std::string& assignment, FieldPlaces& places) {
  const std::string path = assignment.substr(0, assignment.find('='));
  std::erase_if(places.of_field, [&](const auto& entry) {
    return entry.first.starts_with(path + ".") || entry.first.starts_with(path + "[");
  });
  places.of_field[path] = "--set " + assignment;
}

void fill_dependent_defaults(proto::Experiment& e) {
  proto::Model& m = *e.mutable_model();
  if (!m.has_tokenizer() && m.has_path()) m.set_tokenizer(m.path());
  if (m.has_shape()) {
    proto::Shape& s = *m.mutable_shape();
    if (!s.has_num_key_value_heads()) s.set_num_key_value_heads(s.num_attention_heads());
    if (!s.has_head_dim() && s.num_attention_heads() > 0 && s.hidden_size() % s.num_attention_heads() == 0)
      s.set_head_dim(s.hidden_size() / s.num_attention_heads());
  }
  if (e.lora().target_modules_size() == 0) {
    for (int i = 0; i < kLinears; ++i)
      e.mutable_lora()->add_target_modules(linear_name(static_cast<Linear>(i)));
  }
}

void set_default(Message& message, const FieldDescriptor& f) {
  const auto* r = message.GetReflection();
  switch (f.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return r->SetInt32(&message, &f, f.default_value_int32());
    case FieldDescriptor::CPPTYPE_INT64:
      return r->SetInt64(&message, &f, f.default_value_int64());
    case FieldDescriptor::CPPTYPE_UINT64:
      return r->SetUInt64(&message, &f, f.default_value_uint64());
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return r->SetDouble(&message, &f, f.default_value_double());
    case FieldDescriptor::CPPTYPE_BOOL:
      return r->SetBool(&message, &f, f.default_value_bool());
    case FieldDescriptor::CPPTYPE_ENUM:
      return r->SetEnum(&message, &f, f.default_value_enum());
    case FieldDescriptor::CPPTYPE_STRING:
      return r->SetString(&message, &f, f.default_value_string());
    default:
      throw InternalError("experiment.proto: no rule to spell out the default of " + f.full_name());
  }
}

// Of fields that exclude each other none has a default.
void spell_out(Message& message) {
  const auto* d = message.GetDescriptor();
  const auto* r = message.GetReflection();
  for (int i = 0; i < d->field_count(); ++i) {
    const FieldDescriptor* f = d->field(i);
    const bool set = !f->is_repeated() && r->HasField(message, f);
    if (f->is_repeated()) {
      for (int j = 0; f->message_type() != nullptr && j < r->FieldSize(message, f); ++j)
        spell_out(*r->MutableRepeatedMessage(&message, f, j));
    } else if (f->message_type() != nullptr) {
      if (set || f->containing_oneof() == nullptr) spell_out(*r->MutableMessage(&message, f));
    } else if (!set && f->has_default_value()) {
      set_default(message, *f);
    }
  }
}

void flatten(const Message& message, const std::string& prefix, std::map<std::string, std::string>& out) {
  for_each_set(message, [&](const FieldDescriptor& f, int index) {
    const std::string path = path_of(prefix, f, index);
    if (f.message_type() != nullptr) {
      flatten(nested(message, f, index), path + ".", out);
    } else {
      TextFormat::PrintFieldValueToString(message, &f, index, &out[path]);
    }
  });
}

std::map<std::string, std::string> flat_fields(const std::string& text) {
  std::map<std::string, std::string> out;
  flatten(read_recorded_experiment(text), "", out);
  return out;
}

}  // namespace

proto::Experiment read_experiment_text(const std::string& text, const std::string& where,
                                       const std::vector<std::string>& overrides, FieldPlaces& places) {
  proto::Experiment e;
  TextLocations locations;
  parse_text(text, where, e, locations);
  places.file = where;
  collect_places(e, &locations.tree, "", places);
  check_overrides_agree(overrides, e);
  for (const std::string& o : overrides) {
    apply_override(o, e);
    place_override(o, places);
  }
  fill_dependent_defaults(e);
  return e;
}

proto::Experiment read_recorded_experiment(const std::string& text) {
  proto::Experiment e;
  parse_recorded_text(text, "resolved configuration", e);
  fill_dependent_defaults(e);
  spell_out(e);
  return e;
}

std::string resolved_text(proto::Experiment experiment) {
  spell_out(experiment);
  std::string text;
  TextFormat::PrintToString(experiment, &text);
  return text;
}

std::vector<std::string> experiment_differences(const std::string& before, const std::string& after) {
  const auto a = flat_fields(before);
  const auto b = flat_fields(after);
  const auto value = [](const std::map<std::string, std::string>& m, const std::string& k) {
    const auto found = m.find(k);
    return found == m.end() ? std::string("(not set)") : found->second;
  };
  std::map<std::string, std::string> keys(a);
  keys.insert(b.begin(), b.end());
  std::vector<std::string> out;
  for (const auto& [key, unused] : keys) {
    if (value(a, key) != value(b, key))
      out.push_back(str_cat(key, ": ", value(a, key), " -> ", value(b, key)));
  }
  return out;
}

}  // namespace pesc
