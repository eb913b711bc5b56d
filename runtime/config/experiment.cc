#include "runtime/config/experiment.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "configs/schema/experiment.pb.h"
#include "model/families.h"
#include "ops/core/check.h"
#include "runtime/chat/template_date.h"
#include "runtime/chat/template_source.h"
#include "runtime/config/columns.h"
#include "runtime/config/compute_types.h"
#include "runtime/config/field_checker.h"
#include "runtime/config/resolved.h"
#include "runtime/config/unknown_names.h"
#include "runtime/config/unused_settings.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

// The schema's name of a family is its model type in capitals.
const FamilyTraits& read_shape_family(const std::string& name, const FieldChecker& check) {
  std::string model_type;
  for (const char c : name) model_type += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  const FamilyTraits* traits = find_family(model_type);
  check.require(traits != nullptr, "model.shape.family",
                str_cat("is ", name, ", which has no row in model/families.h"));
  return *traits;
}

void read_shape(const proto::Shape& p, const FieldChecker& check, ModelSection& out) {
  ModelConfig& m = out.shape;
  const FamilyTraits& traits = read_shape_family(proto::Family::Value_Name(p.family()), check);
  m.family = traits.family;
  m.qkv_bias = traits.qkv_bias();
  const auto size = [&check](const char* name, bool set, int64_t value, int64_t high) {
    const std::string field = str_cat("model.shape.", name);
    check.require(set, field, "is not set; a model with random weights needs it");
    check.range<int64_t>(field, value, 1, high);
    return value;
  };
  m.vocab_size = size("vocab_size", p.has_vocab_size(), p.vocab_size(), 1 << 30);
  m.hidden_size = size("hidden_size", p.has_hidden_size(), p.hidden_size(), 1 << 20);
  m.intermediate_size = size("intermediate_size", p.has_intermediate_size(), p.intermediate_size(), 1 << 22);
  m.num_hidden_layers = size("num_hidden_layers", p.has_num_hidden_layers(), p.num_hidden_layers(), 10000);
  m.num_attention_heads =
      size("num_attention_heads", p.has_num_attention_heads(), p.num_attention_heads(), 1 << 16);
  m.num_key_value_heads = size("num_key_value_heads", true, p.num_key_value_heads(), m.num_attention_heads);
  check.require(m.num_attention_heads % m.num_key_value_heads == 0, "model.shape.num_key_value_heads",
                str_cat("is ", m.num_key_value_heads,
                        ", which does not divide model.shape.num_attention_heads = ", m.num_attention_heads));
  check.require(p.has_head_dim(), "model.shape.num_attention_heads",
                str_cat("is ", m.num_attention_heads, ", which does not divide model.shape.hidden_size = ",
                        m.hidden_size, "; change one of them or set model.shape.head_dim"));
  m.head_dim = size("head_dim", true, p.head_dim(), 1 << 12);
  check.require(m.head_dim % 2 == 0, "model.shape.head_dim",
                str_cat("is ", m.head_dim, "; rotary embedding needs an even one"));
  m.max_position_embeddings = size("max_position_embeddings", true, p.max_position_embeddings(), 1 << 24);
  check.positive("model.shape.rms_norm_eps", p.rms_norm_eps());
  check.positive("model.shape.rope_theta", p.rope_theta());
  check.not_negative("model.shape.initializer_range", p.initializer_range());
  m.rms_norm_eps = p.rms_norm_eps();
  m.rope.theta = p.rope_theta();
  if (traits.rope_layers == RopeLayers::kListed)
    m.layers_without_rope = every_nth_layer(m.num_hidden_layers, traits.defaults.no_rope_layer_interval);
  m.tie_word_embeddings = p.tie_word_embeddings();
  out.initializer_range = p.initializer_range();
}

void read_model(const proto::Experiment& e, const FieldChecker& check, ExperimentConfig& out) {
  const proto::Model& p = e.model();
  check.require(!p.path().empty() || p.has_shape(), "model",
                "names no base; set model.path to a Hugging Face folder, or model.shape for random weights");
  out.model.path = p.path();
  out.model.tokenizer = p.tokenizer();
  out.model.adapter = p.adapter();
  check.folder_to_make("model.cache_dir", p.cache_dir());
  out.model.cache_dir = p.cache_dir();
  out.model.links = p.follow_links() ? Links::kFollow : Links::kInside;
  check.require(p.adapter().empty() || !p.path().empty(), "model.adapter",
                "needs model.path, the base that the adapter was trained on");
  check.require(p.adapter().empty() || e.train().mode() != proto::Mode::FULL, "model.adapter",
                "is an adapter, which train.mode FULL does not train; use train.mode LORA or PESC");
  if (p.has_shape()) {
    read_shape(p.shape(), check, out.model);
  }
}

void read_train(const proto::Train& p, const FieldChecker& check, ExperimentConfig& out) {
  TrainSection& t = out.train;
  switch (p.mode()) {
    case proto::Mode::PESC:
      out.pesc.mode = TrainMode::kPesc;
      break;
    case proto::Mode::LORA:
      out.pesc.mode = TrainMode::kLora;
      break;
    case proto::Mode::FULL:
      out.pesc.mode = TrainMode::kFull;
      break;
  }
  check.require(p.has_max_steps() || p.has_num_train_epochs(), "train",
                "needs train.max_steps or train.num_train_epochs");
  if (p.has_max_steps()) check.at_least("train.max_steps", p.max_steps(), 1);
  if (p.has_num_train_epochs()) {
    check.require(p.num_train_epochs() > 0 && p.num_train_epochs() <= 1e6, "train.num_train_epochs",
                  str_cat("is ", p.num_train_epochs(), "; it must be positive and at most 1e6"));
  }
  t.max_steps = p.max_steps();
  t.num_train_epochs = p.num_train_epochs();
  check.range<int64_t>("train.global_batch_size", p.global_batch_size(), 1, 1 << 24);
  t.global_batch_size = p.global_batch_size();
  t.gradient_accumulation_steps = p.gradient_accumulation_steps();
  check.range<int64_t>("train.gradient_accumulation_steps", t.gradient_accumulation_steps, 1,
                       t.global_batch_size);
  check.require(t.global_batch_size % t.gradient_accumulation_steps == 0, "train.gradient_accumulation_steps",
                str_cat("is ", t.gradient_accumulation_steps,
                        ", which does not divide train.global_batch_size = ", t.global_batch_size,
                        "; it divides the rows of a step into micro-batches of one size"));
  check.not_negative("train.learning_rate", p.learning_rate());
  t.lr.lr = p.learning_rate();
  switch (p.lr_scheduler_type()) {
    case proto::LrSchedulerType::CONSTANT_WITH_WARMUP:
      t.lr.schedule = Schedule::kConstant;
      break;
    case proto::LrSchedulerType::LINEAR:
      t.lr.schedule = Schedule::kLinear;
      break;
    case proto::LrSchedulerType::COSINE:
      t.lr.schedule = Schedule::kCosine;
      break;
  }
  check.at_least("train.warmup_steps", p.warmup_steps(), 0);
  check.share("train.warmup_ratio", p.warmup_ratio());
  t.warmup_steps = p.warmup_steps();
  t.warmup_ratio = p.warmup_ratio();
  check.range("train.min_lr_ratio", p.min_lr_ratio(), 0.0, 1.0);
  t.lr.min_ratio = p.min_lr_ratio();
  check.not_negative("train.weight_decay", p.weight_decay());
  check.share("train.adam_beta1", p.adam_beta1());
  check.share("train.adam_beta2", p.adam_beta2());
  check.positive("train.adam_epsilon", p.adam_epsilon());
  check.not_negative("train.max_grad_norm", p.max_grad_norm());
  t.adamw = {p.adam_beta1(), p.adam_beta2(), p.adam_epsilon(), p.weight_decay(), p.max_grad_norm()};
  t.seed = p.seed();
  check.at_least("train.eval_steps", p.eval_steps(), 0);
  check.at_least("train.max_eval_samples", p.max_eval_samples(), 0);
  check.at_least("train.logging_steps", p.logging_steps(), 1);
  t.eval_steps = p.eval_steps();
  t.max_eval_samples = p.max_eval_samples();
  t.logging_steps = p.logging_steps();
  check.at_least("train.early_stopping_patience", p.early_stopping_patience(), 0);
  t.early_stopping_patience = p.early_stopping_patience();
  if (p.recompute_granularity() == proto::RecomputeGranularity::SELECTIVE)
    t.recompute_granularity = Recompute::kSelective;
  if (p.recompute_granularity() == proto::RecomputeGranularity::FULL)
    t.recompute_granularity = Recompute::kFull;
  t.on_nonfinite = p.on_nonfinite() == proto::OnNonfinite::SKIP ? OnNonfinite::kSkip : OnNonfinite::kEnd;
  check.above_one_or_zero("train.loss_spike_ratio", p.loss_spike_ratio());
  t.loss_spike_ratio = p.loss_spike_ratio();
  if (p.on_loss_spike() == proto::OnLossSpike::SKIP) t.on_loss_spike = OnLossSpike::kSkip;
  if (p.on_loss_spike() == proto::OnLossSpike::END) t.on_loss_spike = OnLossSpike::kEnd;
}

void read_lora_and_moe(const proto::Experiment& e, const FieldChecker& check, PescConfig& out) {
  if (out.mode == TrainMode::kFull) return;
  const proto::Lora& l = e.lora();
  check.range<int64_t>("lora.r", l.r(), 0, 1 << 16);
  check.require(std::isfinite(l.lora_alpha()), "lora.lora_alpha",
                str_cat("is ", l.lora_alpha(), "; it must be finite"));
  check.in_float32("lora.lora_alpha", l.lora_alpha());
  check.share("lora.lora_dropout", l.lora_dropout());
  out.lora.r = l.r();
  out.lora.lora_alpha = l.lora_alpha();
  out.lora.lora_dropout = l.lora_dropout();
  check.require(l.r() > 0 || out.mode == TrainMode::kPesc, "lora.r",
                "is 0, which leaves nothing to train in train.mode LORA");
  std::vector<std::string> names;
  for (int i = 0; i < kLinears; ++i) names.emplace_back(linear_name(static_cast<Linear>(i)));
  for (int i = 0; i < l.target_modules_size(); ++i) {
    const std::string field = str_cat("lora.target_modules[", i, "]");
    const auto found = std::find(names.begin(), names.end(), l.target_modules(i));
    check.require(found != names.end(), field, unknown_linear(l.target_modules(i), names));
    const auto linear = static_cast<Linear>(found - names.begin());
    check.require(std::find(out.lora.target_modules.begin(), out.lora.target_modules.end(), linear) ==
                      out.lora.target_modules.end(),
                  field, str_cat("names '", l.target_modules(i), "' a second time"));
    out.lora.target_modules.push_back(linear);
  }
  if (out.mode != TrainMode::kPesc) return;
  const proto::Moe& m = e.moe();
  check.range<int64_t>("moe.num_experts", m.num_experts(), 1, 255);
  check.require(m.num_experts_per_tok() >= 1 && m.num_experts_per_tok() <= m.num_experts(),
                "moe.num_experts_per_tok",
                str_cat("is ", m.num_experts_per_tok(),
                        "; it must be between 1 and moe.num_experts = ", m.num_experts()));
  check.range<int64_t>("moe.adapter_dim", m.adapter_dim(), 1, 1 << 20);
  check.require(std::isfinite(m.adapter_scaling()), "moe.adapter_scaling",
                str_cat("is ", m.adapter_scaling(), "; it must be finite"));
  check.in_float32("moe.adapter_scaling", m.adapter_scaling());
  check.share("moe.adapter_dropout", m.adapter_dropout());
  check.not_negative("moe.router_aux_loss_coef", m.router_aux_loss_coef());
  out.moe = {m.num_experts(),     m.num_experts_per_tok(), m.adapter_dim(),
             m.adapter_scaling(), m.adapter_dropout(),     m.router_aux_loss_coef()};
}

void read_parallel(const proto::Parallel& p, const FieldChecker& check, ExperimentConfig& out) {
  out.parallel.device = p.device() == proto::Device::CUDA ? DeviceKind::kCuda : DeviceKind::kCpu;
  check.range("parallel.tp", p.tp(), 1, 1 << 16);
  check.range("parallel.ep", p.ep(), 1, 1 << 16);
  check.range("parallel.num_threads", p.num_threads(), 0, 1024);
  check.positive("parallel.buffer_factor", p.buffer_factor());
  out.parallel.tp = p.tp();
  out.parallel.ep =
      out.pesc.mode == TrainMode::kPesc ? p.ep() : 1;  // without experts there is nothing to spread
  out.parallel.num_threads = p.num_threads();
  out.parallel.buffer_factor = p.buffer_factor();
  out.parallel.gemm_autotune = p.gemm_autotune();
  check.range("parallel.dispatch_chunks", p.dispatch_chunks(), 0, kMaxChunks);
  out.parallel.dispatch_chunks = p.dispatch_chunks();
  if (p.expert_exchange() == proto::ExpertExchange::AUTO) out.parallel.expert_exchange.reset();
  if (p.expert_exchange() == proto::ExpertExchange::WEIGHTS)
    out.parallel.expert_exchange = ExpertExchange::kWeights;
  out.parallel.overlap_comm = p.overlap_comm() ? Overlap::kOn : Overlap::kOff;
}

void read_template(const proto::Data& p, const FieldChecker& check, ExperimentConfig& out) {
  const std::string& name = p.chat_template();
  check.require(is_template_setting(name), "data.chat_template",
                str_cat("is ", in_quotes(name),
                        "; it is auto, published, chatml, llama3, mistral, or the path "
                        "of a file, with a slash or ending in .jinja"));
  check.require(p.template_date().empty() || is_date(p.template_date()), "data.template_date",
                str_cat("is ", in_quotes(p.template_date()), "; write a day as \"2025-01-31\""));
  out.data.chat_template = name;
  out.data.template_date = p.template_date();
  out.data.train_on = p.train_on() == proto::TrainOn::LAST ? TrainOn::kLast : TrainOn::kAll;
}

void read_data(const proto::Data& p, const FieldChecker& check, ExperimentConfig& out) {
  check.range<int64_t>("data.max_seq_length", p.max_seq_length(), 2, 1 << 24);
  out.data.max_seq_length = p.max_seq_length();
  check.folder_to_make("data.cache_dir", p.cache_dir());
  out.data.cache_dir = p.cache_dir();
  const auto check_tag = [&check](const std::string& tag, const std::string& source) {
    check.require(is_printable(tag), source + ".tag",
                  str_cat("is '", printable(tag), "'; a tag is text in UTF-8 without control characters"));
  };
  for (int i = 0; i < p.train_size(); ++i) {
    const proto::Source& s = p.train(i);
    const std::string field = str_cat("data.train[", i, "]");
    check.require(!s.path().empty(), field + ".path", "is not set");
    check.require(s.weight() > 0 && s.weight() <= 1000, field + ".weight",
                  str_cat("is ", s.weight(), "; it must be positive and at most 1000"));
    check_tag(s.tag(), field);
    out.data.train.push_back({s.path(), s.tag(), s.weight(), read_columns(s.columns(), field, check)});
  }
  for (int i = 0; i < p.eval_size(); ++i) {
    const proto::EvalSource& s = p.eval(i);
    const std::string field = str_cat("data.eval[", i, "]");
    check.require(!s.path().empty(), field + ".path", "is not set");
    check_tag(s.tag(), field);
    out.data.eval.push_back({s.path(), s.tag(), 1, read_columns(s.columns(), field, check)});
  }
  check.share("data.validation_fraction", p.validation_fraction());
  out.data.validation_fraction = p.validation_fraction();
  const bool splits = p.validation_fraction() > 0;
  check.require(!splits || p.eval_size() == 0, "data.validation_fraction",
                str_cat("is ", p.validation_fraction(),
                        ", but data.eval names files to evaluate; leave one of the two out"));
  const int64_t rows = out.train.max_eval_samples;
  const int files = splits ? p.train_size() : p.eval_size();
  check.require(rows == 0 || rows >= files, "train.max_eval_samples",
                str_cat("is ", rows, ", fewer than the ", files, " files of ",
                        splits ? "data.train" : "data.eval", ", of which each gives at least one row"));
  out.data.on_bad_row = p.on_bad_row() == proto::OnBadRow::SKIP ? BadRowPolicy::kSkip : BadRowPolicy::kFail;
  out.data.on_long_row =
      p.on_long_row() == proto::OnLongRow::DROP ? LongRowPolicy::kDrop : LongRowPolicy::kCut;
  out.data.packing = p.packing() == proto::Packing::BEST_FIT ? PackingPolicy::kBestFit : PackingPolicy::kNone;
  read_template(p, check, out);
}

void read_rest(const proto::Experiment& e, const FieldChecker& check, ExperimentConfig& out) {
  const proto::Checkpoint& c = e.checkpoint();
  check.at_least("checkpoint.save_steps", c.save_steps(), 0);
  check.range<int64_t>("checkpoint.save_total_limit", c.save_total_limit(), 2, 1 << 20);
  check.at_least("checkpoint.keep_every_steps", c.keep_every_steps(), 0);
  out.checkpoint = {
      c.save_steps(),
      c.save_total_limit(),
      c.keep_every_steps(),
      c.async_save(),
      c.on_save_error() == proto::OnSaveError::CONTINUE ? OnSaveError::kContinue : OnSaveError::kStop,
      c.keep_best()};

  check.range<int64_t>("generate.max_new_tokens", e.generate().max_new_tokens(), 1, 1 << 24);
  check.not_negative("generate.temperature", e.generate().temperature());
  check.require(e.generate().top_p() > 0 && e.generate().top_p() <= 1, "generate.top_p",
                str_cat("is ", e.generate().top_p(), "; it must be positive and at most 1"));
  out.generate = {e.generate().max_new_tokens(), e.generate().temperature(), e.generate().top_p(),
                  e.generate().seed()};
  out.metrics.tensorboard = e.metrics().tensorboard();
  check.require(e.debug().routing_record().empty() || e.debug().routing_replay().empty(),
                "debug.routing_record", "and debug.routing_replay exclude each other; leave one out");
  check.folder_to_make("debug.routing_record", e.debug().routing_record());
  out.debug.routing_record = e.debug().routing_record();
  out.debug.routing_replay = e.debug().routing_replay();
  out.debug.share_gpu = e.debug().share_gpu();
}

void read_recovery(const proto::Experiment& e, const FieldChecker& check, ExperimentConfig& out) {
  const proto::Recovery& r = e.recovery();
  check.not_negative("recovery.step_limit_s", r.step_limit_s());
  check.positive("recovery.setup_limit_s", r.setup_limit_s());
  check.positive("recovery.checkpoint_limit_s", r.checkpoint_limit_s());
  check.positive("recovery.eval_limit_s", r.eval_limit_s());
  check.range<int64_t>("recovery.max_restarts", r.max_restarts(), 0, 1 << 20);
  check.positive("recovery.stop_limit_s", r.stop_limit_s());
  check.not_negative("recovery.host_wait_s", r.host_wait_s());
  check.positive("recovery.longest_pause_s", r.longest_pause_s());
  out.recovery = {r.step_limit_s(),   r.setup_limit_s(), r.checkpoint_limit_s(),
                  r.eval_limit_s(),   r.max_restarts(),  r.stop_limit_s(),
                  r.smaller_layout(), r.host_wait_s(),   r.longest_pause_s()};
  for (int i = 0; i < e.debug().fault_size(); ++i) {
    FaultPoint point;
    const std::string wrong = parse_fault(e.debug().fault(i), point);
    check.require(wrong.empty(), str_cat("debug.fault[", i, "]"),
                  str_cat("is '", e.debug().fault(i), "': ", wrong));
    out.debug.faults.push_back(point);
  }
}

void check_runnable(const proto::Experiment& e, const FieldChecker& check) {
  check.require(!e.model().has_shape() || e.train().mode() == proto::Mode::FULL, "model.shape",
                "has random weights, which only train.mode FULL can train");
  check.require(!e.model().tokenizer().empty(), "model.tokenizer",
                "is not set; a model.shape needs a tokenizer folder");
  check.require(e.data().train_size() > 0, "data.train", "is empty; name at least one file of rows");
  check.require(!e.run_dir().empty(), "run_dir", "is not set; it is where checkpoints and metrics go");
  const bool evaluates =
      (e.data().eval_size() > 0 || e.data().validation_fraction() > 0) && e.train().eval_steps() > 0;
  constexpr const char* kNeedsEvaluations =
      ", which looks at the evaluations of the run, and there are none; set train.eval_steps, and data.eval "
      "or data.validation_fraction";
  check.require(evaluates || !e.checkpoint().keep_best(), "checkpoint.keep_best",
                str_cat("is true", kNeedsEvaluations));
  const int64_t patience = e.train().early_stopping_patience();
  check.require(evaluates || patience == 0, "train.early_stopping_patience",
                str_cat("is ", patience, kNeedsEvaluations));
}

}  // namespace

ExperimentConfig parse_experiment(const std::string& text, const std::string& where,
                                  const std::vector<std::string>& overrides, ExperimentUse use) {
  ExperimentConfig out;
  const proto::Experiment e = read_experiment_text(text, where, overrides, out.places);
  const FieldChecker check(out.places);
  check.require(
      is_printable(e.name()), "name",
      str_cat("is '", printable(e.name()), "'; a name is text in UTF-8 without control characters"));
  out.name = e.name();
  check.folder_to_make("run_dir", e.run_dir());
  out.run_dir = e.run_dir();
  read_train(e.train(), check, out);
  read_model(e, check, out);
  read_lora_and_moe(e, check, out.pesc);
  read_parallel(e.parallel(), check, out);
  read_compute_types(e, check, out);
  read_data(e.data(), check, out);
  read_rest(e, check, out);
  read_recovery(e, check, out);
  if (use == ExperimentUse::kRun) check_runnable(e, check);
  check.require(out.data.train.empty() || !out.model.tokenizer.empty(), "model.tokenizer",
                "is not set; the rows of data.train need it");
  out.unused = unused_settings(e, out.places);
  out.text = resolved_text(e);
  return out;
}

ExperimentConfig load_experiment(const std::string& path, const std::vector<std::string>& overrides,
                                 ExperimentUse use) {
  // Looked at before it is opened: opening a FIFO that nobody writes to waits for ever.
  std::error_code ignored;
  if (const auto type = std::filesystem::status(path, ignored).type();
      std::filesystem::exists(std::filesystem::file_status(type)) &&
      type != std::filesystem::file_type::regular && type != std::filesystem::file_type::directory)
    throw UsageError(str_cat(path, ": is no regular file; name an experiment file"));
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UsageError(str_cat(path, ": the experiment file cannot be read: ", std::strerror(errno)));
  if (std::filesystem::is_directory(path, ignored))
    throw UsageError(str_cat(path, ": is a folder; name an experiment file"));
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (in.bad()) throw UsageError(str_cat(path, ": the experiment file cannot be read to its end"));
  const std::string kind = other_kind(std::string_view(text).substr(0, kFirstBytes), FileUse::kText);
  if (!kind.empty() && !(text.empty() && !overrides.empty())) throw UsageError(str_cat(path, ": ", kind));
  return parse_experiment(std::string(without_byte_order_mark(text)), path, overrides, use);
}

}  // namespace pesc
