// NF4 bit for bit as bitsandbytes writes it: tests/nf4.
#include <gtest/gtest.h>

#include <cstring>

#include "ops/core/bf16.h"
#include "ops/nf4_quantizer.h"
#include "runtime/hf/dtype_convert.h"
#include "runtime/hf/safetensors.h"

namespace pesc {
namespace {

class Nf4Golden : public ::testing::TestWithParam<const char*> {
 protected:
  [[nodiscard]] const SafetensorsEntry& entry(const std::string& name) const {
    return file_.at(GetParam() + ("." + name));
  }
  [[nodiscard]] std::vector<float> floats(const std::string& name) const {
    const SafetensorsEntry& e = entry(name);
    std::vector<float> out(static_cast<size_t>(e.bytes() / dtype_bytes(e.dtype.value())));
    convert_to_f32(e.dtype.value(), file_.bytes(e), out.data());
    return out;
  }
  [[nodiscard]] std::vector<uint8_t> bytes(const std::string& name) const {
    const SafetensorsEntry& e = entry(name);
    std::vector<uint8_t> out(static_cast<size_t>(e.bytes()));
    std::memcpy(out.data(), file_.bytes(e).data(), out.size());
    return out;
  }

 private:
  SafetensorsFile file_{PESC_SOURCE_DIR "/tests/nf4/nf4.safetensors"};
};

TEST_P(Nf4Golden, EveryByteAndEveryValueIsTheSame) {
  const std::vector<int64_t>& shape = entry("weight").shape;
  const int64_t rows = shape.at(0), cols = shape.at(1);
  const std::vector<float> w = floats("weight");
  Stream host(Device{.threads = 2});
  Nf4Quantizer q(rows, cols);
  ASSERT_EQ(q.scan(host, rows, w.data()), -1);
  q.quantize_absmax();
  EXPECT_EQ(std::vector<float>{q.offset()}, floats("offset"));
  EXPECT_EQ(q.nested_absmax(), floats("nested_absmax"));
  EXPECT_EQ(q.absmax_codes(), bytes("absmax"));
  const auto& code = dynamic_code();
  EXPECT_EQ(std::vector<float>(code.begin(), code.end()), floats("nested_code"));

  Arena memory("memory", Device{}, 1 << 20);
  const Nf4Matrix held = Nf4Matrix::allocate(memory, rows, cols);
  q.quantize(host, 0, 0, w.data(), held);
  // bitsandbytes packs the flattened tensor; here a row begins with a byte of its own.
  const std::vector<uint8_t> packed = bytes("packed");
  for (int64_t i = 0; i < rows * cols; ++i) {
    const uint8_t two = held.codes.u8()[i / cols * held.codes.ld + i % cols / 2];
    ASSERT_EQ(i % cols % 2 == 0 ? two >> 4 : two & 15,
              i % 2 == 0 ? packed[static_cast<size_t>(i / 2)] >> 4 : packed[static_cast<size_t>(i / 2)] & 15)
        << i;
  }
  const Tensor got = memory.allocate(rows, cols);
  nf4_dequantize(host, held, 0, got);
  const bool narrow = entry("dequantised").dtype == DType::kBF16;
  const std::vector<float> want = floats("dequantised");
  for (size_t i = 0; i < want.size(); ++i)
    ASSERT_EQ(narrow ? bf16_to_f32(f32_to_bf16(got.f32()[i])) : got.f32()[i], want[i]) << i;
}

INSTANTIATE_TEST_SUITE_P(Cases, Nf4Golden,
                         ::testing::Values("bf16", "f32", "odd", "many", "outliers", "zeros"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace pesc
