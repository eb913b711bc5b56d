// A folder with quantised weights that a test writes by the definition of its format, and the values that its bytes
// stand for.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/hf_names.h"
#include "ops/core/e4m3.h"
#include "ops/nf4.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/hf/safetensors_write.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {

struct StoredBytes {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};
using StoredTensors = std::map<std::string, StoredBytes>;

template <class T>
[[nodiscard]] StoredBytes stored(DType dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
  StoredBytes out{dtype, std::move(shape), std::vector<std::byte>(values.size() * sizeof(T))};
  if (!values.empty()) std::memcpy(out.bytes.data(), values.data(), out.bytes.size());
  return out;
}
[[nodiscard]] inline StoredBytes stored_text(const std::string& text) {
  return stored(DType::kU8, {static_cast<int64_t>(text.size())}, std::vector<char>(text.begin(), text.end()));
}
inline void write_stored(const std::string& path, const StoredTensors& tensors) {
  std::vector<SafetensorsWriteEntry> entries;
  for (const auto& [name, t] : tensors)
    entries.push_back({name, t.dtype, t.shape, [&t](const ByteSink& sink) { sink(t.bytes); }});
  write_safetensors(path, entries, {});
}

// A weight [rows, cols]: what a file holds of it, and its values.
struct StoredWeight {
  int64_t rows = 0, cols = 0;
  StoredTensors tensors;  // by what stands after the module's name
  std::vector<float> values;
  // Adds it to a folder under the name of a module.
  void add_to(StoredTensors& folder, const std::string& module) const {
    for (const auto& [end, t] : tensors) folder[module + end] = t;
  }
};

// Codes of all kinds but NaN, subnormals and zeros of both signs among them.
[[nodiscard]] inline std::vector<uint8_t> e4m3_codes(int64_t n, unsigned seed) {
  std::vector<uint8_t> codes(static_cast<size_t>(n));
  uint32_t state = 2654435761U * (seed + 1);
  for (uint8_t& code : codes) {
    state = state * 1664525U + 1013904223U;
    code = static_cast<uint8_t>(state >> 24);
    if ((code & 0x7FU) == 0x7FU) code = 0;
  }
  return codes;
}
[[nodiscard]] inline float scale_at(int64_t i) {
  return i % 7 == 3 ? 0.0F : 0.001F * (1.0F + 0.37F * static_cast<float>(i % 11));
}

[[nodiscard]] inline StoredWeight fp8_rows(int64_t rows, int64_t cols, unsigned seed = 1) {
  StoredWeight w{rows, cols, {}, {}};
  const std::vector<uint8_t> codes = e4m3_codes(rows * cols, seed);
  std::vector<float> scales;
  for (int64_t r = 0; r < rows; ++r) scales.push_back(scale_at(r + seed));
  for (int64_t i = 0; i < rows * cols; ++i)
    w.values.push_back(e4m3_to_f32(codes[static_cast<size_t>(i)]) * scales[static_cast<size_t>(i / cols)]);
  w.tensors[".weight"] = stored(DType::kE4M3, {rows, cols}, codes);
  w.tensors[".weight_scale"] = stored(DType::kF32, {rows, 1}, scales);
  return w;
}

[[nodiscard]] inline StoredWeight fp8_blocks(int64_t rows, int64_t cols, unsigned seed = 1) {
  StoredWeight w{rows, cols, {}, {}};
  const std::vector<uint8_t> codes = e4m3_codes(rows * cols, seed);
  const int64_t down = (rows + 127) / 128, across = (cols + 127) / 128;
  std::vector<float> scales;
  for (int64_t i = 0; i < down * across; ++i) scales.push_back(scale_at(i + seed));
  for (int64_t i = 0; i < rows * cols; ++i) {
    const int64_t block = i / cols / 128 * across + i % cols / 128;
    w.values.push_back(e4m3_to_f32(codes[static_cast<size_t>(i)]) * scales[static_cast<size_t>(block)]);
  }
  w.tensors[".weight"] = stored(DType::kE4M3, {rows, cols}, codes);
  w.tensors[".weight_scale_inv"] = stored(DType::kF32, {down, across}, scales);
  return w;
}

// NF4 as bitsandbytes writes it, of any codes; with double quantisation or without.
[[nodiscard]] inline StoredWeight nf4_weight(int64_t rows, int64_t cols, FrozenFormat format,
                                             unsigned seed = 1) {
  const bool nested = format == FrozenFormat::kNF4;
  StoredWeight w{rows, cols, {}, {}};
  const int64_t n = rows * cols, blocks = (n + kNf4Block - 1) / kNf4Block;
  const std::vector<uint8_t> packed = e4m3_codes((n + 1) / 2, seed), codes = e4m3_codes(blocks, seed + 1);
  const float offset = 0.2F;
  std::vector<float> groups, absmax;
  for (int64_t g = 0; g * kNf4Group < n; ++g) groups.push_back(0.1F + 0.013F * static_cast<float>(g));
  for (int64_t b = 0; b < blocks; ++b) {
    const volatile float product = dynamic_code()[codes[static_cast<size_t>(b)]] *
                                   groups[static_cast<size_t>(b * kNf4Block / kNf4Group)];
    absmax.push_back(product + offset);
  }
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t two = packed[static_cast<size_t>(i / 2)];
    w.values.push_back(nf4_code()[i % 2 == 0 ? two >> 4 : two & 15] *
                       absmax[static_cast<size_t>(i / kNf4Block)]);
  }
  const auto size = [](const auto& values) { return static_cast<int64_t>(values.size()); };
  w.tensors[".weight"] = stored(DType::kU8, {size(packed), 1}, packed);
  w.tensors[".weight.quant_map"] =
      stored(DType::kF32, {16}, std::vector<float>(nf4_code().begin(), nf4_code().end()));
  std::string more;
  if (nested) {
    w.tensors[".weight.absmax"] = stored(DType::kU8, {blocks}, codes);
    w.tensors[".weight.nested_absmax"] = stored(DType::kF32, {size(groups)}, groups);
    w.tensors[".weight.nested_quant_map"] =
        stored(DType::kF32, {256}, std::vector<float>(dynamic_code().begin(), dynamic_code().end()));
    more = R"(, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.20000000298023224)";
  } else {
    w.tensors[".weight.absmax"] = stored(DType::kF32, {blocks}, absmax);
  }
  w.tensors[".weight.quant_state.bitsandbytes__nf4"] =
      stored_text(str_cat(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [)", rows,
                          ", ", cols, "]", more, "}"));
  return w;
}

[[nodiscard]] inline StoredWeight quantized_weight(FrozenFormat format, int64_t rows, int64_t cols,
                                                   unsigned seed) {
  if (is_nf4(format)) return nf4_weight(rows, cols, format, seed);
  return format == FrozenFormat::kFP8 ? fp8_rows(rows, cols, seed) : fp8_blocks(rows, cols, seed);
}

}  // namespace pesc
