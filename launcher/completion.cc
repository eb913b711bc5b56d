#include "launcher/completion.h"

#include <cstdio>
#include <string_view>

#include "configs/schema/experiment.pb.h"
#include "launcher/flags.h"
#include "launcher/help.h"
#include "launcher/verbs.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

// Names and values below `path`, which is empty or ends with ".".
void add_fields(const Descriptor& message, const std::string& path, FieldNames& all) {
  std::vector<std::string>& names = all.names[path.empty() ? "" : path.substr(0, path.size() - 1)];
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    const bool whole = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    std::string name = field.name();
    if (whole && field.is_repeated()) name += "[0]";
    names.push_back(name + (whole ? "." : "="));
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_BOOL) all.values[path + name] = {"true", "false"};
    if (field.cpp_type() != FieldDescriptor::CPPTYPE_ENUM) continue;
    for (int v = 0; v < field.enum_type()->value_count(); ++v)
      all.values[path + name].push_back(field.enum_type()->value(v)->name());
  }
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE)
      add_fields(*field.message_type(), str_cat(path, field.name(), field.is_repeated() ? "[0]." : "."), all);
  }
}

// The words in one string of bash. They are names of ours, without quotes and spaces.
template <class Words>
std::string quoted_words(const Words& words) {
  std::string text;
  for (const auto& word : words) text += str_cat(text.empty() ? "" : " ", word);
  return "'" + text + "'";
}

// "  [key]='a b'", a line of an associative array.
template <class Words>
std::string array_entry(std::string_view key, const Words& words) {
  return str_cat("  ['", key, "']=", quoted_words(words), "\n");
}

// What the value of a flag is completed with: words, F for files, D for folders; T: with nothing.
std::vector<std::string_view> value_kinds(const Flag& flag) {
  std::vector<std::string_view> kinds;
  if (!flag.choices.empty()) kinds.push_back(flag.choices);
  if (flag.value == "FILE" || flag.value == "PATH") kinds.push_back("F");
  if (flag.value == "DIR" || flag.value == "FOLDER") kinds.push_back("D");
  if (kinds.empty()) kinds.push_back("T");
  return kinds;
}

// Everything that does not depend on the tables. COMP_WORDS has "--set a.b=c" as "--set" "a.b" "=" "c" where "=" is
// in COMP_WORDBREAKS, as it usually is; _pesc puts such words together again.
constexpr std::string_view kFunctions = R"bash(
# Those of the words in $2 that begin with $1.
_pesc_words() {
  mapfile -t COMPREPLY < <(compgen -W "$2" -- "$1")
}

# Files ($2 is F) or folders (D) that begin with $1, beside the words in $3.
_pesc_paths() {
  compopt -o filenames 2> /dev/null
  local kind=-f
  [[ $2 == D ]] && kind=-d
  mapfile -t COMPREPLY < <(compgen -W "$3" -- "$1"; compgen "$kind" -- "$1")
}

# The field of an experiment, or its value: train.max_steps=20.
_pesc_set() {
  local word=$1 parent=. prefix='' name names=()
  if [[ $word == *=* ]]; then
    name=$(_pesc_first "${word%%=*}")
    _pesc_before+="${word%%=*}="
    if [[ -n ${_pesc_values[$name]-} ]]; then
      _pesc_words "${word#*=}" "${_pesc_values[$name]}"
    else
      _pesc_paths "${word#*=}" F ''
    fi
    return
  fi
  if [[ $word == *.* ]]; then
    prefix="${word%.*}."
    parent=$(_pesc_first "${word%.*}")
  fi
  read -r -a names <<< "${_pesc_fields[$parent]-}"
  for name in "${names[@]}"; do
    if [[ $prefix$name == "$word"* ]]; then COMPREPLY+=("$prefix$name"); fi
  done
  # Behind a field comes its value, behind a message what is in it.
  compopt -o nospace 2> /dev/null
}

# The path with each index 0, as the lists of fields have it.
_pesc_first() {
  local path=$1
  while [[ $path =~ ^(.*)\[[1-9][0-9]*\](.*)$ ]]; do path="${BASH_REMATCH[1]}[0]${BASH_REMATCH[2]}"; done
  printf %s "$path"
}

_pesc() {
  local words=() word glue='' verb='' flag='' after='' kind _pesc_before='' i
  COMPREPLY=()
  for ((i = 1; i <= COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    if [[ $word == '=' && ${#words[@]} -gt 0 ]]; then
      words[-1]+='='
      glue=yes
    elif [[ -n $glue ]]; then
      words[-1]+=$word
      glue=''
    else
      words+=("$word")
    fi
  done
  local current=${words[-1]-}
  unset 'words[-1]'
  # The verb, and the flag whose value is asked for. Behind `launch ... --` stands a command of train.
  for word in "${words[@]}"; do
    if [[ $word == -- && $verb == launch ]]; then
      verb=''
      flag=''
      after=yes
    elif [[ -n $flag ]]; then
      flag=''
    elif [[ $word == -* ]]; then
      if [[ $word != *=* && -n ${_pesc_kinds[$word]-} ]]; then flag=$word; fi
    elif [[ -z $verb ]]; then
      verb=$word
    elif [[ $verb == help || $verb == completion ]]; then
      return
    fi
  done
  if [[ -z $flag && $current == -*=* ]]; then
    flag=${current%%=*}
    _pesc_before="$flag="
    current=${current#*=}
  fi
  if [[ $flag == --set ]]; then
    _pesc_set "$current"
  elif [[ -n $flag ]]; then
    kind=" ${_pesc_kinds[$flag]-} "
    case $kind in
      *' T '*) ;;
      *' F '*) _pesc_paths "$current" F "${kind/ F / }" ;;
      *' D '*) _pesc_paths "$current" D "${kind/ D / }" ;;
      *) _pesc_words "$current" "$kind" ;;
    esac
  elif [[ -n $after && -z $verb ]]; then
    _pesc_words "$current" train
  elif [[ -z $verb ]]; then
    _pesc_words "$current" "${!_pesc_flags[*]} --help"
  elif [[ $verb == help && $current != -* ]]; then
    _pesc_words "$current" "${!_pesc_flags[*]}"
  elif [[ $verb == completion && $current != -* ]]; then
    _pesc_words "$current" bash
  else
    _pesc_words "$current" "${_pesc_flags[$verb]-} --help"
  fi
  # Where "=" parts words, readline replaces what stands behind the last one; else the whole word.
  if [[ $COMP_WORDBREAKS != *=* ]]; then
    for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=$_pesc_before${COMPREPLY[i]}; done
  fi
}

complete -F _pesc pesc
)bash";

}  // namespace

FieldNames field_names_below(const Descriptor& message) {
  FieldNames all;
  add_fields(message, "", all);
  return all;
}

std::string bash_completion() {
  std::string text =
      "# bash completion of pesc, written by `pesc completion bash`. For this shell: source <(pesc "
      "completion "
      "bash)\n";
  std::string flags_of_verbs, kinds, fields, values;
  for (const Verb& verb : verbs()) {
    std::vector<std::string> names;
    for (const Flag& flag : flags()) {
      if (reads(verb.name, flag)) names.push_back(dashed_name(flag));
    }
    if (verb.name == "launch") names.push_back("--");
    flags_of_verbs += array_entry(verb.name, names);
  }
  for (const Flag& flag : flags()) {
    if (!flag.value.empty()) kinds += array_entry(dashed_name(flag), value_kinds(flag));
  }
  const FieldNames all = field_names_below(*proto::Experiment::descriptor());
  for (const auto& [path, names] : all.names) fields += array_entry(path.empty() ? "." : path, names);
  for (const auto& [path, names] : all.values) values += array_entry(path, names);
  // -g: the script may be read by a function.
  text += "declare -gA _pesc_flags=(\n" + flags_of_verbs + ")\n";
  text += "declare -gA _pesc_kinds=(\n" + kinds + ")\n";
  text += "declare -gA _pesc_fields=(\n" + fields + ")\n";
  text += "declare -gA _pesc_values=(\n" + values + ")\n";
  text += kFunctions;
  return text;
}

int run_completion(const CommandLine& command) {
  if (command.topic != "bash") {
    throw UsageError(str_cat("pesc completion needs the name of a shell, and ",
                             command.topic.empty() ? "bash is the only one that it knows"
                                                   : "bash is the only one; not '" + command.topic + "'",
                             see_help("completion")));
  }
  const std::string text = bash_completion();
  std::fwrite(text.data(), 1, text.size(), stdout);
  return 0;
}

}  // namespace pesc
