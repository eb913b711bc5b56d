#include "ops/nf4_quantizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "ops/core/check.h"
#include "ops/core/threads.h"

namespace pesc {
namespace {

constexpr int64_t kRun = kNf4Group / kNf4Block;  // blocks of a group
constexpr uint32_t kInfinity = 0x7F800000U;

uint32_t magnitude_bits(float v) {
  return std::bit_cast<uint32_t>(v) & 0x7FFFFFFFU;
}

// bitsandbytes takes the code whose distance in float32 is the least, and of two equal ones the lower. Border i
// is the largest value in [-1, 1] that goes to code i and not to code i + 1.
std::array<float, 15> make_borders() {
  const auto& code = nf4_code();
  std::array<float, 15> out{};
  for (size_t i = 0; i < out.size(); ++i) {
    float low = code[i];
    float high = code[i + 1];
    while (std::nextafter(low, high) < high) {
      const float middle = low + (high - low) / 2;
      const float inside = std::clamp(middle, std::nextafter(low, high), std::nextafter(high, low));
      (std::abs(inside - code[i]) <= std::abs(inside - code[i + 1]) ? low : high) = inside;
    }
    out[i] = low;
  }
  return out;
}

uint8_t nearest(const std::array<float, 15>& borders, float v) {
  int code = 0;
  for (const float border : borders) code += v > border ? 1 : 0;
  return static_cast<uint8_t>(code);
}

// The code of a normalised absmax in [-1, 1]. bitsandbytes rounds it to a grid of 2^16 points first, and takes
// the code nearest to the point; of two equally near the lower. (Found with its published results: without the
// grid a few in a thousand differ, by one code.)
constexpr int kGrid = (1 << 16) - 1;
std::vector<uint8_t> make_dynamic_grid() {
  const auto& code = dynamic_code();
  std::vector<uint8_t> out(kGrid + 1);
  size_t i = 0;
  for (int point = 0; point <= kGrid; ++point) {
    const double v = static_cast<double>(point) / kGrid * 2.0 - 1.0;
    while (i < 255 &&
           std::abs(v - static_cast<double>(code[i + 1])) < std::abs(v - static_cast<double>(code[i])))
      ++i;
    out[static_cast<size_t>(point)] = static_cast<uint8_t>(i);
  }
  return out;
}

uint8_t dynamic_code_of(float normal) {
  static const std::vector<uint8_t> grid = make_dynamic_grid();
  const double point = std::floor((static_cast<double>(normal) + 1.0) / 2.0 * kGrid + 0.5);
  return grid[static_cast<size_t>(std::clamp(point, 0.0, static_cast<double>(kGrid)))];
}

}  // namespace

Nf4Quantizer::Nf4Quantizer(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {
  PESC_CHECK(rows > 0 && cols > 0, "a tensor of ", rows, "x", cols);
  absmax_.assign(static_cast<size_t>((rows * cols + kNf4Block - 1) / kNf4Block), 0.0F);
}

int64_t Nf4Quantizer::scan(const Stream& host, int64_t rows, const float* values) {
  PESC_CHECK(scanned_ + rows <= rows_, scanned_ + rows, " rows of ", rows_);
  const int64_t first = scanned_ * cols_;
  const int64_t last = first + rows * cols_;
  const int64_t block0 = first / kNf4Block;
  const int64_t blocks = (last + kNf4Block - 1) / kNf4Block - block0;
  parallel_for(host, blocks, 256, [&](int64_t begin, int64_t end) {
    for (int64_t b = block0 + begin; b < block0 + end; ++b) {
      float& absmax = absmax_[static_cast<size_t>(b)];
      uint32_t largest = magnitude_bits(absmax);
      const int64_t to = std::min((b + 1) * kNf4Block, last);
      for (int64_t i = std::max(b * kNf4Block, first); i < to; ++i)
        largest = std::max(largest, magnitude_bits(values[i - first]));
      absmax = std::bit_cast<float>(largest);
    }
  });
  scanned_ += rows;
  for (int64_t b = block0; b < block0 + blocks; ++b) {
    if (magnitude_bits(absmax_[static_cast<size_t>(b)]) < kInfinity) continue;
    const float* bad =
        std::find_if(values, values + rows * cols_, [](float v) { return magnitude_bits(v) >= kInfinity; });
    return bad - values;
  }
  return -1;
}

void Nf4Quantizer::quantize_absmax() {
  PESC_CHECK(scanned_ == rows_, scanned_, " rows of ", rows_, " were seen");
  double sum = 0;
  for (const float a : absmax_) sum += static_cast<double>(a);
  scales_.offset = static_cast<float>(sum / static_cast<double>(absmax_.size()));
  const auto n = static_cast<int64_t>(absmax_.size());
  scales_.absmax_codes.resize(absmax_.size());
  scales_.nested.clear();
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = std::min(begin + kRun, n);
    float largest = 0;
    for (int64_t b = begin; b < end; ++b)
      largest = std::max(largest, std::abs(absmax_[static_cast<size_t>(b)] - scales_.offset));
    scales_.nested.push_back(largest);
    for (int64_t b = begin; b < end; ++b) {
      // Where all are the offset, every code stands for it; that of 0 is taken.
      const float normal = largest > 0 ? (absmax_[static_cast<size_t>(b)] - scales_.offset) / largest : 0.0F;
      scales_.absmax_codes[static_cast<size_t>(b)] = dynamic_code_of(normal);
    }
  }
}

void Nf4Quantizer::quantize(const Stream& host, int64_t row, int64_t col, const float* values,
                            const Nf4Matrix& out) const {
  PESC_CHECK(row >= 0 && row + out.rows() <= rows_ && col >= 0 && col + out.cols <= cols_, "rows ", row,
             " and ", out.rows(), " more, columns ", col, " and ", out.cols, " more of ", rows_, "x", cols_);
  PESC_CHECK(!scales_.nested.empty(), "quantize_absmax() comes before");
  parallel_for(host, out.rows(), row_grain(4 * out.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) quantize_row(row + r, col, values + r * cols_, out, r);
  });
}

void Nf4Quantizer::quantize_row(int64_t row, int64_t col, const float* values, const Nf4Matrix& out,
                                int64_t to) const {
  static const std::array<float, 15> borders = make_borders();
  const int64_t first = row * cols_ + col;
  scales_.write_row(first, out, to);

  uint8_t* codes = out.codes.u8() + to * out.codes.ld;
  std::array<uint8_t, 2 * kNf4Block> run;
  for (int64_t i = 0; i < out.cols; i += 2 * kNf4Block) {
    const int64_t n = std::min<int64_t>(2 * kNf4Block, out.cols - i);
    for (int64_t j = 0; j < n;) {  // block by block
      const int64_t at = first + i + j;
      const int64_t end = std::min(n, j + kNf4Block - at % kNf4Block);
      const float largest = absmax_[static_cast<size_t>(at / kNf4Block)];
      const float inverse = largest > 0 ? 1.0F / largest : 0.0F;
      for (; j < end; ++j) {
        const float normal = std::clamp(values[col + i + j] * inverse, -1.0F, 1.0F);
        run[static_cast<size_t>(j)] = nearest(borders, normal);
      }
    }
    for (int64_t j = 0; j < n; j += 2) {
      const uint8_t low = j + 1 < n ? run[static_cast<size_t>(j + 1)] : uint8_t{0};
      codes[(i + j) / 2] = static_cast<uint8_t>(run[static_cast<size_t>(j)] << 4 | low);
    }
  }
}

}  // namespace pesc
