#include "runtime/fitting.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <tuple>

#include "ops/core/check.h"
#include "ops/fp8_gemm.h"
#include "runtime/machine.h"

namespace pesc {
namespace {

using HeldFormat = std::optional<FrozenFormat>;  // absent: the compute type

// The fields that decide about memory, and the number of ranks.
struct Choice {
  Recompute recompute;
  HeldFormat frozen;
  int64_t micro_batch_rows, max_seq_length;
  int tp, ep, world;
};

class Search {
 public:
  Search(const ExperimentConfig& config, const ModelConfig& model, int world, const DecoderUse& use,
         const MemoryRoom& room)
      : config_(config), model_(model), use_(use), room_(room) {
    now_ = {config.train.recompute_granularity,
            config.train.frozen_dtype,
            config.train.micro_batch_rows(),
            config.data.max_seq_length,
            config.parallel.tp,
            config.parallel.ep,
            world};
  }

  // Of train.frozen_dtype alone.
  [[nodiscard]] std::vector<std::string> other_formats() {
    first_that_fits(formats(), [](Choice& c, const HeldFormat& format) { c.frozen = format; });
    return found_;
  }

  // Of every other field.
  [[nodiscard]] std::vector<std::string> single_changes() {
    if (training()) {
      first_that_fits(recomputations(), [](Choice& c, Recompute r) { c.recompute = r; });
      first_that_fits(smaller_micro_batches(), [](Choice& c, int64_t rows) { c.micro_batch_rows = rows; });
      first_that_fits(lengths(), [](Choice& c, int64_t tokens) { c.max_seq_length = tokens; });
    }
    const auto set_layout = [](Choice& c, const Layout& l) { std::tie(c.tp, c.ep) = l; };
    const auto where = [&](auto keep) {
      std::vector<Layout> some = layouts(now_.world);
      std::erase_if(some, [&](const Layout& l) { return !keep(l); });
      return some;
    };
    const bool tp = first_that_fits(where([&](const Layout& l) { return l.second == now_.ep; }), set_layout);
    const bool ep = first_that_fits(where([&](const Layout& l) { return l.first == now_.tp; }), set_layout);
    if (!tp && !ep) first_that_fits(layouts(now_.world), set_layout);
    first_that_fits(worlds(), [](Choice& c, int n) { c.world = n; });
    return found_;
  }

  // The fewest ranks; then a layout before recomputation before a micro-batch: the aux loss comes last.
  // Without formats of the frozen weights, or with the first of them that fits on so few ranks.
  enum class Formats { kKept, kOthers };
  [[nodiscard]] std::vector<std::string> combined_changes(Formats which) {
    const std::vector<HeldFormat> some =
        which == Formats::kKept ? std::vector<HeldFormat>{now_.frozen} : formats();
    if (some.empty()) return {};
    std::vector<int64_t> rows{now_.micro_batch_rows};
    std::vector<Recompute> levels{now_.recompute};
    if (training()) {
      for (const int64_t n : smaller_micro_batches()) rows.push_back(n);
      for (const Recompute r : recomputations()) levels.push_back(r);
    }
    for (Choice c = now_; c.world <= now_.world * kMostRanks; c.world *= 2) {
      const std::vector<Layout> all = layouts(c.world);
      const auto some_layout_fits = [&] {
        return std::any_of(all.begin(), all.end(), [&](const Layout& l) {
          std::tie(c.tp, c.ep) = l;
          return consider(c);
        });
      };
      // With the least of everything; where that does not fit, nothing does.
      c.micro_batch_rows = rows.back();
      c.recompute = levels.back();
      const auto format = std::find_if(some.begin(), some.end(), [&](const HeldFormat& f) {
        c.frozen = f;
        return some_layout_fits();
      });
      if (format == some.end()) continue;
      found_.clear();
      for (const int64_t n : rows) {
        for (const Recompute r : levels) {
          c.micro_batch_rows = n;
          c.recompute = r;
          if (some_layout_fits()) return found_;
        }
      }
    }
    return found_;
  }

 private:
  using Layout = std::pair<int, int>;

  [[nodiscard]] bool training() const { return use_.purpose == Purpose::kTraining; }
  [[nodiscard]] bool pesc() const { return config_.pesc.mode == TrainMode::kPesc; }

  [[nodiscard]] std::vector<Recompute> recomputations() const {
    std::vector<Recompute> all;
    for (const Recompute r : {Recompute::kSelective, Recompute::kFull})
      if (r > now_.recompute) all.push_back(r);
    return all;
  }
  // Those that hold less than now, the largest first. Evaluation and answers keep what was trained with.
  [[nodiscard]] std::vector<HeldFormat> formats() const {
    std::vector<HeldFormat> all;
    if (!training() || config_.pesc.mode == TrainMode::kFull) return all;
    if (model_.quantized) {  // its weights are not quantised a second time
      if (!now_.frozen) all.emplace_back(model_.quantized->format);
      return all;
    }
    if (!now_.frozen && room_.fp8 == MemoryRoom::Fp8::kMultiplied) all.emplace_back(FrozenFormat::kFP8);
    if (now_.frozen != FrozenFormat::kNF4) all.emplace_back(FrozenFormat::kNF4);
    return all;
  }
  [[nodiscard]] FrozenGemm gemm_of(const HeldFormat& frozen) const {
    if (config_.train.frozen_gemm == FrozenGemm::kFP8)
      return FrozenGemm::kFP8;  // train.compute_dtype says so
    const bool fp8 = frozen == FrozenFormat::kFP8 && room_.fp8 == MemoryRoom::Fp8::kMultiplied;
    return fp8 ? FrozenGemm::kFP8 : FrozenGemm::kDequantized;
  }
  [[nodiscard]] std::vector<int64_t> smaller_micro_batches() const {
    std::vector<int64_t> all;
    for (int64_t rows = now_.micro_batch_rows - 1; rows >= 1; --rows)
      if (config_.train.global_batch_size % rows == 0) all.push_back(rows);
    return all;
  }
  [[nodiscard]] std::vector<int64_t> lengths() const {
    std::vector<int64_t> all;
    for (int64_t tokens = now_.max_seq_length / 2; tokens >= 128; tokens /= 2) all.push_back(tokens);
    return all;
  }
  // Of so many ranks, those that cut least first.
  [[nodiscard]] std::vector<Layout> layouts(int world) const {
    std::vector<Layout> all;
    for (int tp = now_.tp; tp <= world; ++tp) {
      if (world % tp != 0) continue;
      for (int ep = now_.ep; ep <= (pesc() ? world : now_.ep); ++ep)
        if (world % ep == 0) all.emplace_back(tp, ep);
    }
    std::sort(all.begin(), all.end(), [](const Layout& a, const Layout& b) {
      return std::tuple(a.first * a.second, a.first) < std::tuple(b.first * b.second, b.first);
    });
    return all;
  }
  [[nodiscard]] std::vector<int> worlds() const {
    std::vector<int> all;
    for (int ranks = now_.world * 2; ranks <= now_.world * kMostRanks; ranks *= 2) all.push_back(ranks);
    return all;
  }

  template <class Values, class Set>
  bool first_that_fits(const Values& values, Set set) {
    for (const auto& value : values) {
      Choice c = now_;
      set(c, value);
      if (consider(c)) return true;
    }
    return false;
  }

  bool consider(const Choice& c) {
    ExperimentConfig changed = config_;
    changed.train.recompute_granularity = c.recompute;
    if (c.frozen != now_.frozen || !changed.train.frozen_gemm) {
      changed.train.frozen_dtype = c.frozen;
      changed.train.frozen_gemm = gemm_of(c.frozen);
    }
    changed.train.gradient_accumulation_steps = changed.train.global_batch_size / c.micro_batch_rows;
    changed.data.max_seq_length = c.max_seq_length;
    changed.parallel.tp = c.tp;
    changed.parallel.ep = c.ep;
    try {
      validate_layout(model_, changed.pesc, c.world, c.tp, c.ep);
    } catch (const Error&) {
      return false;
    }
    DecoderUse use = use_;
    if (training()) {
      use = training_use(changed);
    } else {  // so many rows for each dp rank, whatever their number
      use.rows = use_.rows / (now_.world / now_.tp) * (c.world / c.tp);
    }
    const double bytes = needed_bytes(changed, model_, c.world, use, room_.against);
    if (bytes > room_.of_rank(c.world)) return false;
    char size[32];
    std::snprintf(size, sizeof(size), " needs %.1f GiB", bytes / kGiB);
    found_.push_back(name(c) + size + remark(c));
    return true;
  }

  [[nodiscard]] std::string name(const Choice& c) const {
    std::string all;
    const auto add = [&all](const std::string& field, const auto& value) {
      all += str_cat(all.empty() ? "" : " and ", field, value);
    };
    if (c.micro_batch_rows != now_.micro_batch_rows)
      add("train.gradient_accumulation_steps: ", config_.train.global_batch_size / c.micro_batch_rows);
    if (c.max_seq_length != now_.max_seq_length) add("data.max_seq_length: ", c.max_seq_length);
    if (c.tp != now_.tp) add("parallel.tp: ", c.tp);
    if (c.ep != now_.ep) add("parallel.ep: ", c.ep);
    if (c.world != now_.world) add("ranks: ", c.world);
    if (c.frozen != now_.frozen) add("train.frozen_dtype: ", frozen_format_name(*c.frozen));
    if (c.recompute != now_.recompute) add("train.recompute_granularity: ", recompute_name(c.recompute));
    return all;
  }
  // What the choice changes in the results.
  [[nodiscard]] std::string remark(const Choice& c) const {
    std::string all;
    const auto add = [&all](const char* text) { all += str_cat(all.empty() ? " (" : "; ", text); };
    if (c.micro_batch_rows != now_.micro_batch_rows && pesc() && config_.pesc.moe.router_aux_loss_coef > 0)
      add("changes the aux loss, moe.router_aux_loss_coef, which is taken of each micro-batch");
    if (c.max_seq_length != now_.max_seq_length) add("cuts longer rows");
    if (c.frozen != now_.frozen) {
      const bool fp8 = gemm_of(c.frozen) == FrozenGemm::kFP8;
      if (model_.quantized) {  // the same weights, which are dequantised now when they are read
        if (fp8) add("changes the mathematics: rounds what is multiplied with the frozen weights to 8 bits");
      } else if (c.frozen == FrozenFormat::kNF4) {
        add(fp8 ? "changes the mathematics: rounds the frozen weights to 4 bits, and what is multiplied with "
                  "them to 8"
                : "changes the mathematics: rounds the frozen weights to 4 bits");
      } else {
        add(fp8 ? "changes the mathematics: rounds the frozen weights, and what is multiplied with them, to "
                  "8 "
                  "bits"
                : "changes the mathematics: rounds the frozen weights to 8 bits");
      }
      add("a run that has checkpoints keeps its format");
    }
    return all.empty() ? "" : all + ")";
  }

  const ExperimentConfig& config_;
  const ModelConfig& model_;
  const DecoderUse& use_;
  const MemoryRoom& room_;
  Choice now_;
  std::vector<std::string> found_;
};

}  // namespace

int replicas_of(ReplicaGroup group, const Mesh& mesh, int64_t kv_heads) {
  const int kv = static_cast<int>(std::max<int64_t>(1, mesh.tp() / std::max<int64_t>(kv_heads, 1)));
  switch (group) {
    case ReplicaGroup::kWorld:
      return mesh.world();
    case ReplicaGroup::kDp:
      return mesh.dp();
    case ReplicaGroup::kDpKv:
      return mesh.dp() * kv;
    case ReplicaGroup::kExpert:
      return mesh.world() / mesh.ep();
  }
  return 1;
}

int64_t planned_snapshot_bytes(const ModelParameters& parameters, const Mesh& mesh, int64_t kv_heads) {
  int64_t bytes = 0;
  for (const Parameter& p : parameters.all()) {
    if (!p.trainable) continue;
    const auto local = static_cast<double>(p.spec.rows * p.spec.cols);
    bytes += static_cast<int64_t>(std::ceil(12 * local / replicas_of(p.group, mesh, kv_heads)));
  }
  return bytes;
}

double needed_bytes(const ExperimentConfig& config, const ModelConfig& model, int world,
                    const DecoderUse& use, MemoryRoom::Against against) {
  const Mesh mesh(world, 0, config.parallel.tp, config.parallel.ep);
  const DecoderOptions options =
      decoder_options(config, mesh, device_of(config, config.parallel.num_threads), use);
  const DeviceMemory memory = device_memory(model, config.pesc, mesh, options);
  int64_t bytes = against == MemoryRoom::Against::kAll ? memory.all() : memory.to_come();
  if (options.device.kind == DeviceKind::kCpu && use.purpose == Purpose::kTraining) {
    Arena weights = Arena::planning("weights"), compute_weights = Arena::planning("bf16 compute weights"),
          optimizer = Arena::planning("optimizer");
    const ModelParameters parameters(model, config.pesc, mesh, options.precision(),
                                     {weights, compute_weights, &optimizer});
    bytes += planned_snapshot_bytes(parameters, mesh, model.num_key_value_heads);
  }
  return static_cast<double>(bytes);
}

std::vector<std::string> what_would_fit(const ExperimentConfig& config, const ModelConfig& model, int world,
                                        const DecoderUse& use, const MemoryRoom& room) {
  const auto search = [&] { return Search(config, model, world, use, room); };
  std::vector<std::string> found = search().single_changes();
  const bool none_alone = found.empty();
  if (none_alone) found = search().combined_changes(Search::Formats::kKept);
  std::vector<std::string> formats = search().other_formats();
  if (none_alone && formats.empty()) formats = search().combined_changes(Search::Formats::kOthers);
  found.insert(found.end(), formats.begin(), formats.end());
  return found;
}

void check_memory(const ExperimentConfig& config, const ModelConfig& model, int world, const DecoderUse& use,
                  const GpuToLoad& gpu) {
  const MemoryRoom room{static_cast<double>(gpu.info.free_bytes / gpu.ranks), MemoryRoom::Of::kRank,
                        MemoryRoom::Against::kToCome,
                        multiplies_fp8(gpu.info) ? MemoryRoom::Fp8::kMultiplied : MemoryRoom::Fp8::kNo};
  const double bytes = needed_bytes(config, model, world, use, room.against);
  if (bytes <= room.bytes) return;
  const std::string what = gpu.ranks == 1
                               ? std::string("this rank's model, activations and workspaces")
                               : str_cat("the model, activations and workspaces of ", gpu.ranks, " ranks");
  std::string text =
      cuda::too_little_memory(gpu.index, gpu.info, what, static_cast<int64_t>(bytes) * gpu.ranks);
  text +=
      "; use train.recompute_granularity, more train.gradient_accumulation_steps, a smaller "
      "data.max_seq_length, train.frozen_dtype, or more ranks (tp, ep)";
  const std::vector<std::string> changes = what_would_fit(config, model, world, use, room);
  text += changes.empty() ? str_cat("; none of these makes it fit on up to ", kMostRanks * world, " ranks")
                          : ". Any of these fits: ";
  for (size_t i = 0; i < changes.size(); ++i) text += (i > 0 ? "; " : "") + changes[i];
  throw UsageError(text);
}

}  // namespace pesc
