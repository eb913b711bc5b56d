#include "runtime/config/unknown_names.h"

#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <numeric>

#include "ops/core/check.h"
#include "runtime/config/field_aliases.h"

namespace pesc {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

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

// "did you mean 'seed'?" of the nearest candidate; empty where even that one is another word: a typing mistake
// changes at most a third of the letters.
std::string guess(const std::string& name, const std::vector<std::string>& candidates) {
  const std::string nearest = nearest_name(name, candidates);
  const size_t most = std::max<size_t>(1, (name.size() + 1) / 3);
  if (nearest.empty() || edit_distance(name, nearest) > most) return "";
  return str_cat("did you mean '", nearest, "'?");
}

// A field that an earlier version had and that no other replaces. A recorded configuration may have it;
// elsewhere it is an unknown name, about which more can be said than the nearest one.
struct GoneField {
  std::string_view message, name, advice;
};
constexpr std::array kGoneFields{
    GoneField{"EvalSource", "weight", "every evaluation row is read exactly once"},
};
const GoneField* gone_field(std::string_view message, std::string_view name) {
  const auto found = std::find_if(kGoneFields.begin(), kGoneFields.end(),
                                  [&](const GoneField& g) { return g.message == message && g.name == name; });
  return found == kGoneFields.end() ? nullptr : &*found;
}

// The paths of all fields called `name` below message `d`: "train.seed", "generate.seed".
void find_paths(const Descriptor& d, const std::string& prefix, const std::string& name,
                std::vector<std::string>& out) {
  for (int i = 0; i < d.field_count(); ++i) {
    const FieldDescriptor* f = d.field(i);
    const std::string path = prefix + f->name() + (f->is_repeated() && f->message_type() ? "[]" : "");
    if (f->name() == name) out.push_back(path);
    if (f->message_type() != nullptr) find_paths(*f->message_type(), path + ".", name, out);
  }
}

// Of messages in experiment.proto; others have no experiment to look in.
std::vector<std::string> paths_elsewhere(const Descriptor& message, const std::string& name) {
  std::vector<std::string> paths;
  const Descriptor* root = message.file()->FindMessageTypeByName("Experiment");
  if (root != nullptr) find_paths(*root, "", name, paths);
  return paths;
}

}  // namespace

bool is_gone_field(std::string_view message, std::string_view name) {
  return gone_field(message, name) != nullptr;
}

std::string unknown_field(const std::string& name, const Descriptor& message) {
  const std::string what = str_cat("no field '", name, "' in ", message.name(), "; ");
  if (const GoneField* gone = gone_field(message.name(), name))
    return str_cat(what, "leave it out: ", gone->advice);
  if (const std::string alias = field_alias_answer(message.name(), name); !alias.empty()) return what + alias;
  std::string elsewhere;
  for (const std::string& path : paths_elsewhere(message, name))
    elsewhere += (elsewhere.empty() ? "" : " or ") + path;
  if (!elsewhere.empty()) return str_cat(what, "it is a field of another message: ", elsewhere);
  const std::string near = guess(name, field_names(message));
  return what + (near.empty() ? str_cat("it has ", joined(field_names(message))) : near);
}

std::string unknown_value(const std::string& value, const std::string& field,
                          const std::vector<std::string>& names) {
  std::string upper = value;
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  const std::string alias = value_alias_answer(field, value);
  const std::string answer = alias.empty() ? guess(upper, names) : alias + ".";
  return str_cat("'", value, "' is not a value of ", field, "; ", answer,
                 answer.empty() ? "it is one of " : " It is one of ", joined(names));
}

std::string unknown_linear(const std::string& name, const std::vector<std::string>& linears) {
  if (name == "all-linear")  // of PEFT
    return str_cat("is '", name, "'; leave it out: all ", linears.size(),
                   " linears of a layer are the default");
  const std::string near = guess(name, linears);
  return str_cat("is '", name, "', which is no linear of a layer; ", near,
                 near.empty() ? "it is one of " : " It is one of ", joined(linears));
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
