#include "runtime/config/text_parser.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <compare>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/config/field_aliases.h"
#include "runtime/config/unknown_names.h"

namespace pesc {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::vector<std::string> enum_names(const FieldDescriptor& f) {
  std::vector<std::string> names;
  for (int i = 0; i < f.enum_type()->value_count(); ++i) names.push_back(f.enum_type()->value(i)->name());
  return names;
}

// The values of the enum field called `field`; protobuf's message names the field but not its message.
std::vector<std::string> enum_candidates(const Descriptor& d, const std::string& field) {
  for (int i = 0; i < d.field_count(); ++i) {
    const FieldDescriptor* f = d.field(i);
    if (f->enum_type() != nullptr && f->name() == field) return enum_names(*f);
    if (f->message_type() == nullptr) continue;
    auto found = enum_candidates(*f->message_type(), field);
    if (!found.empty()) return found;
  }
  return {};
}

// A message of protobuf's, and the name in the text that it is about (empty: the place reported is right).
struct Explanation {
  std::string message;
  std::string name;
};

// What stands between double quotes, in order. (By hand: g++ 12 under the sanitizers warns inside
// std::regex.)
std::vector<std::string> quoted_parts(const std::string& message) {
  std::vector<std::string> parts;
  for (size_t open = message.find('"'); open != std::string::npos;) {
    const size_t close = message.find('"', open + 1);
    if (close == std::string::npos) break;
    parts.push_back(message.substr(open + 1, close - open - 1));
    open = message.find('"', close + 1);
  }
  return parts;
}

// Rewrites protobuf's own messages about names into ones that say what would be right.
Explanation explain(const std::string& message, const Descriptor& root) {
  const std::vector<std::string> parts = quoted_parts(message);
  const auto is = [&](const char* start, const char* middle) {
    return message.starts_with(start) && message.find(middle) != std::string::npos;
  };
  if (parts.size() == 2 && is("Message type \"", "\" has no field named \"")) {
    const Descriptor* d = root.file()->pool()->FindMessageTypeByName(parts[0]);
    if (d != nullptr) return {unknown_field(parts[1], *d), parts[1]};
  } else if (parts.size() == 2 && is("Unknown enumeration value of \"", "\" for field \"")) {
    const std::vector<std::string> names = enum_candidates(root, parts[1]);
    if (!names.empty()) return {unknown_value(parts[0], parts[1], names), parts[0]};
  } else if (parts.size() >= 2 && is("Field \"", "\" is specified along with field \"")) {
    return {str_cat("'", parts[0], "' and '", parts[1], "' exclude each other; leave one out"), parts[0]};
  } else if (parts.size() == 1 && is("Non-repeated field \"", "\" is specified multiple times")) {
    return {str_cat("'", parts[0], "' is set twice; leave one out"), parts[0]};
  } else if (message.starts_with("Expected integer or identifier, got: \"")) {
    return {"the value of an enum stands without quotes", ""};
  } else if (message == "Expected identifier, got: {") {
    return {
        "'{' stands where a field's name is expected; an experiment is protobuf text, not JSON: "
        "name: \"x\" train { max_steps: 5 }",
        ""};
  } else if (constexpr std::string_view kNoString = "Expected string, got: ";
             message.starts_with(kNoString)) {
    return {str_cat("a text stands in double quotes, not as ", message.substr(kNoString.size())), ""};
  } else if (message == "Expected integer, got: -") {
    return {"the value is negative; this field takes whole numbers from 0 on", ""};
  }
  return {message, ""};
}

struct Position {
  int line = 0, column = 0;  // both from 0
  auto operator<=>(const Position&) const = default;
};

class Silent : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int, int, const std::string&) override {}
};

// Protobuf complains about a name when it has already read past it, which may be lines further down. Finds
// the name's last standing before there.
Position position_before(const std::string& text, Position reported, const std::string& name) {
  google::protobuf::io::ArrayInputStream stream(text.data(), static_cast<int>(text.size()));
  Silent silent;
  google::protobuf::io::Tokenizer tokens(&stream, &silent);
  tokens.set_comment_style(google::protobuf::io::Tokenizer::SH_COMMENT_STYLE);
  Position found = reported;
  while (tokens.Next()) {
    const Position at{tokens.current().line, tokens.current().column};
    if (at >= reported) break;
    if (tokens.current().text == name) found = at;
  }
  return found;
}

class Collector : public google::protobuf::io::ErrorCollector {
 public:
  using Place = std::function<std::string(Position)>;
  Collector(const Descriptor& root, const std::string& text, Place place)
      : root_(root), text_(text), place_(std::move(place)) {}
  void AddError(int line, int column, const std::string& message) override {
    const Explanation e = explain(message, root_);
    Position at{line, column};
    if (!e.name.empty()) at = position_before(text_, at, e.name);
    errors_ += str_cat(errors_.empty() ? "" : "\n", place_(at), ": ", e.message);
  }
  // Of recorded text alone, which may have unknown fields. Those that are gone are no mistake; one that has
  // another name now is reported as what it is.
  void AddWarning(int line, int column, const std::string& message) override {
    const std::vector<std::string> parts = quoted_parts(message);
    if (parts.size() == 2) {
      const std::string of = parts[0].substr(parts[0].rfind('.') + 1);
      if (is_gone_field(of, parts[1])) return;
      if (const std::string_view now = name_since_renaming(of, parts[1]); !now.empty()) {
        if (renamed_.empty()) renamed_ = str_cat("'", parts[1], "' in ", of, " is ", now, " now");
        return;
      }
    }
    AddError(line, column, message);
  }
  [[nodiscard]] const std::string& errors() const { return errors_; }
  // "'steps' in Train is train.max_steps now": the first field with an old name; empty: none.
  [[nodiscard]] const std::string& renamed() const { return renamed_; }

 private:
  const Descriptor& root_;
  const std::string& text_;
  Place place_;
  std::string errors_, renamed_;
};

void parse(const std::string& text, Message& message, Collector& collector, TextLocations* locations) {
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&collector);
  if (locations != nullptr) parser.WriteLocationsTo(&locations->tree);
  parser.SetRecursionLimit(32);
  if (!parser.ParseFromString(text, &message)) throw UsageError(collector.errors());
}

}  // namespace

void parse_recorded_text(const std::string& text, const std::string& where, Message& message) {
  Collector collector(*message.GetDescriptor(), text,
                      [&where](Position at) { return str_cat(where, ":", at.line + 1, ":", at.column + 1); });
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&collector);
  parser.AllowUnknownField(true);
  parser.SetRecursionLimit(32);
  const bool parsed = parser.ParseFromString(text, &message);
  if (!collector.renamed().empty()) {
    throw DataError(str_cat("the checkpoint was written by a pesc with the old field names (",
                            collector.renamed(),
                            "), which this one cannot load; use the pesc that wrote it, or another run_dir"));
  }
  if (!parsed || !collector.errors().empty()) throw DataError(collector.errors());
}

void parse_text(const std::string& text, const std::string& where, Message& message,
                TextLocations& locations) {
  Collector collector(*message.GetDescriptor(), text,
                      [&where](Position at) { return str_cat(where, ":", at.line + 1, ":", at.column + 1); });
  parse(text, message, collector, &locations);
}

void parse_inline_text(const std::string& text, const std::string& where, Message& message) {
  Collector collector(*message.GetDescriptor(), text, [&where](Position) { return where; });
  parse(text, message, collector, nullptr);
}

}  // namespace pesc
