// Weights of folders that are quantised already: the values by the definition of each format, the same bytes for every
// piece, real ones of bitsandbytes (tests/nf4), and what is refused.
#include "runtime/hf/quantized_folder_tensor.h"

#include <cmath>
#include <limits>

#include "model/quantized_gemm.h"
#include "model/quantized_weights.h"
#include "ops/core/bf16.h"
#include "ops/nf4.h"
#include "runtime/hf/dtype_convert.h"
#include "runtime/hf/published_names.h"
#include "runtime/hf/weight_names.h"
#include "tests/runtime/hf/quantized_folder.h"

namespace pesc {
namespace {

const std::string kModule = "model.layers.0.mlp.down_proj";

StoredBytes from_file(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry& e = file.at(name);
  const auto bytes = file.bytes(e);
  return {e.dtype.value(), e.shape, {bytes.begin(), bytes.end()}};
}

std::string state_json(const StoredBytes& weight, const std::string& more) {
  return str_cat(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [)", weight.shape[0],
                 ", ", weight.shape[1], "]", more, "}");
}

// As bitsandbytes wrote it (tests/nf4/make_nf4.py), under the names of a folder that transformers saved.
StoredWeight bitsandbytes(const std::string& name, FrozenFormat format) {
  const SafetensorsFile golden(PESC_SOURCE_DIR "/tests/nf4/nf4.safetensors");
  const auto part = [&](const std::string& of) { return from_file(golden, str_cat(name, ".", of)); };
  const StoredBytes weight = part("weight"), dequantised = part("dequantised");
  StoredWeight w{weight.shape[0], weight.shape[1], {}, {}};
  w.values.resize(static_cast<size_t>(w.rows * w.cols));
  convert_to_f32(dequantised.dtype, dequantised.bytes, w.values.data());
  StoredBytes packed = part("packed");
  packed.shape = {static_cast<int64_t>(packed.bytes.size()), 1};
  w.tensors[".weight"] = packed;
  w.tensors[".weight.quant_map"] = from_file(golden, "code");
  const std::string state = ".weight.quant_state.bitsandbytes__nf4";
  float offset = 0;
  convert_to_f32(DType::kF32, part("offset").bytes, &offset);
  if (format == FrozenFormat::kNF4) {
    w.tensors[".weight.absmax"] = part("absmax");
    w.tensors[".weight.nested_absmax"] = part("nested_absmax");
    w.tensors[".weight.nested_quant_map"] = part("nested_code");
    char text[64];
    std::snprintf(text, sizeof(text), "%.17g", static_cast<double>(offset));
    w.tensors[state] = stored_text(state_json(
        weight, str_cat(R"(, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": )", text)));
    return w;
  }
  // Without double quantisation the absmaxes are values; those that the codes stood for give the same weights.
  const StoredBytes codes = part("absmax"), nested = part("nested_absmax");
  std::vector<float> absmax(codes.bytes.size()), groups(nested.bytes.size() / sizeof(float));
  convert_to_f32(DType::kF32, nested.bytes, groups.data());
  for (size_t i = 0; i < absmax.size(); ++i) {
    const volatile float product = dynamic_code()[std::to_integer<size_t>(codes.bytes[i])] * groups[i / 256];
    absmax[i] = product + offset;
  }
  w.tensors[".weight.absmax"] = stored(DType::kF32, {static_cast<int64_t>(absmax.size())}, absmax);
  w.tensors[state] = stored_text(state_json(weight, ""));
  return w;
}

struct Case {
  std::string name;
  FrozenFormat format;
  StoredWeight weight;
  bool narrow = false;  // the values are rounded to BF16
};
std::vector<Case> cases() {
  std::vector<Case> out{{"rows", FrozenFormat::kFP8, fp8_rows(37, 75)},
                        {"blocks", FrozenFormat::kFP8Blocks, fp8_blocks(300, 410)},
                        {"small blocks", FrozenFormat::kFP8Blocks, fp8_blocks(20, 36)}};
  for (const FrozenFormat format : {FrozenFormat::kNF4, FrozenFormat::kNF4Single})
    out.push_back({"three groups", format, nf4_weight(301, 131, format)});
  for (const char* name : {"bf16", "f32", "odd", "many", "outliers", "zeros"}) {
    for (const FrozenFormat format : {FrozenFormat::kNF4, FrozenFormat::kNF4Single})
      out.push_back({name, format, bitsandbytes(name, format), std::string(name) != "f32"});
  }
  return out;
}

struct Opened {
  TempFolder folder;
  std::unique_ptr<HfFolder> hf;
  Opened(const StoredTensors& tensors, FrozenFormat format) {
    write_stored(folder / "model.safetensors", tensors);
    hf = std::make_unique<HfFolder>(folder.path());
    hf->use_quantization(format);
  }
  Opened(const StoredWeight& weight, FrozenFormat format) : Opened(tensors_of(weight), format) {}
  static StoredTensors tensors_of(const StoredWeight& weight) {
    StoredTensors all;
    weight.add_to(all, kModule);
    return all;
  }
};

ShardSpec piece_of(const StoredWeight& w, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  return {kModule + ".weight", w.rows, w.cols, row, rows, col, cols, 0, 1};
}

TEST(QuantizedFolderTensor, StandsForTheValuesOfItsFormat) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(str_cat(c.name, ", ", frozen_format_text(c.format)));
    const Opened opened(c.weight, c.format);
    EXPECT_EQ(opened.hf->names(), std::vector<std::string>{kModule + ".weight"});
    EXPECT_EQ(opened.hf->quantized(kModule + ".weight"), c.format);
    std::vector<float> got(c.weight.values.size());
    opened.hf->read(piece_of(c.weight, 0, c.weight.rows, 0, c.weight.cols), got.data());
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(c.narrow ? bf16_to_f32(f32_to_bf16(got[i])) : got[i], c.weight.values[i]) << i;
  }
}

// What a rank holds of a weight, wherever it is cut, has the codes and the values of the whole; and so has what is
// dequantised from the middle of it.
TEST(QuantizedFolderTensor, EveryPieceHasTheBytesOfTheWhole) {
  Stream stream(Device{.threads = 2});
  for (const Case& c : cases()) {
    const StoredWeight& w = c.weight;
    const Opened opened(w, c.format);
    std::vector<float> whole(w.values.size());
    opened.hf->read(piece_of(w, 0, w.rows, 0, w.cols), whole.data());
    for (const int64_t parts : {1, 2, 3}) {
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t r0 = w.rows * part / parts, r1 = w.rows * (part + 1) / parts;
        const int64_t c0 = w.cols * part / parts, c1 = w.cols * (part + 1) / parts;
        for (const ShardSpec& s :
             {piece_of(w, r0, r1 - r0, 0, w.cols), piece_of(w, 0, w.rows, c0, c1 - c0)}) {
          SCOPED_TRACE(str_cat(c.name, ", ", frozen_format_text(c.format), ": rows from ", s.row,
                               ", columns from ", s.col));
          Arena plan = Arena::planning("weight");
          (void)FrozenLinear::allocate(plan, c.format, s.rows, s.cols, 0);
          Arena memory("weight", Device{}, plan.used());
          FrozenLinear held = FrozenLinear::allocate(memory, c.format, s.rows, s.cols, 0);
          held.block_offset = s.col % 128;
          copy_quantized(stream, s, *opened.hf, held);
          std::vector<float> got(static_cast<size_t>(s.rows * s.cols));
          dequantize_frozen(stream, held, 0, tensor_of(got.data(), s.rows, s.cols));
          const int64_t from = s.cols / 3;
          std::vector<float> some(static_cast<size_t>(s.rows * (s.cols - from)));
          dequantize_frozen(stream, held, from, tensor_of(some.data(), s.rows, s.cols - from));
          std::vector<float> read(got.size());
          opened.hf->read(s, read.data());
          EXPECT_EQ(read, got);
          for (int64_t r = 0; r < s.rows; ++r) {
            for (int64_t i = 0; i < s.cols; ++i) {
              const float want = whole[static_cast<size_t>((s.row + r) * w.cols + s.col + i)];
              ASSERT_EQ(got[static_cast<size_t>(r * s.cols + i)], want) << r << ", " << i;
              if (i >= from) {
                ASSERT_EQ(some[static_cast<size_t>(r * (s.cols - from) + i - from)], want);
              }
            }
          }
        }
      }
    }
  }
}

// A rank of NF4 that is computed in FP8 has the scales of whole rows.
TEST(QuantizedFolderTensor, Nf4HasTheScalesOfWholeRowsWhereItIsComputedInFp8) {
  Stream stream((Device()));
  const FrozenType type{FrozenFormat::kNF4, DType::kF32, FrozenGemm::kFP8};
  const StoredWeight w = bitsandbytes("many", FrozenFormat::kNF4);
  const Opened opened(w, FrozenFormat::kNF4);
  Arena memory("weights", Device{}, 1 << 20);
  const FrozenLinear whole = FrozenLinear::allocate(memory, type, w.rows, w.cols, 0);
  const FrozenLinear half = FrozenLinear::allocate(memory, type, w.rows, w.cols / 2, 0);
  copy_quantized(stream, piece_of(w, 0, w.rows, 0, w.cols), *opened.hf, whole);
  copy_quantized(stream, piece_of(w, 0, w.rows, w.cols / 2, w.cols / 2), *opened.hf, half);
  std::vector<float> values(w.values.size());
  opened.hf->read(piece_of(w, 0, w.rows, 0, w.cols), values.data());
  for (int64_t r = 0; r < w.rows; ++r) {
    float largest = 0;
    for (int64_t i = 0; i < w.cols; ++i)
      largest = std::max(largest, std::abs(values[static_cast<size_t>(r * w.cols + i)]));
    EXPECT_EQ(whole.scales.f32()[r], e4m3_scale(largest));
    EXPECT_EQ(half.scales.f32()[r], e4m3_scale(largest));
  }
}

TEST(QuantizedFolderTensor, OneScaleForAllRowsAndScalesOf16Bits) {
  StoredWeight w = fp8_rows(4, 8);
  const std::vector<uint8_t> codes = e4m3_codes(32, 1);
  w.tensors[".weight_scale"] = stored(DType::kBF16, {1}, std::vector<uint16_t>{f32_to_bf16(0.25F)});
  w.tensors[".input_scale_ub"] = stored(DType::kF32, {1}, std::vector<float>{1200});
  const Opened opened(w, FrozenFormat::kFP8);
  std::vector<float> got(32);
  opened.hf->read(piece_of(w, 0, 4, 0, 8), got.data());
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(got[i], 0.25F * e4m3_to_f32(codes[i]));
  EXPECT_EQ(opened.hf->names().size(), 1U);  // the bound of served activations is left out
}

// Phi-4 in bitsandbytes' NF4: blocks run through the fused tensor, so that q, k and v begin in the middle of one.
TEST(QuantizedFolderTensor, FusedWeightsAreReadInParts) {
  ModelConfig model;
  model.family = Family::kPhi3;
  model.hidden_size = 65;
  model.intermediate_size = 10;
  model.num_hidden_layers = 1;
  model.num_attention_heads = 21;
  model.num_key_value_heads = 6;
  model.head_dim = 1;
  model.quantized = QuantizedBase{FrozenFormat::kNF4, {3, 4, 5, 6}};
  const StoredWeight w = bitsandbytes("odd", FrozenFormat::kNF4);  // 33 x 65
  StoredTensors tensors;
  w.add_to(tensors, "model.layers.0.self_attn.qkv_proj");
  const TempFolder folder;
  write_stored(folder / "model.safetensors", tensors);
  HfFolder hf(folder.path());
  use_model_names(hf, model);
  for (const auto& [linear, row, rows] :
       {std::tuple{Linear::kQ, 0, 21}, {Linear::kK, 21, 6}, {Linear::kV, 27, 6}}) {
    const std::string name = hf::weight(0, linear);
    EXPECT_EQ(hf.quantized(name), FrozenFormat::kNF4);
    std::vector<float> got(static_cast<size_t>(rows) * 65);
    hf.read({name, rows, 65, 0, rows, 0, 65, 0, 1}, got.data());
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(bf16_to_f32(f32_to_bf16(got[i])), w.values[static_cast<size_t>(row) * 65 + i]) << name;
  }
}

// What a folder may lack or contradict.
TEST(QuantizedFolderTensor, WhatIsNotWholeIsRefusedByName) {
  using Change = std::function<void(StoredTensors&)>;
  const auto refused = [](const StoredWeight& weight, FrozenFormat format, const Change& change) {
    StoredTensors tensors = Opened::tensors_of(weight);
    change(tensors);
    return data_error([&] {
      const Opened opened(tensors, format);
      std::vector<float> values(weight.values.size());
      opened.hf->read(piece_of(weight, 0, weight.rows, 0, weight.cols), values.data());
    });
  };
  struct Bad {
    StoredWeight weight;
    FrozenFormat format;
    Change change;
    std::vector<const char*> words;
  };
  const auto erase = [](const char* end) { return [=](StoredTensors& t) { t.erase(kModule + end); }; };
  const auto set = [](const char* end, const StoredBytes& bytes) {
    return [=](StoredTensors& t) { t[kModule + end] = bytes; };
  };
  const auto state = [&](const std::string& text) {
    return set(".weight.quant_state.bitsandbytes__nf4", stored_text(text));
  };
  const StoredWeight rows = fp8_rows(4, 8), blocks = fp8_blocks(130, 8);
  const StoredWeight nested = bitsandbytes("f32", FrozenFormat::kNF4);
  const StoredWeight single = bitsandbytes("f32", FrozenFormat::kNF4Single);
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const std::string shape = R"("shape": [64, 192])";
  const std::vector<Bad> all = {
      {rows,
       FrozenFormat::kFP8,
       erase(".weight_scale"),
       {"holds codes of FP8", "there is no", "down_proj.weight_scale'"}},
      {blocks, FrozenFormat::kFP8Blocks, erase(".weight_scale_inv"), {"there is no", "weight_scale_inv'"}},
      {blocks,
       FrozenFormat::kFP8,
       [](StoredTensors&) {},
       {"weight_scale_inv' is the scale of FP8 with blocks"}},
      {rows, FrozenFormat::kFP8Blocks, [](StoredTensors&) {}, {"weight_scale' has shape [4, 1]", "[1, 1]"}},
      {blocks,
       FrozenFormat::kFP8Blocks,
       set(".weight_scale", stored(DType::kF32, {2, 1}, std::vector<float>(2))),
       {"weight_scale_inv' stands beside", "weight_scale'"}},
      {rows,
       FrozenFormat::kFP8,
       set(".weight", stored(DType::kBF16, {4, 8}, std::vector<uint16_t>(32))),
       {"down_proj.weight' is 'BF16'", "it is not clear which is meant"}},
      {rows,
       FrozenFormat::kFP8,
       set(".weight_scale", stored(DType::kF32, {3, 1}, std::vector<float>(3))),
       {"has shape [3, 1]", "[4, 1] or [4] or [1]"}},
      {rows,
       FrozenFormat::kFP8,
       set(".weight_scale", stored(DType::kF32, {4, 1}, std::vector<float>{1, 1, kNan, 1})),
       {"weight_scale' holds nan as its value 2", "must be finite"}},
      {rows,
       FrozenFormat::kFP8,
       set(".weight_scale", stored(DType::kF32, {4, 1}, std::vector<float>{1, 1, 1, 3e38F})),
       {"weight_scale' holds", "as its value 3"}},
      {rows,
       FrozenFormat::kFP8,
       set(".weight", stored(DType::kE4M3, {4, 8},
                             [] {
                               std::vector<uint8_t> codes(32);
                               codes[19] = 0xFF;
                               return codes;
                             }())),
       {"down_proj.weight' holds a NaN at [2, 3]"}},
      {nested, FrozenFormat::kNF4, erase(".weight.absmax"), {"there is no", "weight.absmax'"}},
      {nested, FrozenFormat::kNF4, erase(".weight.nested_absmax"), {"there is no", "weight.nested_absmax'"}},
      {nested,
       FrozenFormat::kNF4,
       erase(".weight.quant_state.bitsandbytes__nf4"),
       {"there is no", "quant_state"}},
      {nested,
       FrozenFormat::kNF4Single,
       [](StoredTensors&) {},
       {"nested_offset: is there, but config.json says NF4 without"}},
      {single,
       FrozenFormat::kNF4,
       [](StoredTensors&) {},
       {"nested_offset: is missing, but config.json says NF4 with"}},
      {single,
       FrozenFormat::kNF4Single,
       state(R"({"blocksize": 128, )" + shape + "}"),
       {"blocksize: '128' is not supported; only 64"}},
      {single,
       FrozenFormat::kNF4Single,
       state(R"({"quant_type": "fp4", "blocksize": 64, )" + shape + "}"),
       {"quant_type: 'fp4' is not supported"}},
      {single,
       FrozenFormat::kNF4Single,
       state(R"({"blocksize": 64, "shape": [64]})"),
       {"shape: must be two whole numbers"}},
      {single,
       FrozenFormat::kNF4Single,
       state(R"({"blocksize": 64, "shape": [64, 191]})"),
       {"weight' has shape [6144, 1]", "[6112, 1]"}},
      {single, FrozenFormat::kNF4Single, state("{"), {"quant_state"}},
      {single,
       FrozenFormat::kNF4Single,
       set(".weight.quant_map", stored(DType::kF32, {16}, std::vector<float>(16))),
       {"quant_map' has 0 at [0], where the table of bitsandbytes has -1"}},
      {single,
       FrozenFormat::kNF4Single,
       set(".weight.absmax", stored(DType::kF32, {192}, std::vector<float>(192, kNan))),
       {"absmax' holds nan as its value 0"}},
      {single,
       FrozenFormat::kNF4Single,
       set(".weight", stored(DType::kBF16, {64, 192}, std::vector<uint16_t>(64 * 192))),
       {"weight' is 'BF16'", "it is not clear which is meant"}},
  };
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    const std::string message = refused(all[i].weight, all[i].format, all[i].change);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, kModule, message);
    for (const char* word : all[i].words) EXPECT_PRED_FORMAT2(::testing::IsSubstring, word, message);
  }
}

// The list of config.json and the files must agree, whichever of them is wrong.
TEST(QuantizedFolderTensor, TheListsOfModulesAreHeldToTheFiles) {
  ModelConfig model;
  model.num_hidden_layers = 1;
  StoredTensors tensors;
  fp8_rows(4, 8).add_to(tensors, kModule);
  tensors[hf::weight(0, Linear::kO)] = stored(DType::kF32, {4, 4}, std::vector<float>(16));
  const auto open = [&](std::vector<int64_t> plain) {
    const TempFolder folder;
    write_stored(folder / "model.safetensors", tensors);
    HfFolder hf(folder.path());
    model.quantized = QuantizedBase{FrozenFormat::kFP8, std::move(plain)};
    use_model_names(hf, model);
  };
  open({static_cast<int64_t>(Linear::kO)});
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "o_proj.weight' is not quantised (F32), but config.json does not list",
                      data_error([&] { open({}); }));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring,
                      "down_proj.weight' is quantised (F8_E4M3), but config.json lists", data_error([&] {
                        open({static_cast<int64_t>(Linear::kO), static_cast<int64_t>(Linear::kDown)});
                      }));
}

// Parts of a quantisation that config.json does not speak of.
TEST(QuantizedFolderTensor, PartsThatNothingReadsAreNamed) {
  StoredTensors tensors = Opened::tensors_of(fp8_rows(4, 8));
  const auto refused = [&](const std::optional<QuantizedBase>& quantized) {
    const TempFolder folder;
    write_stored(folder / "model.safetensors", tensors);
    HfFolder hf(folder.path());
    ModelConfig model;
    model.num_hidden_layers = 1;
    model.quantized = quantized;
    use_model_names(hf, model);
    return data_error([&] { (void)compare_weights(hf, model, {kModule + ".weight"}); });
  };
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "config.json has no quantization_config",
                      refused(std::nullopt));
  tensors[kModule + ".weight_zero_point"] = stored(DType::kE4M3, {4, 1}, std::vector<uint8_t>(4));
  const std::string message = refused(QuantizedBase{FrozenFormat::kFP8, {}});
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "weight_zero_point", message);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "another form of quantisation is not read", message);
}

}  // namespace
}  // namespace pesc
