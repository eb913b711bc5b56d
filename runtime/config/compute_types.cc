#include "runtime/config/compute_types.h"

#include <string>

#include "ops/core/check.h"
#include "runtime/config/resolved.h"

namespace pesc {
namespace {

using Frozen = proto::FrozenDtype;
using Compute = proto::ComputeDtype;

void check_frozen(Frozen::Value frozen, DType compute, bool fp8, TrainMode mode, const FieldChecker& check) {
  const std::string& name = Frozen::Value_Name(frozen);
  const bool quantized = frozen == Frozen::FP8 || frozen == Frozen::NF4;
  check.require(
      !quantized || mode != TrainMode::kFull, "train.frozen_dtype",
      str_cat("is ", name, ", but train.mode FULL trains every weight; leave it out, or train PESC or LORA"));
  check.require(
      frozen != Frozen::F32 || compute == DType::kF32, "train.frozen_dtype",
      "is F32, but train.compute_dtype is BF16 or FP8; leave it out: plain weights have the compute type");
  check.require(
      frozen != Frozen::BF16 || (compute == DType::kBF16 && !fp8), "train.frozen_dtype",
      str_cat("is BF16, but train.compute_dtype is ", fp8 ? "FP8, which multiplies weights that are held in "
                                                            "FP8 or NF4; set train.frozen_dtype: FP8"
                                                          : "F32; leave it out: plain weights have the "
                                                            "compute type"));
}

}  // namespace

void read_compute_types(const proto::Experiment& e, const FieldChecker& check, ExperimentConfig& out) {
  const bool cuda = out.parallel.device == DeviceKind::kCuda;
  const auto compute = e.train().compute_dtype();
  const auto frozen = e.train().frozen_dtype();
  const bool fp8 = compute == Compute::FP8;
  check.require(cuda || (compute != Compute::BF16 && !fp8), "train.compute_dtype",
                str_cat("is ", Compute::Value_Name(compute),
                        ", which parallel.device CPU does not compute in; leave it out, or set "
                        "parallel.device: CUDA"));
  check.require(!fp8 || out.pesc.mode != TrainMode::kFull, "train.compute_dtype",
                "is FP8, but train.mode FULL trains every weight; set BF16, or train PESC or LORA");
  const bool narrow = compute == Compute::BF16 || fp8 || (compute == Compute::AUTO && cuda);
  out.train.compute_dtype = narrow ? DType::kBF16 : DType::kF32;
  check_frozen(frozen, out.train.compute_dtype, fp8, out.pesc.mode, check);
  if (frozen == Frozen::NF4) out.train.frozen_dtype = FrozenFormat::kNF4;
  if (frozen == Frozen::FP8 || (frozen == Frozen::AUTO && fp8)) out.train.frozen_dtype = FrozenFormat::kFP8;
  if (fp8) out.train.frozen_gemm = FrozenGemm::kFP8;
  if (frozen == Frozen::FP8 && compute == Compute::AUTO && cuda)
    out.train.frozen_gemm.reset();  // FP8 where the device supports it
}

void use_folder_format(ExperimentConfig& config, const ModelConfig& model) {
  if (!model.quantized) return;
  const FrozenFormat format = model.quantized->format;
  proto::Experiment e = read_recorded_experiment(config.text);
  const auto frozen = e.train().frozen_dtype();
  const auto compute = e.train().compute_dtype();
  const FieldChecker check(config.places);
  const char* plain = config.train.compute_dtype == DType::kBF16 ? "BF16" : "F32";
  const std::string dequantised =
      str_cat("set train.frozen_dtype: ", plain, ", which dequantises them when they are read");
  const std::string holds = str_cat("the folder of model.path holds ", frozen_format_text(format), ", ");
  if (frozen == Frozen::F32 || frozen == Frozen::BF16) return;
  check.require(config.pesc.mode != TrainMode::kFull, "train.mode",
                str_cat("is FULL, which trains every weight, but ", holds, "which cannot be trained; ",
                        dequantised, ", or train PESC or LORA"));
  const bool fp8 = format == FrozenFormat::kFP8 || format == FrozenFormat::kFP8Blocks;
  const auto own = fp8 ? Frozen::FP8 : Frozen::NF4;
  check.require(frozen == Frozen::AUTO || frozen == own, "train.frozen_dtype",
                str_cat("is ", Frozen::Value_Name(frozen), ", but ", holds,
                        "and weights are not quantised a second time; leave it out, or ", dequantised));
  check.require(e.model().cache_dir().empty(), "model.cache_dir",
                str_cat("is set, but ", holds,
                        "which are read as they are: nothing is quantised that could be kept; leave it out"));
  const bool blocks = format == FrozenFormat::kFP8Blocks;
  check.require(
      !blocks || compute != Compute::FP8, "train.compute_dtype",
      str_cat("is FP8, but ", holds,
              "which are dequantised for each GEMM: FP8 is computed of FP8 with a scale for each row and of "
              "NF4; leave it out, or set BF16"));
  config.train.frozen_dtype = format;
  if (compute == Compute::AUTO && config.parallel.device == DeviceKind::kCuda) {
    // FP8 where the device supports it.
    config.train.frozen_gemm =
        format == FrozenFormat::kFP8 ? std::nullopt : std::optional(FrozenGemm::kDequantized);
  }
  e.mutable_train()->set_frozen_dtype(own);
  config.text = resolved_text(std::move(e));
}

}  // namespace pesc
