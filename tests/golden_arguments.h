// The command line of golden_check.
#pragma once

#include <algorithm>
#include <charconv>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "ops/core/check.h"
#include "tests/golden_report.h"

namespace pesc {

struct Arguments {
  std::vector<std::string> folders;
  std::string corrupt;
  int tp = 1, ep = 1, threads = 0, chunks = 1;
  double buffer_factor = Capacity{}.buffer_factor;
  std::string device = "cpu", compute = "f32", frozen = "plain", exchange = "tokens";
};

inline constexpr const char* kUsage =
    "usage: golden_check CASE_DIR... [--tp T] [--ep E] [--buffer_factor F] [--chunks C] [--threads N] "
    "[--device "
    "cpu|cuda|cuda-shared] "
    "[--compute f32|bf16|fp8] [--frozen plain|fp8|nf4] [--exchange tokens|weights] [--corrupt QUANTITY|each]";

template <class T>
void parse_number(const std::string& flag, const std::string& text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc{} || end != text.data() + text.size() || !(out > 0))
    throw UsageError(str_cat(flag, " needs a positive number, not '", text, "'\n", kUsage));
}

inline Arguments parse(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    std::string arg = argv[i];
    if (!arg.starts_with("--")) {
      a.folders.push_back(arg);
      continue;
    }
    std::string value;
    if (const size_t equals = arg.find('='); equals != std::string::npos) {
      value = arg.substr(equals + 1);
      arg.resize(equals);
    } else if (i + 1 < argc) {
      value = argv[++i];
    }
    if (arg == "--tp") {
      parse_number(arg, value, a.tp);
    } else if (arg == "--ep") {
      parse_number(arg, value, a.ep);
    } else if (arg == "--chunks") {
      parse_number(arg, value, a.chunks);
    } else if (arg == "--threads") {
      parse_number(arg, value, a.threads);
    } else if (arg == "--buffer_factor") {
      parse_number(arg, value, a.buffer_factor);
    } else if (arg == "--device") {
      a.device = value;
      if (value != "cpu" && value != "cuda" && value != "cuda-shared")
        throw UsageError(str_cat("--device: no device '", value, "'\n", kUsage));
    } else if (arg == "--compute") {
      a.compute = value;
      if (value != "f32" && value != "bf16" && value != "fp8")
        throw UsageError(str_cat("--compute: no type '", value, "'\n", kUsage));
    } else if (arg == "--frozen") {
      a.frozen = value;
      if (value != "plain" && value != "fp8" && value != "nf4")
        throw UsageError(str_cat("--frozen: no type '", value, "'\n", kUsage));
    } else if (arg == "--exchange") {
      a.exchange = value;
      if (value != "tokens" && value != "weights")
        throw UsageError(str_cat("--exchange: nothing called '", value, "' is exchanged\n", kUsage));
    } else if (arg == "--corrupt") {
      a.corrupt = value;
      if (value != kEach && std::find(kQuantities.begin(), kQuantities.end(), value) == kQuantities.end())
        throw UsageError(str_cat("--corrupt: no quantity '", value, "'"));
    } else {
      throw UsageError(kUsage);
    }
  }
  if (a.folders.empty()) throw UsageError(kUsage);
  if (a.compute != "f32" && a.device == "cpu")
    throw UsageError(str_cat("--compute ", a.compute, " needs --device cuda\n", kUsage));
  if (a.compute == "fp8" && a.frozen == "plain")
    throw UsageError(str_cat("--compute fp8 needs --frozen fp8 or nf4\n", kUsage));
  return a;
}

}  // namespace pesc
