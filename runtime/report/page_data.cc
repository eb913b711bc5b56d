// A run as the page's script is given it: rounded numbers, cut texts.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "runtime/report/report_page.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr size_t kMostTagsShown = 16;
constexpr size_t kMostLaunches = 100;
constexpr size_t kMostEvalPoints = 1000;
constexpr size_t kMostEvaluations = 12;
constexpr double kMostAnswerBytes = 400e3;  // of all runs

// Six digits are enough for an eye.
double rounded(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", value);
  return std::strtod(text, nullptr);
}

nlohmann::json curve_json(const MinMaxCurve& curve) {
  nlohmann::json x = nlohmann::json::array(), first = x, mean = x, low = x, high = x;
  bool single = true;
  for (const MinMaxCurve::Bucket& b : curve.buckets()) {
    single &= b.points == 1;
    first.push_back(b.first);
    x.push_back(b.last);
    mean.push_back(rounded(b.mean()));
    low.push_back(rounded(b.min));
    high.push_back(rounded(b.max));
  }
  nlohmann::json j = {{"to", x}, {"mean", mean}};
  if (!single) j.update({{"from", first}, {"low", low}, {"high", high}});
  if (curve.not_finite() > 0) j["not_finite"] = curve.not_finite();
  return j;
}

// Shares as thousandths of what each expert would have if all were alike.
nlohmann::json loads(const std::vector<double>& sums, double divisor, int64_t experts) {
  nlohmann::json out = nlohmann::json::array();
  for (const double sum : sums) {
    const double load = divisor > 0 ? 1000 * sum / divisor * static_cast<double>(experts) : 0;
    out.push_back(static_cast<int64_t>(std::llround(load)));
  }
  return out;
}

nlohmann::json experts_json(const ExpertHistory& history) {
  // The tags with most tokens.
  std::map<std::string, double> tokens;
  for (const ExpertHistory::Slice& s : history.slices()) {
    for (const auto& [tag, of_tag] : s.tags) tokens[tag] += of_tag.tokens;
  }
  std::vector<std::pair<double, std::string>> most;
  for (const auto& [tag, n] : tokens) most.emplace_back(-n, tag);
  std::sort(most.begin(), most.end());
  if (most.size() > kMostTagsShown) most.resize(kMostTagsShown);
  nlohmann::json j = {{"layers", history.layers()}, {"experts", history.experts()}};
  for (const auto& [n, tag] : most) j["tags"].push_back({{"tag", printable(tag)}, {"tokens", -n}});
  for (const ExpertHistory::Slice& s : history.slices()) {
    nlohmann::json slice = {{"first", s.first}, {"last", s.last}};
    slice["load"] = loads(s.layers, static_cast<double>(s.steps), history.experts());
    for (const auto& [n, tag] : most) {
      const auto found = s.tags.find(tag);
      slice["tags"].push_back(found == s.tags.end()
                                  ? nlohmann::json()
                                  : loads(found->second.share, found->second.tokens, history.experts()));
    }
    j["slices"].push_back(slice);
  }
  return j;
}

nlohmann::json score_json(const EvaluationScore& score) {
  nlohmann::json j = {{"loss", rounded(score.loss)}};
  if (score.rows > 0) j.update({{"rows", score.rows}, {"exact", rounded(score.exact)}});
  if (!score.expert_share.empty())
    j["load"] = loads(score.expert_share, 1, static_cast<int64_t>(score.expert_share.size()));
  return j;
}

std::string evaluation_name(const Evaluation& e) {
  return e.base ? "base" : "step " + std::to_string(e.step);
}

// The first one, which is the base's where it was evaluated, and the last ones.
nlohmann::json evaluations_json(const std::vector<Evaluation>& all) {
  nlohmann::json out = nlohmann::json::array();
  for (size_t i = 0; i < all.size(); ++i) {
    if (i > 0 && all.size() - i >= kMostEvaluations) continue;
    nlohmann::json j = {{"name", evaluation_name(all[i])}, {"total", score_json(all[i].total)}};
    for (const auto& [tag, score] : all[i].datasets) j["datasets"][printable(tag)] = score_json(score);
    out.push_back(j);
  }
  return out;
}

// The answers of the first and the last evaluation to the same questions.
nlohmann::json answers_json(const std::vector<Evaluation>& all, double share) {
  if (all.empty()) return nlohmann::json::array();
  const Evaluation &before = all.front(), &after = all.back();
  const size_t texts = 4 * std::max<size_t>(after.answers.size(), 1);
  const auto most =
      static_cast<size_t>(std::clamp(kMostAnswerBytes * share / static_cast<double>(texts), 100.0, 4000.0));
  const auto text = [most](const std::string& t) { return printable(t, most, Keep::kLines); };
  nlohmann::json out = nlohmann::json::array();
  for (const EvaluationAnswer& a : after.answers) {
    nlohmann::json j = {
        {"dataset", printable(a.dataset)}, {"question", text(a.question)}, {"expected", text(a.expected)}};
    const auto same = std::find_if(
        before.answers.begin(), before.answers.end(),
        [&](const EvaluationAnswer& b) { return b.dataset == a.dataset && b.question == a.question; });
    if (all.size() > 1 && same != before.answers.end())
      j["before"] = {{"name", evaluation_name(before)}, {"text", text(same->answer)}};
    j["after"] = {{"name", evaluation_name(after)}, {"text", text(a.answer)}};
    out.push_back(j);
  }
  return out;
}

nlohmann::json launches_json(const std::vector<ReportedLaunch>& launches) {
  nlohmann::json out = nlohmann::json::array();
  const size_t left_out = launches.size() > kMostLaunches ? launches.size() - kMostLaunches : 0;
  for (size_t i = left_out; i < launches.size(); ++i) {
    const ReportedLaunch& l = launches[i];
    nlohmann::json j = {{"launch", l.launch}, {"from", l.from_step}, {"to", l.last_step}, {"ranks", l.ranks}};
    if (l.began > 0) j["began"] = l.began;
    if (l.ended)
      j.update(
          {{"seconds", rounded(l.seconds)}, {"exit", l.exit_code}, {"status", l.status}, {"error", l.error}});
    out.push_back(j);
  }
  return out;
}

}  // namespace

nlohmann::json page_data(const RunData& run, double share) {
  nlohmann::json j = {{"label", run.label},
                      {"path", printable(run.path)},
                      {"recipe", run.recipe},
                      {"notes", run.notes},
                      {"config", printable(run.config, kUncut, Keep::kLines)}};
  for (size_t i = 0; i < kReportedCurves.size(); ++i) {
    if (!run.curves[i].buckets().empty()) j["curves"][kReportedCurves[i].key] = curve_json(run.curves[i]);
  }
  if (!run.imbalance.buckets().empty()) j["curves"]["imbalance"] = curve_json(run.imbalance);
  const auto keep = std::max<size_t>(static_cast<size_t>(static_cast<double>(kMostEvalPoints) * share), 50);
  for (const auto& [tag, points] : run.eval_losses) {
    if (tag.size() > 0 && j["evals"].size() > kMostTagsShown) break;
    nlohmann::json steps = nlohmann::json::array(), losses = steps;
    const size_t stride = (points.size() + keep - 1) / keep;
    for (size_t i = 0; i < points.size(); ++i) {
      if (i % stride != 0 && i + 1 != points.size()) continue;
      steps.push_back(points[i].first);
      losses.push_back(rounded(points[i].second));
    }
    j["evals"].push_back({{"tag", printable(tag)}, {"step", steps}, {"loss", losses}});
  }
  if (run.experts.experts() > 0) j["experts"] = experts_json(run.experts);
  for (const auto& [step, what] : run.marks) j["marks"].push_back({step, what});
  for (const auto& [name, seconds] : run.phases) j["phases"].push_back({name, rounded(seconds)});
  j["launches"] = launches_json(run.launches);
  j["launches_in_all"] = run.launches.size();
  j["evaluations"] = evaluations_json(run.evaluations);
  j["answers"] = answers_json(run.evaluations, share);
  j["sums"] = {{"steps", run.steps},
               {"last_step", run.last_step},
               {"recomputed", run.recomputed_steps},
               {"saves", run.saves},
               {"tokens", run.tokens},
               {"supervised", run.supervised},
               {"flops", rounded(run.flops)},
               {"last_loss", rounded(run.last_loss)},
               {"tokens_per_second", rounded(run.tokens_per_second)},
               {"marks", run.marks_in_all}};
  return j;
}

}  // namespace pesc
