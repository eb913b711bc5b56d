#include "launcher/bench_scaling_tables.h"

#include <cstdarg>
#include <cstdio>

#include "ops/core/check.h"
#include "ops/core/device.h"

namespace pesc {
namespace {

[[gnu::format(printf, 1, 2)]] std::string formatted(const char* format, ...) {
  char text[400];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof(text), format, values);
  va_end(values);
  return text;
}

std::string efficiency_of(const nlohmann::json& point) {
  return point.contains("efficiency") ? formatted("%.3f", point["efficiency"].get<double>()) : "";
}

std::string point_row(const nlohmann::json& p) {
  const nlohmann::json& report = p["report"];
  const double seconds = report["step_seconds_median"];
  const double rate = p["tokens_per_second"];
  const double exposed = report["phase_seconds_rank0"][phase_name(Phase::kCommunication)];
  double all = 0;  // of the same steps, those with timing events
  for (const auto& [name, phase] : report["phase_seconds_rank0"].items()) all += phase.get<double>();
  return formatted("| %s | %d | %d | %d | %.0f | %.1f | %.1f | %s | %s | %.2f | %.3f |\n",
                   p["name"].get<std::string>().c_str(), p["ranks"].get<int>(), p["tp"].get<int>(),
                   p["ep"].get<int>(), p["tokens_per_step"].get<double>() / p["ranks"].get<double>(),
                   1e3 * seconds, rate / 1e3, efficiency_of(p).c_str(),
                   p["against"].get<std::string>().c_str(), 1e3 * exposed, all > 0 ? exposed / all : 0);
}

std::string collective_rows(const nlohmann::json& p) {
  std::string rows;
  if (!p["report"].contains("communication")) return rows;
  for (const nlohmann::json& c : p["report"]["communication"]) {
    const double sent = c["sent_bytes"], least = c["least_bytes"], seconds = c["seconds"];
    const double library = c["library_seconds"];
    if (sent == 0) continue;
    rows += formatted("| %s | %s | %.3f | %s | %.2f | %.2f | %.2f | %.2f |\n",
                      p["name"].get<std::string>().c_str(), c["name"].get<std::string>().c_str(), sent / 1e6,
                      least > 0 ? formatted("%.3f", sent / least).c_str() : "", 1e3 * seconds,
                      seconds > 0 ? sent / seconds / 1e9 : 0, library > 0 ? sent / library / 1e9 : 0,
                      seconds > 0 ? library / seconds : 0);
  }
  return rows;
}

}  // namespace

std::string point_line(const nlohmann::json& p) {
  const std::string name = p["name"];
  if (p["status"] != "done")
    return str_cat(name, ": ", p["status"].get<std::string>(), ": ", p["why"].get<std::string>());
  const nlohmann::json& report = p["report"];
  std::string line = formatted("%s: %.1f ms a step, %.2fk tokens/s", name.c_str(),
                               1e3 * report["step_seconds_median"].get<double>(),
                               p["tokens_per_second"].get<double>() / 1e3);
  if (p.contains("efficiency"))
    line += str_cat(", ", efficiency_of(p), " of ", p["against"].get<std::string>());
  return line;
}

std::string scaling_tables(const nlohmann::json& results) {
  std::string points, collectives, others;
  for (const nlohmann::json& p : results["points"]) {
    if (p["status"] != "done") {
      others += str_cat("| ", p["name"].get<std::string>(), " | ", p["status"].get<std::string>(), " | ",
                        p["why"].get<std::string>(), " |\n");
      continue;
    }
    points += point_row(p);
    collectives += collective_rows(p);
  }
  std::string text;
  if (!points.empty()) {
    text +=
        "\n| point | ranks | tp | ep | tokens a rank | ms a step | k tokens/s | efficiency | against | "
        "exposed "
        "communication, ms | share of the step |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | "
        "--- | --- "
        "|\n" +
        points;
  }
  if (!collectives.empty()) {
    text +=
        "\n| point | collectives | sent by a rank, MB | of the least | ms | GB/s | GB/s of the library alone "
        "| of "
        "the library |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n" +
        collectives;
  }
  if (!others.empty()) text += "\n| point | | why |\n| --- | --- | --- |\n" + others;
  return text;
}

}  // namespace pesc
