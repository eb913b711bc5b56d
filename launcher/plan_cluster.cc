#include "launcher/plan_cluster.h"

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/least_traffic.h"

namespace pesc {
namespace {

constexpr size_t kShownLayouts = 8;

template <class... Values>
std::string row(const char* format, Values... values) {
  char text[300];
  std::snprintf(text, sizeof(text), format, values...);
  return text;
}

std::string layout_name(const ClusterLayout& l) {
  return str_cat("dp ", l.dp, ", tp ", l.tp, ", ep ", l.ep);
}

constexpr std::string_view kExchange = "exchange";

// Exposed seconds of the collectives whose name begins so, or of the exchange.
double exposed(const ClusterLayout& l, std::string_view name) {
  double sum = 0;
  for (const ClusterCollective& c : l.collectives)
    if (name == kExchange ? is_exchange(c.name) : c.name.starts_with(name)) sum += c.exposed;
  return sum;
}

std::string layouts_text(const ClusterPlan& plan) {
  std::string text = row("%-20s %6s %8s %10s %10s %8s %10s %10s %12s %8s\n", "layout", "rows", "GiB",
                         "ms a step", "compute", "tp", "exchange", "gradients", "k tokens/s", "goodput");
  const size_t shown = std::min(plan.layouts.size(), kShownLayouts);
  for (size_t i = 0; i < shown; ++i) {
    const ClusterLayout& l = plan.layouts[i];
    text += row("  %-18s %6.0f %8.1f %10.1f %10.1f %8.1f %10.1f %10.1f %12.1f %8.4f\n",
                layout_name(l).c_str(), l.rows, l.needed / kGiB, 1e3 * l.seconds, 1e3 * l.compute,
                1e3 * exposed(l, kTensorParallelPhase), 1e3 * exposed(l, kExchange),
                1e3 * exposed(l, kGradientPhase), l.tokens_per_second / 1e3, l.goodput.share);
  }
  if (plan.layouts.size() > shown)
    text += row("  and %d slower ones\n", static_cast<int>(plan.layouts.size() - shown));
  return text;
}

// The first layout beside the second, term by term.
std::string why_text(const ClusterPlan& plan) {
  const ClusterLayout& best = plan.layouts.front();
  std::string text = str_cat("\nthe best: ", layout_name(best));
  if (plan.layouts.size() == 1) return text + ", the only one that fits\n";
  const ClusterLayout& next = plan.layouts[1];
  text += row("; its step is %.1f ms shorter than that of %s:", 1e3 * (next.seconds - best.seconds),
              layout_name(next).c_str());
  text += row(" compute %+.1f", 1e3 * (best.compute - next.compute));
  for (const std::string_view name :
       {std::string_view(kTensorParallelPhase), kExchange, std::string_view(kGradientPhase)})
    text += row(", %s %+.1f", std::string(name).c_str(), 1e3 * (exposed(best, name) - exposed(next, name)));
  return text + row(" ms; goodput %+.4f\n", best.goodput.share - next.goodput.share);
}

std::string collectives_text(const ClusterLayout& l) {
  if (l.collectives.empty()) return "";
  std::string text = row("\n%-36s %18s %8s %10s %12s %9s %10s %10s\n", "collectives of the best",
                         "ranks on hosts", "calls", "sent MB", "latency ms", "ms", "exposed", "2 levels");
  for (const ClusterCollective& c : l.collectives) {
    text +=
        row("  %-34s %18s %8.0f %10.1f %12.2f %9.2f %10.2f %10s\n", c.name.c_str(),
            str_cat(c.group.ranks, " on ", c.group.hosts).c_str(), c.calls, c.sent / 1e6, 1e3 * c.latency,
            1e3 * c.seconds, 1e3 * c.exposed, c.two_level > 0 ? row("%.2f", 1e3 * c.two_level).c_str() : "");
  }
  return text +
         "  (one ring over all ranks of a group, as NCCL is pinned; 2 levels: inside of each host, then "
         "between "
         "hosts)\n";
}

std::string goodput_text(const ExperimentConfig& config, const ClusterLayout& l, const Cluster& cluster) {
  const ClusterGoodput& g = l.goodput;
  std::string text =
      row("\na GPU fails once in %.0f hours, so the job once in %.2f hours; from a failure to the next step: "
          "%.0f s\n",
          cluster.gpu_mtbf / 3600, g.costs.mtbf / 3600, g.costs.restart);
  text += row("a save: %.2f s to copy, %.1f s to write, at %.3g GB/s a host; it costs the steps %.2f s%s\n",
              g.copied, g.written, cluster.storage / 1e9, g.costs.save,
              config.checkpoint.async_save ? " (checkpoint.async_save)" : "");
  text += row("checkpoint.save_steps: %.0f, every %.0f s: goodput %.4f, %.1fk tokens/s\n", g.save_steps,
              g.interval, g.share, l.useful() / 1e3);
  if (config.checkpoint.save_steps > 0) {
    const double as_set = static_cast<double>(config.checkpoint.save_steps) * l.seconds;
    text += row("as the experiment says, %lld: goodput %.4f\n",
                static_cast<long long>(config.checkpoint.save_steps), goodput(g.costs, as_set));
  }
  return text;
}

nlohmann::json layout_json(const ClusterLayout& l) {
  const ClusterGoodput& g = l.goodput;
  nlohmann::json j = {{"dp", l.dp},
                      {"tp", l.tp},
                      {"ep", l.ep},
                      {"rows_of_rank", l.rows},
                      {"needed_bytes", l.needed},
                      {"compute_seconds", l.compute},
                      {"step_seconds", l.seconds},
                      {"tokens_per_second", l.tokens_per_second},
                      {"mtbf_seconds", g.costs.mtbf},
                      {"save_seconds", g.costs.save},
                      {"restart_seconds", g.costs.restart},
                      {"save_steps", g.save_steps},
                      {"save_interval_seconds", g.interval},
                      {"goodput", g.share},
                      {"useful_tokens_per_second", l.useful()}};
  j["collectives"] = nlohmann::json::array();
  for (const ClusterCollective& c : l.collectives) {
    j["collectives"].push_back({{"name", c.name},
                                {"ranks", c.group.ranks},
                                {"hosts", c.group.hosts},
                                {"calls", c.calls},
                                {"sent_bytes", c.sent},
                                {"latency_seconds", c.latency},
                                {"seconds", c.seconds},
                                {"exposed_seconds", c.exposed},
                                {"two_level_seconds", c.two_level}});
  }
  return j;
}

// The best layout where collectives overlap with work.
std::string overlapped_text(const ClusterLayout& best) {
  return row("\nwith parallel.overlap_comm: true the best is %s, %.1f ms a step, goodput %.4f\n",
             layout_name(best).c_str(), 1e3 * best.seconds, best.goodput.share);
}

}  // namespace

std::string cluster_text(const ClusterRequest& request, const ClusterPlan& plan) {
  const auto& [config, model, cluster, room, machine] = request;
  std::string text =
      row("hosts %d, GPUs of each %d, ranks %d; %lld rows of %lld tokens a step, micro-batches: %lld\n",
          cluster.hosts, cluster.gpus_per_host, cluster.gpus(),
          static_cast<long long>(config.train.global_batch_size),
          static_cast<long long>(config.data.max_seq_length),
          static_cast<long long>(config.train.gradient_accumulation_steps));
  text += row("%s\nNVLink %.4g GB/s, network %.4g Gbit/s a GPU, of which %.2f is taken to be reached\n\n",
              machine.c_str(), cluster.rates.link / 1e9, 8 * cluster.network / 1e9, kNetworkShare);
  if (plan.tp_between_hosts)
    text += "NOTHING FITS with each tp group inside of a host; these cut the tensors between hosts:\n";
  text += layouts_text(plan) + why_text(plan);
  const ClusterLayout& best = plan.layouts.front();
  if (const int64_t rows = config.train.micro_batch_rows(); rows < best.dp)
    text += row("%lld of %d dp ranks HAVE NO ROWS: use a larger train.global_batch_size\n",
                static_cast<long long>(best.dp - rows), best.dp);
  else if (rows % best.dp != 0)
    text += row("%d dp ranks do not divide %lld rows: some have one row less, and wait\n", best.dp,
                static_cast<long long>(rows));
  text += collectives_text(best) + goodput_text(config, best, cluster);
  if (!plan.refused.empty()) text += "\nnot possible:\n";
  for (const RefusedLayout& r : plan.refused)
    text += str_cat("  tp ", r.tp, ", ep ", r.ep, ": ", r.why, "\n");
  return text;
}

nlohmann::json cluster_json(const ClusterRequest& request, const ClusterPlan& plan) {
  const auto& [config, model, cluster, room, machine] = request;
  nlohmann::json j = {{"name", config.name},        {"machine", machine},
                      {"hosts", cluster.hosts},     {"gpus_per_host", cluster.gpus_per_host},
                      {"ranks", cluster.gpus()},    {"link", cluster.rates.link},
                      {"network", cluster.network}, {"tp_between_hosts", plan.tp_between_hosts}};
  j["layouts"] = nlohmann::json::array();
  for (const ClusterLayout& l : plan.layouts) j["layouts"].push_back(layout_json(l));
  j["refused"] = nlohmann::json::array();
  for (const RefusedLayout& r : plan.refused)
    j["refused"].push_back({{"tp", r.tp}, {"ep", r.ep}, {"why", r.why}});
  return j;
}

void report_cluster_plan(const ClusterRequest& request, const std::string& out) {
  const auto& [config, model, cluster, room, machine] = request;
  const ClusterPlan plan = plan_cluster(config, model, cluster, room);
  if (plan.layouts.empty()) {
    std::printf("%d GPUs: NO LAYOUT FITS\n", cluster.gpus());
    for (const RefusedLayout& r : plan.refused)
      std::printf("  tp %d, ep %d: %s\n", r.tp, r.ep, r.why.c_str());
    for (const std::string& change :
         what_would_fit(config, model, cluster.gpus(), training_use(config), room))
      std::printf("what would fit: %s\n", change.c_str());
  } else {
    std::fputs(cluster_text(request, plan).c_str(), stdout);
    if (config.parallel.overlap_comm == Overlap::kOff) {
      ExperimentConfig overlapped = config;
      overlapped.parallel.overlap_comm = Overlap::kOn;
      const ClusterPlan other = plan_cluster(overlapped, model, cluster, room);
      if (!other.layouts.empty()) std::fputs(overlapped_text(other.layouts.front()).c_str(), stdout);
    }
  }
  if (out.empty()) return;
  AtomicFile file(out);
  file.write(cluster_json(request, plan).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) +
             "\n");
  file.commit();
}

}  // namespace pesc
