// quantization_config of config.json: in which format the folder holds its linears, and which of them it left as they
// were.
//
//   quant_method         read as                       needs
//   compressed-tensors   FP8 rows, or FP8 blocks       one group of all Linear, weights of 8-bit floats, symmetric;
//                                                      strategy channel or tensor, or block with block_structure 128 x 128
//   fbgemm_fp8           FP8 rows
//   fp8                  FP8 blocks                    weight_block_size [128, 128], fmt e4m3
//   bitsandbytes         NF4, double quantised or not  load_in_4bit, bnb_4bit_quant_type nf4, storage uint8
//
// Anything else (GPTQ, AWQ, int8, MXFP4 ...) is refused by name. How such folders quantise activations when they are
// served is another matter: what is computed in says train.compute_dtype.
#pragma once

#include <optional>

#include "model/config.h"
#include "runtime/hf/config_fields.h"

namespace pesc {

// REQUIRES: `model` has its family and layers. Absent: the file says nothing of a quantisation. Throws DataError naming
// the key, its value and what is supported.
[[nodiscard]] std::optional<QuantizedBase> read_quantization(const ConfigFields& fields,
                                                             const ModelConfig& model);

}  // namespace pesc
