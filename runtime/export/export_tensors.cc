#include "runtime/export/export_tensors.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "model/families.h"
#include "model/hf_names.h"
#include "model/parameters.h"
#include "ops/core/arena.h"
#include "ops/gemm.h"
#include "parallel/mesh.h"
#include "runtime/hf/dtype_convert.h"

namespace pesc {
namespace {

constexpr std::string_view kLoraMark = ".lora_";
constexpr std::string_view kWeight = ".weight";

bool is_lora(const std::string& name) {
  return name.find(kLoraMark) != std::string::npos;
}
bool is_router(const std::string& name) {
  return name.ends_with(".router.weight");
}

// The name of a linear's LoRA: `part` is "A" or "B". Empty for what is no weight.
std::string lora_name(const std::string& weight, std::string_view part) {
  if (!weight.ends_with(kWeight)) return {};
  return str_cat(weight.substr(0, weight.size() - kWeight.size()), kLoraMark, part, kWeight);
}

}  // namespace

ExportTensors::ExportTensors(const ModelConfig& model, const PescConfig& pesc, WeightSource* base,
                             FileSystem& files, const LoadedCheckpoint& checkpoint, Stream& stream,
                             ExportTensorsOptions options)
    : model_(model),
      lora_config_(pesc.lora),
      lora_scale_(pesc.lora.r > 0
                      ? static_cast<float>(pesc.lora.lora_alpha / static_cast<double>(pesc.lora.r))
                      : 0.0F),
      base_(base),
      reader_(files, checkpoint, stream, PieceReader::Values::kFinite),
      stream_(stream),
      options_(std::move(options)) {
  PESC_CHECK(base != nullptr || pesc.mode == TrainMode::kFull, "no base of a run that freezes it");
  Arena weights = Arena::planning("weights"), compute = Arena::planning("compute weights");
  const ModelParameters parameters(model, pesc, Mesh(1, 0, 1, 1), DType::kF32, {weights, compute, nullptr});
  for (const Parameter& p : parameters.all()) {
    PESC_CHECK(p.spec.whole(), "one rank has a piece of ", p.spec.name);
    rows_.push_back({p.spec, p.dense, p.trainable});
    if (is_lora(p.spec.name)) lora_.emplace(p.spec.name, p.spec);
  }
}

std::vector<std::string> ExportTensors::dense_names() const {
  std::vector<std::string> names;
  for (const Row& row : rows_)
    if (row.dense) names.push_back(row.spec.name);
  return names;
}

std::vector<SafetensorsWriteEntry> ExportTensors::dense(DType dtype) {
  std::map<std::string, const Row*> dense;
  for (const Row& row : rows_)
    if (row.dense) dense.emplace(row.spec.name, &row);
  // What stands in the place of a linear: the fused tensor in that of its first part, nothing in the others'.
  std::map<std::string, std::optional<SafetensorsWriteEntry>> fused_entries;
  for (int64_t layer = 0; layer < model_.num_hidden_layers; ++layer) {
    for (const hf::Fused& fused : hf::fused_weights(traits_of(model_.family).fused_linears, layer)) {
      std::vector<Row> parts;
      for (const Linear linear : fused.parts) {
        const std::string name = hf::weight(layer, linear);
        PESC_CHECK(dense.contains(name), "no ", name);
        parts.push_back(*dense.at(name));
        fused_entries.emplace(name, std::nullopt);
      }
      fused_entries.at(parts.front().spec.name) = fused_entry(fused.name, parts, dtype);
    }
  }
  std::vector<SafetensorsWriteEntry> entries;
  for (const Row& row : rows_) {
    if (!row.dense) continue;
    const auto fused = fused_entries.find(row.spec.name);
    if (fused == fused_entries.end()) {
      entries.push_back(entry(row, dtype));
    } else if (fused->second) {
      entries.push_back(std::move(*fused->second));
    }
  }
  return entries;
}

std::vector<SafetensorsWriteEntry> ExportTensors::moe_adapters(DType dtype, DType router_dtype,
                                                               std::string_view prefix) {
  std::vector<SafetensorsWriteEntry> entries;
  for (const Row& row : rows_) {
    if (row.dense || is_lora(row.spec.name)) continue;
    entries.push_back(entry(row, is_router(row.spec.name) ? router_dtype : dtype, prefix));
  }
  return entries;
}

std::vector<SafetensorsWriteEntry> ExportTensors::lora(DType dtype, std::string_view prefix) {
  std::vector<SafetensorsWriteEntry> entries;
  for (int64_t layer = 0; layer < model_.num_hidden_layers; ++layer) {
    for (const PeftModule& module : peft_modules(model_, lora_config_, layer)) {
      if (module.fused()) {
        entries.push_back(fused_lora_a(module, layer, dtype, prefix));
        entries.push_back(fused_lora_b(module, layer, dtype, prefix));
        continue;
      }
      for (const std::string& name : {module.lora_a(), module.lora_b()})
        entries.push_back(entry({lora_.at(name), false, true}, dtype, prefix));
    }
  }
  return entries;
}

SafetensorsWriteEntry ExportTensors::fused_lora_a(const PeftModule& module, int64_t layer, DType dtype,
                                                  std::string_view prefix) {
  std::vector<Row> parts;
  for (const PeftModule::Part& part : module.parts)
    if (part.block >= 0) parts.push_back({lora_.at(hf::lora_a(layer, part.linear)), false, true});
  return fused_entry(str_cat(prefix, module.lora_a()), parts, dtype);
}

SafetensorsWriteEntry ExportTensors::fused_lora_b(const PeftModule& module, int64_t layer, DType dtype,
                                                  std::string_view prefix) {
  const int64_t r = lora_config_.r, rank = module.blocks * r;
  const auto write = [this, module, layer, dtype, r, rank](const ByteSink& sink) {
    const int64_t at_once =
        std::max<int64_t>(1, options_.slice_bytes / (rank * static_cast<int64_t>(sizeof(float))));
    std::vector<float> block, values;
    for (const PeftModule::Part& part : module.parts) {
      for (int64_t row = 0; row < part.rows; row += at_once) {
        const int64_t rows = std::min(at_once, part.rows - row);
        values.assign(static_cast<size_t>(rows * rank), 0.0F);
        if (part.block >= 0) {
          read(lora_.at(hf::lora_b(layer, part.linear)), true, row, rows, block);
          for (int64_t i = 0; i < rows; ++i)
            std::copy_n(block.begin() + i * r, r, values.begin() + i * rank + part.block * r);
        }
        put(values, dtype, sink);
      }
    }
  };
  return {str_cat(prefix, module.lora_b()), dtype, {module.rows, rank}, write};
}

SafetensorsWriteEntry ExportTensors::entry(const Row& row, DType dtype, std::string_view prefix) {
  PESC_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "an export in ", dtype_name(dtype));
  const ShardSpec& spec = row.spec;
  std::vector<int64_t> shape{spec.global_rows, spec.global_cols};
  if (row.dense && spec.global_rows == 1)
    shape.erase(shape.begin());  // vectors have one dimension in these files
  return {str_cat(prefix, spec.name), dtype, shape,
          [this, spec, trainable = row.trainable, dtype](const ByteSink& sink) {
            produce(spec, trainable, dtype, sink);
          }};
}

SafetensorsWriteEntry ExportTensors::fused_entry(const std::string& name, const std::vector<Row>& parts,
                                                 DType dtype) {
  PESC_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "an export in ", dtype_name(dtype));
  std::vector<int64_t> shape{0, parts.front().spec.global_cols};
  for (const Row& part : parts) {
    PESC_CHECK(part.spec.global_cols == shape.back(), part.spec.name, " within ", name);
    shape.front() += part.spec.global_rows;
  }
  return {name, dtype, shape, [this, parts, dtype](const ByteSink& sink) {
            for (const Row& part : parts) produce(part.spec, part.trainable, dtype, sink);
          }};
}

void ExportTensors::produce(const ShardSpec& spec, bool trainable, DType dtype, const ByteSink& sink) {
  const int64_t row_bytes = spec.global_cols * static_cast<int64_t>(sizeof(float));
  const int64_t at_once = std::max<int64_t>(1, options_.slice_bytes / std::max<int64_t>(1, row_bytes));
  std::vector<float> values;
  for (int64_t row = 0; row < spec.global_rows; row += at_once) {
    const int64_t rows = std::min(at_once, spec.global_rows - row);
    read(spec, trainable, row, rows, values);
    if (!trainable) add_lora(spec, row, rows, values);
    put(values, dtype, sink);
  }
}

void ExportTensors::put(const std::vector<float>& values, DType dtype, const ByteSink& sink) {
  std::vector<uint16_t> rounded;
  std::span<const std::byte> bytes = std::as_bytes(std::span(values));
  if (dtype == DType::kBF16) {
    rounded.resize(values.size());
    convert_to_bf16(values, rounded.data());
    bytes = std::as_bytes(std::span(rounded));
  }
  sink(bytes);
  if (options_.progress) options_.progress(static_cast<int64_t>(bytes.size()));
}

void ExportTensors::read(const ShardSpec& whole, bool trainable, int64_t row, int64_t rows,
                         std::vector<float>& into) {
  into.resize(static_cast<size_t>(rows * whole.global_cols));
  ShardSpec slice = whole;
  slice.row = row;
  slice.rows = rows;
  if (!trainable) return base_->read(slice, into.data());
  reader_.read(slice, proto::TensorKind::PARAM, tensor_of(into.data(), rows, whole.global_cols));
}

void ExportTensors::add_lora(const ShardSpec& weight, int64_t row, int64_t rows, std::vector<float>& values) {
  const auto a = lora_.find(lora_name(weight.name, "A")), b = lora_.find(lora_name(weight.name, "B"));
  if (a == lora_.end()) return;
  PESC_CHECK(b != lora_.end(), "LoRA A without B: ", a->first);
  const int64_t r = a->second.global_rows;
  if (lora_a_name_ != a->first) {
    read(a->second, true, 0, r, lora_a_);
    lora_a_name_ = a->first;
  }
  std::vector<float> lora_b;
  read(b->second, true, row, rows, lora_b);
  gemm(stream_, {.a = tensor_of(lora_b.data(), rows, r),
                 .b = tensor_of(lora_a_.data(), r, weight.global_cols),
                 .c = tensor_of(values.data(), rows, weight.global_cols),
                 .alpha = lora_scale_,
                 .beta = 1.0F});
}

}  // namespace pesc
