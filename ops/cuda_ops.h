// The table of the CUDA implementations of the ops in ops/*.h, with one entry for each public function that
// runs on a stream. X.cc calls cuda_ops().NAME when the stream is on a GPU; X.cu defines pesc::cuda::NAME
// with the same signature. In a build without CUDA, cuda_ops() throws UsageError. See ops/README.md for how
// to add an op.
#pragma once

#include "ops/adamw.h"
#include "ops/adapter.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/fp8.h"
#include "ops/fp8_gemm.h"
#include "ops/gemm.h"
#include "ops/head_norm.h"
#include "ops/init.h"
#include "ops/lora.h"
#include "ops/low_rank.h"
#include "ops/nf4.h"
#include "ops/nf4_quantizer.h"
#include "ops/reduce.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"
#include "ops/router.h"
#include "ops/swiglu.h"

// clang-format off
#define PESC_CUDA_OPS(OP)                                                                                    \
  OP(adamw) OP(adapter_forward) OP(adapter_backward) OP(adapter_pre_act) OP(attention_forward)                \
  OP(attention_backward) OP(cross_entropy_max) OP(cross_entropy_sums) OP(cross_entropy_grad)                 \
  OP(cross_entropy_loss) OP(dropout) OP(dropout_sum) OP(dropout_residual) OP(embedding_forward) OP(embedding_backward) OP(gemm)   \
  OP(fp8_dequantize) OP(fp8_dequantize_blocks) OP(fp8_gemm) OP(fp8_quantize) OP(fp8_transpose) OP(nf4_absmax)  \
  OP(nf4_dequantize) OP(nf4_quantize) OP(nf4_to_fp8)                                                         \
  OP(gemm_choices) OP(set_gemm_choices) OP(set_gemm_trials)                                                  \
  OP(head_norm_forward) OP(head_norm_backward) OP(init_uniform) OP(init_normal) OP(fill_zero) OP(copy)       \
  OP(cast) OP(add) OP(add_bias) OP(bias_backward) OP(gather_rows) OP(scatter_add_rows) OP(sum_squares) OP(sum)        \
  OP(rmsnorm_forward) OP(rmsnorm_apply) OP(rmsnorm_backward) OP(rope_table) OP(rope) OP(router_forward)      \
  OP(router_backward) OP(add_low_rank_term) OP(router_aux_loss) OP(swiglu_forward) OP(swiglu_backward)
// clang-format on

namespace pesc {

namespace cuda {
#define PESC_DECLARE(name) extern decltype(pesc::name) name;
PESC_CUDA_OPS(PESC_DECLARE)
#undef PESC_DECLARE
}  // namespace cuda

struct CudaOps {
#define PESC_MEMBER(name) decltype(&pesc::name) name;
  PESC_CUDA_OPS(PESC_MEMBER)
#undef PESC_MEMBER
};

[[nodiscard]] const CudaOps& cuda_ops();

}  // namespace pesc
