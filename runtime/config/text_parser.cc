#include "runtime/config/text_parser.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <array>
#include <compare>
#include <numeric>

#include "ops/core/check.h"

namespace pesc {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Levenshtein's distance, one row of the table at a time.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// A field that an earlier version had. Recorded configurations may hold it; for the rest it is an unknown
// name about which more can be said than the nearest one.
struct GoneField {
  std::string_view message, name, advice;
};
constexpr std::array kGoneFields{
    GoneField{"Parallel", "expert_exchange", "tokens always travel to their experts; leave it out"},
    GoneField{"HeldOutSource", "weight", "every held-out row is read exactly once; leave it out"},
};
const GoneField* gone_field(std::string_view message, std::string_view name) {
  const auto found = std::find_if(kGoneFields.begin(), kGoneFields.end(),
                                  [&](const GoneField& g) { return g.message == message && g.name == name; });
  return found == kGoneFields.end() ? nullptr : &*found;
}

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
    if (!names.empty()) {
      return {str_cat("'", parts[0], "' is not a value of ", parts[1], "; did you mean '",
                      nearest_name(parts[0], names), "'? It is one of ", joined(names)),
              parts[0]};
    }
  } else if (parts.size() >= 2 && is("Field \"", "\" is specified along with field \"")) {
    return {str_cat("'", parts[0], "' and '", parts[1], "' exclude each other; leave one out"), parts[0]};
  } else if (parts.size() == 1 && is("Non-repeated field \"", "\" is specified multiple times")) {
    return {str_cat("'", parts[0], "' is set twice; leave one out"), parts[0]};
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
  // Of recorded text alone, which may have unknown fields. Those that are gone are no mistake.
  void AddWarning(int line, int column, const std::string& message) override {
    const std::vector<std::string> parts = quoted_parts(message);
    if (parts.size() == 2 && gone_field(parts[0].substr(parts[0].rfind('.') + 1), parts[1]) != nullptr)
      return;
    AddError(line, column, message);
  }
  [[nodiscard]] const std::string& errors() const { return errors_; }

 private:
  const Descriptor& root_;
  const std::string& text_;
  Place place_;
  std::string errors_;
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
  if (!parser.ParseFromString(text, &message) || !collector.errors().empty())
    throw DataError(collector.errors());
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

std::string unknown_field(const std::string& name, const Descriptor& message) {
  if (const GoneField* gone = gone_field(message.name(), name))
    return str_cat("no field '", name, "' in ", message.name(), "; ", gone->advice);
  return str_cat("no field '", name, "' in ", message.name(), "; did you mean '",
                 nearest_name(name, field_names(message)), "'?");
}

std::vector<std::string> field_names(const Descriptor& message) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return names;
}

std::string joined(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& n : names) out += (out.empty() ? "" : ", ") + n;
  return out;
}

std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates) {
  std::string best;
  size_t distance = SIZE_MAX;
  for (const std::string& c : candidates) {
    const size_t d = edit_distance(name, c);
    if (d < distance) {
      distance = d;
      best = c;
    }
  }
  return best;
}

}  // namespace pesc
