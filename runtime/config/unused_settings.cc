#include "runtime/config/unused_settings.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/text_format.h>

#include <cstdint>
#include <map>
#include <numeric>
#include <string>

#include "ops/core/check.h"
#include "runtime/config/unknown_names.h"
#include "runtime/data/tags.h"

namespace pesc {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;
using Concerns = UnusedSetting::Concerns;

std::string value_of(const Message& message, const FieldDescriptor& field) {
  std::string text;
  TextFormat::PrintFieldValueToString(message, &field, -1, &text);
  return text;
}

// Whether it has been given another value than its default.
bool changed(const Message& message, const FieldDescriptor& field) {
  const auto* r = message.GetReflection();
  if (field.is_repeated()) {
    // Of the lists only lora.target_modules may stand where nothing reads it; all linears are its default.
    return r->FieldSize(message, &field) != 0 && r->FieldSize(message, &field) != kLinears;
  }
  if (!r->HasField(message, &field)) return false;
  const Message* usual =
      google::protobuf::MessageFactory::generated_factory()->GetPrototype(message.GetDescriptor());
  return value_of(message, field) != value_of(*usual, field);
}

class Finder {
 public:
  explicit Finder(const FieldPlaces& places) : places_(places) {}

  // Those of `fields` that were changed; all of the message's where none are named.
  void look(Concerns concerns, const std::string& section, const Message& message,
            std::vector<std::string> fields, const std::string& why) {
    const auto* d = message.GetDescriptor();
    if (fields.empty()) fields = field_names(*d);
    std::vector<std::string> found;
    for (const std::string& name : fields) {
      if (changed(message, *d->FindFieldByName(name))) found.push_back(str_cat(section, ".", name));
    }
    if (found.empty()) return;
    out_.push_back({concerns, str_cat(places_.prefix(found[0]), joined(found),
                                      found.size() == 1 ? " has" : " have", " no effect ", why)});
  }
  // A setting that acts otherwise than it reads.
  void say(Concerns concerns, const std::string& field, const std::string& what) {
    out_.push_back({concerns, str_cat(places_.prefix(field), field, " ", what)});
  }
  [[nodiscard]] std::vector<UnusedSetting> take() { return std::move(out_); }

 private:
  const FieldPlaces& places_;
  std::vector<UnusedSetting> out_;
};

void look_at_mode(const proto::Experiment& e, Finder& find) {
  const auto mode = e.train().mode();
  const std::string in_mode = str_cat("in train.mode ", proto::Mode::Value_Name(mode));
  if (mode == proto::Mode::FULL) find.look(Concerns::kAll, "lora", e.lora(), {}, in_mode);
  if (mode != proto::Mode::FULL && e.lora().r() == 0)
    find.look(Concerns::kAll, "lora", e.lora(), {"lora_alpha", "lora_dropout", "target_modules"},
              "with lora.r 0");
  if (mode != proto::Mode::PESC) {
    find.look(Concerns::kAll, "moe", e.moe(), {}, in_mode);
    find.look(Concerns::kAll, "parallel", e.parallel(),
              {"ep", "buffer_factor", "dispatch_chunks", "expert_exchange"},
              in_mode + ", which has no experts");
    find.look(Concerns::kTraining, "debug", e.debug(), {"routing_record", "routing_replay"},
              in_mode + ", which has no experts");
  } else if (e.parallel().ep() == 1) {
    find.look(Concerns::kAll, "parallel", e.parallel(),
              {"buffer_factor", "dispatch_chunks", "expert_exchange"},
              "with parallel.ep 1, where every rank has all experts");
  } else if (e.parallel().expert_exchange() == proto::ExpertExchange::WEIGHTS) {
    find.look(Concerns::kAll, "parallel", e.parallel(), {"buffer_factor"},
              "with parallel.expert_exchange WEIGHTS, where no tokens travel");
  }
}

void look_at_training(const proto::Experiment& e, Finder& find) {
  const proto::Train& t = e.train();
  if (e.data().eval_size() == 0 && e.data().validation_fraction() == 0)
    find.look(Concerns::kTraining, "train", t, {"eval_steps", "max_eval_samples"},
              "without files in data.eval or a data.validation_fraction");
  else if (t.eval_steps() == 0)
    find.look(Concerns::kTraining, "train", t, {"max_eval_samples"},
              "with train.eval_steps 0; `pesc eval` takes all rows");
  if (t.loss_spike_ratio() == 0)
    find.look(Concerns::kTraining, "train", t, {"on_loss_spike"}, "with train.loss_spike_ratio 0");
  if (t.lr_scheduler_type() == proto::LrSchedulerType::CONSTANT_WITH_WARMUP)
    find.look(Concerns::kTraining, "train", t, {"min_lr_ratio"},
              "with train.lr_scheduler_type CONSTANT_WITH_WARMUP");
  if (e.checkpoint().save_steps() == 0 && !e.checkpoint().keep_best())
    find.look(Concerns::kTraining, "checkpoint", e.checkpoint(),
              {"async_save", "on_save_error", "keep_every_steps"},
              "with checkpoint.save_steps 0, which saves at the end alone");
  find.look(Concerns::kWithoutLaunch, "recovery", e.recovery(),
            {"max_restarts", "stop_limit_s", "smaller_layout", "host_wait_s", "longest_pause_s"},
            "without `pesc launch`, which alone restarts and stops the ranks");
}

// Factors of 0: what they multiply is computed and changes nothing.
void look_at_zeros(const proto::Experiment& e, Finder& find) {
  const auto mode = e.train().mode();
  if (e.train().learning_rate() == 0)
    find.say(Concerns::kTraining, "train.learning_rate", "is 0: no step changes a weight");
  if (mode != proto::Mode::FULL && e.lora().r() > 0 && e.lora().lora_alpha() == 0)
    find.say(Concerns::kAll, "lora.lora_alpha", "is 0: LoRA changes nothing, and learns nothing");
  if (mode == proto::Mode::PESC && e.moe().adapter_scaling() == 0)
    find.say(Concerns::kAll, "moe.adapter_scaling", "is 0: the experts change nothing, and learn nothing");
}

void look_at_weight_cache(const proto::Experiment& e, Finder& find) {
  const auto frozen = e.train().frozen_dtype();
  const bool fp8 = e.train().compute_dtype() == proto::ComputeDtype::FP8;
  const bool quantised = frozen == proto::FrozenDtype::FP8 || frozen == proto::FrozenDtype::NF4 ||
                         (frozen == proto::FrozenDtype::AUTO && fp8);
  if (e.model().has_shape())
    find.look(Concerns::kAll, "model", e.model(), {"cache_dir"},
              "with model.shape, whose weights are made at random and not kept");
  else if (!quantised)
    find.look(Concerns::kAll, "model", e.model(), {"cache_dir"},
              str_cat("with train.frozen_dtype ", proto::FrozenDtype::Value_Name(frozen),
                      ", which quantises nothing"));
}

// Only a step that is saved can be kept.
void look_at_kept_checkpoints(const proto::Checkpoint& c, Finder& find) {
  const int64_t saved = c.save_steps();
  const int64_t kept = c.keep_every_steps();
  if (saved <= 0 || kept <= 0 || kept % saved == 0) return;
  constexpr int64_t kMost = int64_t{1} << 40;  // of a field; the product of two may overflow
  const int64_t factor = saved / std::gcd(saved, kept);
  const bool ever = kept <= kMost / factor;
  find.say(Concerns::kTraining, "checkpoint.keep_every_steps",
           str_cat("is ", kept, ", no multiple of checkpoint.save_steps, which is ", saved,
                   ": of the steps that are "
                   "saved, ",
                   ever ? str_cat("those that are multiples of ", kept * factor, " are kept for good")
                        : std::string("none is kept for good"),
                   "; take a multiple of ", saved));
}

// Rows of files with one tag are evaluated as one group, which is meant where both files say the tag.
template <class Sources>
void look_at_tags(const std::string& list, const Sources& sources, Finder& find) {
  std::map<std::string, int> first;
  for (int i = 0; i < sources.size(); ++i) {
    const std::string tag = tag_of(sources[i].tag(), "", sources[i].path());
    const auto [at, is_new] = first.emplace(tag, i);
    const auto& other = sources[at->second];
    if (is_new || (!other.tag().empty() && !sources[i].tag().empty())) continue;
    find.say(Concerns::kEvaluations, str_cat(list, "[", i, "].path"),
             str_cat("is '", sources[i].path(), "', and ", list, "[", at->second, "].path is '", other.path(),
                     "': rows of both that have no tag of their own are reported together as '", tag,
                     "'; give each file its tag"));
  }
}

void look_at_evaluated_tags(const proto::Data& d, Finder& find) {
  look_at_tags("data.eval", d.eval(), find);
  if (d.validation_fraction() > 0) look_at_tags("data.train", d.train(), find);
}

}  // namespace

std::vector<UnusedSetting> unused_settings(const proto::Experiment& e, const FieldPlaces& places) {
  Finder find(places);
  look_at_mode(e, find);
  look_at_training(e, find);
  look_at_zeros(e, find);
  look_at_weight_cache(e, find);
  look_at_kept_checkpoints(e.checkpoint(), find);
  look_at_evaluated_tags(e.data(), find);
  if (e.parallel().device() == proto::Device::CPU)
    find.look(Concerns::kAll, "debug", e.debug(), {"share_gpu"}, "with parallel.device CPU");
  if (e.parallel().device() == proto::Device::CPU)
    find.look(Concerns::kAll, "parallel", e.parallel(), {"overlap_comm", "gemm_autotune"},
              "with parallel.device CPU");
  else if (e.train().compute_dtype() == proto::ComputeDtype::F32)
    find.look(Concerns::kAll, "parallel", e.parallel(), {"gemm_autotune"},
              "with train.compute_dtype F32, whose GEMMs have one algorithm");
  if (e.generate().temperature() == 0)
    find.look(Concerns::kAnswers, "generate", e.generate(), {"top_p", "seed"},
              "with generate.temperature 0, which takes the likeliest token");
  return find.take();
}

}  // namespace pesc
