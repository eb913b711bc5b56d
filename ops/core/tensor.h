// A non-owning view of a two-dimensional tensor: [rows, cols] elements, rows `ld` elements apart. A vector is
// [1, n]. Activations are [tokens, columns]; weights are [out, in], as Hugging Face stores them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/core/check.h"

namespace pesc {

// kE4M3: FP8 of ops/core/e4m3.h.
enum class DType : uint8_t { kF32, kBF16, kF16, kI32, kI64, kU8, kF64, kE4M3 };

[[nodiscard]] constexpr int64_t dtype_bytes(DType t) {
  switch (t) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kU8:
    case DType::kE4M3:
      return 1;
  }
  return 0;
}

[[nodiscard]] constexpr const char* dtype_name(DType t) {
  switch (t) {
    case DType::kF64:
      return "F64";
    case DType::kI64:
      return "I64";
    case DType::kF32:
      return "F32";
    case DType::kI32:
      return "I32";
    case DType::kBF16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kU8:
      return "U8";
    case DType::kE4M3:
      return "F8_E4M3";
  }
  return "?";
}

struct Tensor {
  void* data = nullptr;  // device memory of the stream's device; null for an absent tensor or while planning
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t ld = 0;  // elements between the starts of two rows; >= cols

  [[nodiscard]] bool present() const { return data != nullptr; }
  [[nodiscard]] int64_t size() const { return rows * cols; }
  [[nodiscard]] int64_t bytes() const { return size() * dtype_bytes(dtype); }
  [[nodiscard]] bool contiguous() const { return ld == cols || rows <= 1; }

  // Typed access for the CPU; the dtype is checked.
  [[nodiscard]] float* f32() const { return typed<float>(DType::kF32); }
  [[nodiscard]] double* f64() const { return typed<double>(DType::kF64); }
  [[nodiscard]] int32_t* i32() const { return typed<int32_t>(DType::kI32); }
  [[nodiscard]] int64_t* i64() const { return typed<int64_t>(DType::kI64); }
  [[nodiscard]] uint8_t* u8() const { return typed<uint8_t>(DType::kU8); }
  [[nodiscard]] uint8_t* e4m3() const { return typed<uint8_t>(DType::kE4M3); }  // the codes

  // Rows [begin, end) and columns [begin, end) of this view, sharing its memory.
  [[nodiscard]] Tensor row_range(int64_t begin, int64_t end) const {
    PESC_CHECK(0 <= begin && begin <= end && end <= rows, "rows ", begin, "..", end, " of ", rows);
    Tensor t = *this;
    t.data = offset(begin * ld);
    t.rows = end - begin;
    return t;
  }
  [[nodiscard]] Tensor col_range(int64_t begin, int64_t end) const {
    PESC_CHECK(0 <= begin && begin <= end && end <= cols, "columns ", begin, "..", end, " of ", cols);
    Tensor t = *this;
    t.data = offset(begin);
    t.cols = end - begin;
    return t;
  }
  // The same memory as another shape of the same size; needs a contiguous view.
  [[nodiscard]] Tensor reshaped(int64_t new_rows, int64_t new_cols) const {
    PESC_CHECK(contiguous() && new_rows * new_cols == size(), "reshape of ", rows, "x", cols);
    return Tensor{data, dtype, new_rows, new_cols, new_cols};
  }
  // A contiguous [rows, cols] view at the start of this contiguous buffer.
  [[nodiscard]] Tensor leading(int64_t new_rows, int64_t new_cols) const {
    return reshaped(1, size()).col_range(0, new_rows * new_cols).reshaped(new_rows, new_cols);
  }

 private:
  template <class T>
  [[nodiscard]] T* typed(DType want) const {
    PESC_CHECK(dtype == want, "dtype is ", dtype_name(dtype), ", not ", dtype_name(want));
    return static_cast<T*>(data);
  }
  [[nodiscard]] void* offset(int64_t elements) const {
    return data == nullptr ? nullptr : static_cast<std::byte*>(data) + elements * dtype_bytes(dtype);
  }
};

// A contiguous view of memory that somebody else owns.
[[nodiscard]] inline Tensor tensor_of(float* data, int64_t rows, int64_t cols) {
  return {data, DType::kF32, rows, cols, cols};
}
[[nodiscard]] inline Tensor tensor_of(int32_t* data, int64_t rows, int64_t cols) {
  return {data, DType::kI32, rows, cols, cols};
}
[[nodiscard]] inline Tensor tensor_of(int64_t* data, int64_t rows, int64_t cols) {
  return {data, DType::kI64, rows, cols, cols};
}

}  // namespace pesc
