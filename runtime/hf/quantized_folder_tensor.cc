#include "runtime/hf/quantized_folder_tensor.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "model/quantized_gemm.h"
#include "ops/core/check.h"
#include "ops/core/e4m3.h"
#include "ops/fp8.h"
#include "ops/nf4.h"
#include "runtime/hf/config_fields.h"
#include "runtime/hf/dtype_convert.h"
#include "runtime/hf/json_file.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view kOfModule = ".weight";
constexpr const char* kState = ".quant_state.bitsandbytes__nf4";

// What stands after the name of a module.
constexpr std::array kFp8Parts = {".weight_scale"sv, ".weight_scale_inv"sv, ".input_scale_ub"sv};
constexpr std::array kNf4Parts = {".weight.absmax"sv, ".weight.quant_map"sv, ".weight.nested_absmax"sv,
                                  ".weight.nested_quant_map"sv, ".weight.quant_state.bitsandbytes__nf4"sv};
// Of formats that are not read.
constexpr std::array kOtherParts = {".weight.quant_state.bitsandbytes__fp4"sv,
                                    ".SCB"sv,
                                    ".weight_format"sv,
                                    ".input_scale"sv,
                                    ".weight_zero_point"sv,
                                    ".weight_packed"sv,
                                    ".weight_shape"sv,
                                    ".weight_global_scale"sv,
                                    ".qweight"sv,
                                    ".qzeros"sv,
                                    ".scales"sv,
                                    ".g_idx"sv,
                                    "_blocks"sv,
                                    "_scales"sv};

std::string module_of(const std::string& weight) {
  PESC_CHECK(weight.ends_with(kOfModule), weight, " is no weight of a module");
  return weight.substr(0, weight.size() - kOfModule.size());
}

std::string where(const StoredTensor& t) {
  return str_cat(t.file->path(), ": tensor ", in_quotes(t.entry->name));
}

void require_type(const StoredTensor& t, std::string_view type, FrozenFormat format) {
  if (t.entry->type == type) return;
  throw DataError(str_cat(where(t), " is ", in_quotes(t.entry->type), ", but ", frozen_format_text(format),
                          " has ", type, " there: only these types are read"));
}

void require_shape(const StoredTensor& t, std::initializer_list<std::vector<int64_t>> shapes,
                   const char* of) {
  if (std::ranges::find(shapes, t.entry->shape) != shapes.end()) return;
  std::string text;
  for (const std::vector<int64_t>& shape : shapes)
    text += str_cat(text.empty() ? "" : " or ", shape_text(shape));
  throw DataError(
      str_cat(where(t), " has shape ", shape_text(t.entry->shape), ", but ", of, " needs ", text));
}

void require_floats(const StoredTensor& t) {
  if (t.entry->dtype && converts_to_f32(*t.entry->dtype)) return;
  throw DataError(
      str_cat(where(t), " is ", in_quotes(t.entry->type), "; scales must be F32, BF16 or F16 to be read"));
}

// Values [begin, begin + n) of a tensor of floats.
void floats_of(const StoredTensor& t, int64_t begin, int64_t n, float* to) {
  const auto size = static_cast<size_t>(dtype_bytes(*t.entry->dtype));
  convert_to_f32(
      *t.entry->dtype,
      t.file->bytes(*t.entry).subspan(static_cast<size_t>(begin) * size, static_cast<size_t>(n) * size), to);
}

void require_table(const StoredTensor& t, std::span<const float> table) {
  require_type(t, "F32", FrozenFormat::kNF4);
  require_shape(t, {{static_cast<int64_t>(table.size())}}, "its table of codes");
  std::vector<float> values(table.size());
  floats_of(t, 0, static_cast<int64_t>(table.size()), values.data());
  const auto [mine, other] = std::ranges::mismatch(table, values);
  if (mine == table.end()) return;
  throw DataError(str_cat(where(t), " has ", *other, " at [", other - values.begin(),
                          "], where the table of bitsandbytes has ", *mine,
                          "; codes of another table are not read: give the unquantised model"));
}

void require_finite(const StoredTensor& t, int64_t at, float value, float limit) {
  if (std::abs(value) <= limit) return;
  throw DataError(str_cat(where(t), " holds ", value, " as its value ", at,
                          "; every scale must be finite: download the folder again, or take another"));
}

}  // namespace

std::vector<std::string> QuantizedFolderTensor::companions(FrozenFormat format, const std::string& weight) {
  const std::string module = module_of(weight);
  std::vector<std::string> out;
  for (const std::string_view part : is_nf4(format) ? std::span<const std::string_view>(kNf4Parts)
                                                    : std::span<const std::string_view>(kFp8Parts))
    out.push_back(str_cat(module, part));
  return out;
}

bool QuantizedFolderTensor::is_companion(const std::string& name) {
  const auto ends = [&](std::string_view part) { return name.ends_with(part); };
  return std::ranges::any_of(kFp8Parts, ends) || std::ranges::any_of(kNf4Parts, ends) ||
         std::ranges::any_of(kOtherParts, ends);
}

QuantizedFolderTensor::QuantizedFolderTensor(FrozenFormat format, const std::string& weight,
                                             const std::function<StoredTensor(const std::string& name)>& find)
    : format_(format), codes_(find(weight)) {
  PESC_CHECK(codes_.present() && is_quantized(format), weight);
  is_nf4(format) ? open_nf4(weight, find) : open_fp8(weight, find);
}

void QuantizedFolderTensor::open_fp8(const std::string& weight,
                                     const std::function<StoredTensor(const std::string&)>& find) {
  const std::string module = module_of(weight);
  const bool blocks = format_ == FrozenFormat::kFP8Blocks;
  scales_ = find(module + ".weight_scale");
  const StoredTensor inverse = find(module + ".weight_scale_inv");
  if (scales_.present() && inverse.present())
    throw DataError(str_cat(where(inverse), " stands beside ", in_quotes(scales_.entry->name),
                            ", which is another scale of the same weight: take one out"));
  if (inverse.present() && !blocks)
    throw DataError(str_cat(where(inverse), " is the scale of FP8 with blocks, but config.json says ",
                            frozen_format_text(format_), " (quantization_config)"));
  if (!scales_.present()) scales_ = inverse;
  const bool codes = codes_.entry->type == "F8_E4M3";
  if (!scales_.present()) {
    throw DataError(str_cat(where(codes_), codes ? " holds codes of FP8" : " should hold codes of FP8",
                            ", but there is no ",
                            in_quotes(module + (blocks ? ".weight_scale_inv" : ".weight_scale")),
                            ", their scale; a file is missing, or config.json is of another model"));
  }
  if (!codes) {
    throw DataError(str_cat(where(codes_), " is ", in_quotes(codes_.entry->type), ", but ",
                            in_quotes(scales_.entry->name),
                            " is the scale of a weight in F8_E4M3: it is not clear which is meant; download "
                            "the folder again, or take the scale out where the weight is not quantised"));
  }
  if (codes_.entry->shape.size() != 2)
    throw DataError(
        str_cat(where(codes_), " has shape ", shape_text(codes_.entry->shape), "; it must be a matrix"));
  rows_ = codes_.entry->shape[0];
  cols_ = codes_.entry->shape[1];
  require_floats(scales_);
  if (blocks) {
    const int64_t down = (rows_ + kFp8Block - 1) / kFp8Block, across = (cols_ + kFp8Block - 1) / kFp8Block;
    require_shape(scales_, {{down, across}}, "one scale for each block of 128 x 128");
  } else {
    require_shape(scales_, {{rows_, 1}, {rows_}, {1}, {}}, "one scale for each row, or one for all,");
  }
}

void QuantizedFolderTensor::read_quant_state(const StoredTensor& state) {
  const std::span<const std::byte> bytes = state.file->bytes(*state.entry);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::string at = where(state);
  const nlohmann::json document = parse_json_document(text, at);
  const ConfigFields fields(document, at);
  const auto only = [&](const char* key, const auto& value, const auto& supported) {
    if (value == supported) return;
    fields.fail(key, str_cat("'", value, "' is not supported; only ", supported, " is"));
  };
  only("quant_type", fields.string("quant_type").value_or("nf4"), std::string("nf4"));
  only("blocksize", fields.required_integer("blocksize", 1), kNf4Block);
  const nlohmann::json* shape = fields.find("shape");
  if (shape == nullptr || !shape->is_array() || shape->size() != 2 || !(*shape)[0].is_number_unsigned() ||
      !(*shape)[1].is_number_unsigned() || (*shape)[0].get<uint64_t>() > ConfigFields::kMaxInteger ||
      (*shape)[1].get<uint64_t>() > ConfigFields::kMaxInteger)
    fields.fail("shape", "must be two whole numbers, the rows and columns of the weight");
  rows_ = (*shape)[0].get<int64_t>();
  cols_ = (*shape)[1].get<int64_t>();
  const bool nested = fields.has("nested_offset") || fields.has("nested_blocksize");
  if (nested != (format_ == FrozenFormat::kNF4)) {
    fields.fail("nested_offset",
                str_cat(nested ? "is there" : "is missing", ", but config.json says ",
                        frozen_format_text(format_), " (quantization_config.bnb_4bit_use_double_quant)"));
  }
  if (!nested) return;
  only("nested_blocksize", fields.required_integer("nested_blocksize", 1), kNf4Group / kNf4Block);
  only("nested_dtype", fields.string("nested_dtype").value_or("float32"), std::string("float32"));
  const nlohmann::json* offset = fields.find("nested_offset");
  if (offset == nullptr || !offset->is_number()) fields.fail("nested_offset", "must be a number");
  offset_ = static_cast<float>(offset->get<double>());
  if (!std::isfinite(offset_)) fields.fail("nested_offset", "must be a finite float32 number");
}

void QuantizedFolderTensor::open_nf4(const std::string& weight,
                                     const std::function<StoredTensor(const std::string&)>& find) {
  const auto part = [&](const std::string& end) {
    const StoredTensor t = find(weight + end);
    if (t.present()) return t;
    throw DataError(str_cat(
        where(codes_), codes_.entry->type == "U8" ? " holds codes of NF4" : " should hold codes of NF4",
        ", but there is no ", in_quotes(weight + end),
        ", which belongs to them; a file is missing, or config.json is of another model"));
  };
  const bool nested = format_ == FrozenFormat::kNF4;
  read_quant_state(part(kState));
  if (codes_.entry->type != "U8") {
    throw DataError(
        str_cat(where(codes_), " is ", in_quotes(codes_.entry->type), ", but ", in_quotes(weight + kState),
                " is of codes of NF4 in U8: it is not clear which is meant; download the folder again"));
  }
  const int64_t values = rows_ * cols_;
  require_shape(codes_, {{(values + 1) / 2, 1}, {(values + 1) / 2}}, "two codes of NF4 a byte");
  const int64_t blocks = (values + kNf4Block - 1) / kNf4Block;
  scales_ = part(".absmax");
  require_type(scales_, nested ? "U8" : "F32", format_);
  require_shape(scales_, {{blocks}}, "one absmax for each block of 64");
  require_table(part(".quant_map"), nf4_code());
  if (!nested) return;
  nested_ = part(".nested_absmax");
  require_type(nested_, "F32", format_);
  require_shape(nested_, {{(values + kNf4Group - 1) / kNf4Group}}, "one nested absmax for 256 blocks");
  require_table(part(".nested_quant_map"), dynamic_code());
}

int64_t QuantizedFolderTensor::read_codes(const TensorSlice& slice, const FrozenLinear& to) const {
  PESC_CHECK(to.type.format == format_ && to.out == slice.rows && to.in == slice.cols && slice.row >= 0 &&
                 slice.col >= 0 && slice.row + slice.rows <= rows_ && slice.col + slice.cols <= cols_,
             codes_.entry->name, " rows ", slice.row, "+", slice.rows, ", columns ", slice.col, "+",
             slice.cols, " of ", rows_, "x", cols_, " to ", to.out, "x", to.in);
  return is_nf4(format_) ? read_nf4(slice, to) : read_fp8(slice, to);
}

int64_t QuantizedFolderTensor::read_fp8(const TensorSlice& s, const FrozenLinear& to) const {
  const std::span<const std::byte> bytes = codes_.file->bytes(*codes_.entry);
  const bool blocks = format_ == FrozenFormat::kFP8Blocks;
  const bool one = scales_.entry->bytes() == static_cast<uint64_t>(dtype_bytes(*scales_.entry->dtype));
  const int64_t across = blocks ? (cols_ + kFp8Block - 1) / kFp8Block : 1;
  const int64_t block0 = blocks ? s.col / kFp8Block : 0;
  const int64_t touched = s.cols == 0 ? 0 : blocks ? (s.col + s.cols - 1) / kFp8Block - block0 + 1 : 1;
  for (int64_t r = 0; r < s.rows; ++r) {
    const int64_t row = s.row + r;
    uint8_t* codes = to.weight.e4m3() + r * to.weight.ld;
    std::memcpy(codes, bytes.data() + row * cols_ + s.col, static_cast<size_t>(s.cols));
    const uint8_t* bad = std::find_if(codes, codes + s.cols, [](uint8_t c) { return (c & 0x7FU) == 0x7FU; });
    if (bad != codes + s.cols) {
      throw DataError(str_cat(where(codes_), " holds a NaN at [", row, ", ", s.col + (bad - codes),
                              "]; every weight must be finite: download the folder again, or take another"));
    }
    float* scales = to.scales.f32() + r * to.scales.ld;
    const int64_t at = blocks ? row / kFp8Block * across + block0 : one ? 0 : row;
    floats_of(scales_, at, touched, scales);
    for (int64_t i = 0; i < touched; ++i)
      require_finite(scales_, at + i, scales[i], std::numeric_limits<float>::max() / kLargestE4M3);
  }
  return s.rows * s.cols + s.rows * touched * dtype_bytes(*scales_.entry->dtype);
}

float QuantizedFolderTensor::absmax_of(int64_t block) const {
  float value = 0;
  if (format_ == FrozenFormat::kNF4Single) {
    floats_of(scales_, block, 1, &value);
  } else {
    const auto code =
        std::to_integer<size_t>(scales_.file->bytes(*scales_.entry)[static_cast<size_t>(block)]);
    floats_of(nested_, block * kNf4Block / kNf4Group, 1, &value);
    require_finite(nested_, block * kNf4Block / kNf4Group, value, std::numeric_limits<float>::max());
    value = dynamic_code()[code] * value + offset_;
  }
  require_finite(scales_, block, value, std::numeric_limits<float>::max());
  return value;
}

// The codes of values [first, first + cols) of the flattened tensor, from the high half of to[0] on.
void QuantizedFolderTensor::read_nf4_codes(int64_t first, int64_t cols, uint8_t* to) const {
  const std::byte* bytes = codes_.file->bytes(*codes_.entry).data();
  const auto byte = [&](int64_t i) { return std::to_integer<unsigned>(bytes[i]); };
  const int64_t whole = cols / 2;
  if (first % 2 == 0) {
    std::memcpy(to, bytes + first / 2, static_cast<size_t>(whole));
    if (cols % 2 != 0) to[whole] = static_cast<uint8_t>(byte(first / 2 + whole) & 0xF0U);
    return;
  }
  for (int64_t i = 0; i < whole; ++i)
    to[i] = static_cast<uint8_t>((byte(first / 2 + i) & 0xFU) << 4 | byte(first / 2 + i + 1) >> 4);
  if (cols % 2 != 0) to[whole] = static_cast<uint8_t>((byte(first / 2 + whole) & 0xFU) << 4);
}

int64_t QuantizedFolderTensor::read_nf4(const TensorSlice& s, const FrozenLinear& to) const {
  if (s.cols == 0) return 0;
  const Nf4Matrix& out = to.nf4;
  const bool nested = format_ == FrozenFormat::kNF4;
  const auto groups = nested ? static_cast<int64_t>(nested_.entry->shape.front()) : 0;
  const std::span<const std::byte> codes = scales_.file->bytes(*scales_.entry);
  int64_t bytes = 0;
  for (int64_t r = 0; r < s.rows; ++r) {
    const int64_t first = (s.row + r) * cols_ + s.col;
    const int64_t block0 = first / kNf4Block, group0 = first / kNf4Group;
    const int64_t touched = (first + s.cols - 1) / kNf4Block - block0 + 1;
    for (int64_t b = 0; b < touched; ++b) {
      const float absmax = absmax_of(block0 + b);  // which refuses what is not finite
      if (!nested) out.absmax.f32()[r * out.absmax.ld + b] = absmax;
    }
    out.first.i32()[r * out.first.ld] = static_cast<int32_t>(first % kNf4Group);
    read_nf4_codes(first, s.cols, out.codes.u8() + r * out.codes.ld);
    bytes += (s.cols + 1) / 2 + touched * (nested ? 1 : 4);
    if (!nested) continue;
    uint8_t* absmax = out.absmax.u8() + r * out.absmax.ld;
    std::memcpy(absmax, codes.data() + block0, static_cast<size_t>(touched));
    std::fill(absmax + touched, absmax + out.absmax.cols, uint8_t{0});
    float* scales = out.nested.f32() + r * out.nested.ld;
    scales[0] = offset_;
    const int64_t there = std::min(out.nested.cols - 1, groups - group0);
    floats_of(nested_, group0, there, scales + 1);
    std::fill(scales + 1 + there, scales + out.nested.cols, 0.0F);
  }
  return bytes;
}

int64_t QuantizedFolderTensor::read_values(const TensorSlice& slice, float* to) const {
  if (slice.rows == 0 || slice.cols == 0) return 0;
  Stream host((Device()));
  Arena plan = Arena::planning("codes to dequantise");
  (void)FrozenLinear::allocate(plan, format_, slice.rows, slice.cols, 0);
  Arena memory("codes to dequantise", host.device(), plan.used());
  FrozenLinear codes = FrozenLinear::allocate(memory, format_, slice.rows, slice.cols, 0);
  codes.block_offset = slice.col % kFp8Block;
  const int64_t bytes = read_codes(slice, codes);
  dequantize_frozen(host, codes, 0, tensor_of(to, slice.rows, slice.cols));
  return bytes;
}

}  // namespace pesc
