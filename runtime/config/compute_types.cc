#include "runtime/config/compute_types.h"

#include <string>

#include "ops/core/check.h"

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

}  // namespace pesc
