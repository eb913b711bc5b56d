#include "launcher/help.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <variant>

#include "ops/core/check.h"
#include "runtime/terminal/terminal.h"

namespace pesc {
namespace {

constexpr size_t kWidth = 100, kColumn = 24;

std::string heading(const std::string& text, Headings headings) {
  return headings == Headings::kBold ? str_cat("\033[1m", text, "\033[0m") : text;
}

// The text in lines of at most kWidth, all but the first indented.
std::string wrapped(const std::string& text, size_t indent) {
  std::string out;
  size_t column = indent;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    if (begin > 0 && column + 1 + end - begin > kWidth) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (begin > 0) {
      out += ' ';
      ++column;
    }
    out += text.substr(begin, end - begin);
    column += end - begin;
    begin = end + 1;
  }
  return out;
}

// "  name      text", the text in a column of its own.
std::string table_row(std::string name, const std::string& text, size_t column = kColumn) {
  name = "  " + name;
  name.resize(std::max(name.size() + 1, column), ' ');
  return name + wrapped(text, column) + "\n";
}

}  // namespace

std::string flag_help(const Flag& flag) {
  const std::string text(flag.help);
  if (text.find("default") != std::string::npos) return text;
  const CommandLine usual;
  const auto with = [&text](auto value) { return str_cat(text, " (default ", value, ")"); };
  if (const auto* count = std::get_if<int CommandLine::*>(&flag.target)) return with(usual.**count);
  if (const auto* rate = std::get_if<double CommandLine::*>(&flag.target)) return with(usual.**rate);
  if (const auto* id = std::get_if<uint64_t CommandLine::*>(&flag.target)) return with(usual.**id);
  return text;
}

std::string see_help(std::string_view verb) {
  return str_cat("; see `pesc ", verb, verb.empty() ? "" : " ", "--help`");
}

std::string usage(Headings headings) {
  std::string text = "usage: pesc VERB [flags]\n\n" + heading("verbs", headings) + "\n";
  for (const Verb& verb : verbs()) text += table_row(std::string(verb.name), std::string(verb.summary), 14);
  text += "\n" + heading("to read on", headings) + "\n";
  text += table_row("pesc VERB --help", "what a verb does, its flags, examples and exit codes");
  text += table_row("pesc doctor", "what this machine has, and what is missing for what");
  text +=
      table_row("configs/README.md", "all fields of an experiment: --set path.to.field=value overrides one");
  return text;
}

std::string help_text(const Verb& verb, Headings headings) {
  std::string text = str_cat("pesc ", verb.name, ": ", verb.summary, "\n\n", heading("usage", headings),
                             "\n  pesc ", verb.name, " ", verb.arguments, "\n\n  ");
  text += wrapped(std::string(verb.about), 2) + "\n";
  std::string rows;
  for (const Flag& flag : flags()) {
    const std::string value = flag.value.empty() ? "" : " " + std::string(flag.value);
    if (reads(verb.name, flag)) rows += table_row(dashed_name(flag) + value, flag_help(flag));
  }
  if (!rows.empty()) text += str_cat("\n", heading("flags", headings), "\n", rows);
  text += str_cat("\n", heading("examples", headings), "\n");
  for (const Example& example : verb.examples) {
    if (!example.command.empty()) text += str_cat("  # ", example.what, "\n  ", example.command, "\n");
  }
  text += str_cat("\n", heading("exit codes", headings), "\n");
  std::istringstream codes{std::string(verb.exit_codes)};
  for (int code = 0; codes >> code;)
    text += table_row(std::to_string(code), std::string(exit_code_meaning(verb, code)), 8);
  return text;
}

int run_help(const CommandLine& command) {
  const Headings headings = uses_colour(STDOUT_FILENO) ? Headings::kBold : Headings::kPlain;
  const std::string text =
      command.topic.empty() ? usage(headings) : help_text(known_verb(command.topic), headings);
  std::fwrite(text.data(), 1, text.size(), stdout);
  return 0;
}

}  // namespace pesc
