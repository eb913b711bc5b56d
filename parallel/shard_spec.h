// One rank's piece of one tensor. Loading, saving, export, gradient reduction and the norm all read it.
#pragma once

#include <cstdint>
#include <string>

namespace pesc {

// The rectangle [row, row + rows) x [col, col + cols) of the global tensor `name`, whose shape is
// [global_rows, global_cols]. Vectors are [1, n]. Several ranks may hold the same rectangle: `replicas` is
// their number, and `replica` numbers them from 0 in rank order. Gradients of a piece are summed over exactly
// the ranks that hold it; replica 0 counts it in norms.
struct ShardSpec {
  std::string name;
  int64_t global_rows = 0;
  int64_t global_cols = 0;
  int64_t row = 0;
  int64_t rows = 0;
  int64_t col = 0;
  int64_t cols = 0;
  int replica = 0;
  int replicas = 1;

  [[nodiscard]] int64_t size() const { return rows * cols; }
  [[nodiscard]] bool whole() const { return rows == global_rows && cols == global_cols; }
  friend bool operator==(const ShardSpec&, const ShardSpec&) = default;
};

// split_range: part `index` of `total` items in `parts` pieces of ceil(total / parts). The last pieces may be
// short or empty.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  [[nodiscard]] int64_t size() const { return end - begin; }
};
[[nodiscard]] constexpr Range split_range(int64_t total, int parts, int index) {
  const int64_t piece = (total + parts - 1) / parts;
  const int64_t begin = piece * index < total ? piece * index : total;
  const int64_t end = begin + piece < total ? begin + piece : total;
  return {begin, end};
}

}  // namespace pesc
