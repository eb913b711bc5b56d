// A weight that a published folder holds quantised, and its slices: codes and scales as they are in the file, or
// the values that they stand for.
//
//   FP8, a scale for each row      NAME.weight F8_E4M3 [out, in], NAME.weight_scale [out, 1], [out] or [1]
//                                  (compressed-tensors, fbgemm)
//   FP8, blocks of 128 x 128       NAME.weight F8_E4M3 [out, in], NAME.weight_scale_inv or NAME.weight_scale
//                                  [out / 128, in / 128], rounded up (DeepSeek, Qwen; compressed-tensors)
//   NF4                            NAME.weight U8 [(out * in + 1) / 2, 1], and after NAME.weight: .absmax, .quant_map,
//                                  .quant_state.bitsandbytes__nf4 (JSON); with double quantisation also
//                                  .nested_absmax, .nested_quant_map (bitsandbytes; ops/nf4.h)
//
// A value is code times scale in float32. Scales may be F32, BF16 or F16. Blocks and rows are those of the published tensor,
// whatever part of it a slice begins in.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/frozen_linear.h"
#include "runtime/hf/safetensors.h"
#include "runtime/hf/tensor_slice.h"

namespace pesc {

// A tensor and the file that it stands in.
struct StoredTensor {
  const SafetensorsFile* file = nullptr;
  const SafetensorsEntry* entry = nullptr;  // null: there is none
  [[nodiscard]] bool present() const { return entry != nullptr; }
};

class QuantizedFolderTensor {
 public:
  // `weight` is NAME.weight; `find` gives a tensor of the folder by its name. Throws DataError naming file and tensor where
  // one is missing, or has another type, shape, block size or code table than the format.
  QuantizedFolderTensor(FrozenFormat format, const std::string& weight,
                        const std::function<StoredTensor(const std::string& name)>& find);

  // The names of all tensors of a weight but itself, those that have no meaning here too.
  [[nodiscard]] static std::vector<std::string> companions(FrozenFormat format, const std::string& weight);
  // Whether a name is that of a scale or of another part of a quantised weight, in this or another format.
  [[nodiscard]] static bool is_companion(const std::string& name);

  [[nodiscard]] FrozenFormat format() const { return format_; }
  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t cols() const { return cols_; }

  // Writes codes and scales to `to`, [slice.rows, slice.cols] in host memory, of this format (WeightSource::read_codes).
  // Returns the bytes that they occupy in the file. Throws DataError naming tensor and place for what stands for no
  // finite value.
  int64_t read_codes(const TensorSlice& slice, const FrozenLinear& to) const;
  // Writes the values, contiguous [slice.rows, slice.cols]. The same otherwise.
  int64_t read_values(const TensorSlice& slice, float* to) const;

 private:
  void open_fp8(const std::string& weight, const std::function<StoredTensor(const std::string&)>& find);
  void open_nf4(const std::string& weight, const std::function<StoredTensor(const std::string&)>& find);
  void read_quant_state(const StoredTensor& state);
  int64_t read_fp8(const TensorSlice& slice, const FrozenLinear& to) const;
  int64_t read_nf4(const TensorSlice& slice, const FrozenLinear& to) const;
  void read_nf4_codes(int64_t first, int64_t cols, uint8_t* to) const;
  [[nodiscard]] float absmax_of(int64_t block) const;

  FrozenFormat format_;
  StoredTensor codes_, scales_;  // scales: of FP8, or the absmaxes of NF4
  int64_t rows_ = 0, cols_ = 0;
  StoredTensor nested_;  // of NF4 with double quantisation
  float offset_ = 0;     // likewise
};

}  // namespace pesc
