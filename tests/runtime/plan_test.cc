// What a run will take: the memory of a rank added up in one place, whether it fits, and what would.
#include "runtime/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <regex>

#include "ops/attention_library.h"
#include "runtime/config/shapes.h"
#include "runtime/fitting.h"

namespace pesc {
namespace {

using Words = std::vector<std::string>;

struct Case {
  ExperimentConfig config;
  ModelConfig model;
};

// Llama-2-7B on GPUs, with the paper's experts, or as `overrides` say.
Case seven_billion(const Words& overrides = {}, const std::string& shape = "7B") {
  Case c;
  c.config = parse_experiment(
      "name: \"plan\" train { max_steps: 1 global_batch_size: 32 gradient_accumulation_steps: 4 } data { "
      "max_seq_length: 2048 } parallel { device: "
      "CUDA } "
      "model { shape { vocab_size: 32000 hidden_size: 4096 intermediate_size: 11008 num_hidden_layers: 32 "
      "num_attention_heads: 32 max_position_embeddings: 4096 } }",
      "plan_test", overrides, ExperimentUse::kBench);
  c.model = load_shape(shape);
  return c;
}

DeviceMemory memory_of(const Case& c, int world) {
  const Mesh mesh(world, 0, c.config.parallel.tp, c.config.parallel.ep);
  return device_memory(c.model, c.config.pesc, mesh,
                       decoder_options(c.config, mesh, device_of(c.config, 1), training_use(c.config)));
}

Words would_fit(const Case& c, int world, double gib) {
  return what_would_fit(c.config, c.model, world, training_use(c.config), {gib * kGiB});
}

std::string starting_with(const Words& all, const std::string& begin) {
  for (const std::string& text : all)
    if (text.starts_with(begin)) return text;
  return "";
}

// Applies "train.recompute_granularity: SELECTIVE and parallel.tp: 2 needs 63.5 GiB ..." and checks the
// figure and that it fits.
void expect_true(const Case& c, int world, const std::string& change, double gib,
                 const Words& overrides = {}) {
  SCOPED_TRACE(change);
  const size_t needs = change.find(" needs ");
  ASSERT_NE(needs, std::string::npos);
  Words all = overrides;
  std::string fields = change.substr(0, needs);
  const std::regex field("([a-z_.]+): ([A-Z0-9]+)");
  for (std::sregex_iterator at(fields.begin(), fields.end(), field), end; at != end; ++at) {
    if ((*at)[1] == "ranks") {
      world = std::stoi((*at)[2]);
    } else {
      all.push_back(str_cat((*at)[1].str(), "=", (*at)[2].str()));
    }
  }
  Case changed = seven_billion(all);
  changed.model = c.model;
  const double takes = static_cast<double>(memory_of(changed, world).all()) / kGiB;
  EXPECT_LE(takes, gib);
  EXPECT_NEAR(takes, std::stod(change.substr(needs + 7)), 0.0501);
}

TEST(DeviceMemory, IsTheSumOfItsParts) {
  const Case one = seven_billion();
  const DeviceMemory m = memory_of(one, 1);
  int64_t arenas = 0;
  for (const ArenaSize& a : m.arenas) arenas += a.bytes;
  EXPECT_EQ(m.arena_bytes(), arenas);
  EXPECT_EQ(m.all(), arenas + m.stream_workspaces + m.connections + m.libraries + m.context);
  EXPECT_EQ(m.to_come(), m.all() - m.context);
  EXPECT_EQ(m.connections, 0);
  EXPECT_EQ(m.stream_workspaces, cuda::kCudaStreamBytes);
  // What an H200 takes beside arenas and NCCL.
  EXPECT_NEAR(static_cast<double>(m.overhead()) / kGiB, 0.8, 0.001);

  const Case two = seven_billion({"parallel.ep=2"});
  EXPECT_EQ(memory_of(two, 2).stream_workspaces, cuda::kCudaStreamBytes);
  EXPECT_EQ(memory_of(two, 2).connections, nccl_bytes(Mesh(2, 0, 1, 2), 32, GpuUse::kExclusive));
  const Case beside = seven_billion({"parallel.ep=2", "parallel.overlap_comm=true"});
  EXPECT_EQ(memory_of(beside, 2).stream_workspaces, 2 * cuda::kCudaStreamBytes);
  EXPECT_EQ(memory_of(seven_billion({"parallel.overlap_comm=true"}), 1).stream_workspaces,
            cuda::kCudaStreamBytes);

  const DeviceMemory cpu = memory_of(seven_billion({"parallel.device=CPU"}), 4);
  EXPECT_EQ(cpu.stream_workspaces + cpu.connections + cpu.libraries, 0);
  EXPECT_NEAR(static_cast<double>(cpu.overhead()) / kGiB, 0.15, 0.001);
}

// The plan, what counts against a room, and the check before loading have one source.
TEST(DeviceMemory, IsThePlansAndTheChecks) {
  for (const Words& overrides :
       {Words{}, {"parallel.tp=2"}, {"parallel.ep=4", "parallel.overlap_comm=true"}}) {
    const Case c = seven_billion(overrides);
    const DeviceMemory m = memory_of(c, 4);
    const Plan p = make_plan(c.config, c.model, 4, gpu_rates(kAssumedGpu, DType::kBF16));
    EXPECT_EQ(p.memory.all(), m.all());
    const DecoderUse use = training_use(c.config);
    EXPECT_EQ(needed_bytes(c.config, c.model, 4, use, MemoryRoom::Against::kAll),
              static_cast<double>(m.all()));
    EXPECT_EQ(needed_bytes(c.config, c.model, 4, use, MemoryRoom::Against::kToCome),
              static_cast<double>(m.to_come()));
    GpuToLoad gpu{0, {}, 1};
    gpu.info.free_bytes = m.to_come();
    EXPECT_NO_THROW(check_memory(c.config, c.model, 4, use, gpu));
    --gpu.info.free_bytes;
    EXPECT_THROW(check_memory(c.config, c.model, 4, use, gpu), UsageError);
    gpu = {0, gpu.info, 2};  // which shares it with another
    gpu.info.free_bytes = 2 * m.to_come();
    EXPECT_NO_THROW(check_memory(c.config, c.model, 4, use, gpu));
    gpu.info.free_bytes -= 2;
    EXPECT_THROW(check_memory(c.config, c.model, 4, use, gpu), UsageError);
  }
}

int64_t scratch(const Words& overrides) {
  for (const ArenaSize& a : memory_of(seven_billion(overrides), 1).arenas)
    if (a.name == "scratch") return a.bytes;
  return 0;
}

// What the bench files run, on one card. The arenas that are planned are those that are allocated.
TEST(DeviceMemory, CountsQuantisedWeights) {
  const Words run{"train.global_batch_size=8", "train.gradient_accumulation_steps=1", "lora.r=64",
                  "moe.adapter_dim=64"};
  const auto with = [&run](const Words& more) {
    Words all = run;
    all.insert(all.end(), more.begin(), more.end());
    return seven_billion(all);
  };
  const auto weights = [&](const Words& more) {
    for (const ArenaSize& a : memory_of(with(more), 1).arenas)
      if (a.name == "weights") return static_cast<double>(a.bytes);
    return 0.0;
  };
  const double linears = 32.0 * 4096 * (4 * 4096 + 3 * 11008);
  const double bf16 = weights({});
  EXPECT_NEAR((bf16 - weights({"train.frozen_dtype=FP8"})) / linears, 2 - 1, 0.002);
  EXPECT_NEAR((bf16 - weights({"train.frozen_dtype=NF4"})) / linears, 2 - 0.52, 0.002);
  const auto gib = [&](const Words& more) {
    return static_cast<double>(memory_of(with(more), 1).all()) / kGiB;
  };
  EXPECT_LT(gib({"train.compute_dtype=FP8"}), 66);
  EXPECT_LT(gib({"train.frozen_dtype=NF4"}), 63.5);
  Case large = seven_billion(
      {"train.global_batch_size=1", "train.gradient_accumulation_steps=1", "lora.r=64", "moe.adapter_dim=64",
       "data.max_seq_length=4096", "train.recompute_granularity=FULL", "train.frozen_dtype=NF4"},
      "llama-2-70b");
  EXPECT_LT(static_cast<double>(memory_of(large, 1).all()) / kGiB, 78);
  large.config.train.frozen_dtype = FrozenFormat::kFP8;
  EXPECT_LT(static_cast<double>(memory_of(large, 1).all()) / kGiB, 107);
}

// A file of configs/experiments, with its own shape.
Case bench_of(const std::string& name, const Words& overrides = {}) {
  Case c;
  const std::string path = PESC_SOURCE_DIR "/configs/experiments/" + name + ".textproto";
  std::ifstream in(path);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  c.config = parse_experiment(text, path, overrides, ExperimentUse::kBench);
  c.model = c.config.model.shape;
  return c;
}

// The bars of the project on one card. An H100 has 79.6 GiB.
TEST(DeviceMemory, OfLargeModelsOnOneCard) {
  const auto gib = [](const Case& c) { return static_cast<double>(memory_of(c, 1).all()) / kGiB; };
  EXPECT_LE(gib(bench_of("bench-70b")), 78);
  EXPECT_LE(gib(bench_of("bench-70b", {"train.frozen_dtype=FP8"})), 107);
  EXPECT_LE(gib(bench_of("bench-34b", {"train.frozen_dtype=FP8"})), 91);
}

Plan plan_of(const Case& c) {
  return make_plan(c.config, c.model, 1, gpu_rates("H200-141", DType::kBF16));
}

// Medians of tests/bench/h200.md, and the GEMM phase, in ms: the plan is of them within 15 %.
TEST(Plan, OfFrozenFormatsTakesTheTimeThatWasMeasured) {
  struct Measured {
    Words overrides;
    double step, gemm;
  };
  for (const Measured& m : {Measured{{}, 894.4, 621.9},
                            {{"train.frozen_dtype=FP8", "train.compute_dtype=FP8"}, 686.1, 406.9},
                            {{"train.frozen_dtype=NF4"}, 914.2, 642.1}}) {
    const Plan p = plan_of(bench_of("bench-7b", m.overrides));
    SCOPED_TRACE(m.step);
    EXPECT_NEAR(1e3 * p.seconds / m.step, 1, 0.15);
    EXPECT_EQ(p.phases.front().name, "GEMM");
    EXPECT_NEAR(1e3 * p.phases.front().seconds / m.gemm, 1, 0.1);
  }
}

TEST(Plan, CountsWhatQuantisedWeightsAreMadeInto) {
  const auto gemm = [](const Words& overrides) {
    return plan_of(bench_of("bench-7b", overrides)).phases.front();
  };
  const PlanPhase bf16 = gemm({}), nf4 = gemm({"train.frozen_dtype=NF4"});
  const PlanPhase fp8 = gemm({"train.compute_dtype=FP8"});
  const PlanPhase both = gemm({"train.frozen_dtype=NF4", "train.compute_dtype=FP8"});
  const double weights = 32.0 * 4096 * (4 * 4096 + 3 * 11008);
  const double rate = 3800e9;
  EXPECT_EQ(bf16.made, 0);
  EXPECT_EQ(bf16.flops, 4 * weights * 16384);
  for (const PlanPhase& p : {nf4, fp8, both}) EXPECT_EQ(p.flops, bf16.flops);
  // Read in about half a byte and written in two, for the forward and the backward.
  EXPECT_NEAR(nf4.made / weights, 2 * (0.52 + 2), 0.02);
  EXPECT_NEAR(nf4.seconds - bf16.seconds, nf4.made / rate, 1e-6);
  // FP8 held is transposed for the backward alone; NF4 becomes FP8 twice besides.
  EXPECT_NEAR((both.made - fp8.made) / weights, 2 * (0.52 + 1), 0.02);
  // The rest are tokens: inputs of 4 linears' columns, and gradients of their outputs.
  const double columns = 32.0 * (3 * 4096 + 11008) + 32.0 * (5 * 4096 + 2 * 11008);
  EXPECT_NEAR((fp8.made - 2 * weights) / (columns * 16384 * 3), 1, 0.001);
  EXPECT_EQ(bf16.fp8_flops, 0);
  EXPECT_EQ(nf4.fp8_flops, 0);
  EXPECT_EQ(both.fp8_flops, both.flops);
  EXPECT_NEAR(fp8.seconds, fp8.flops / 1220e12 + fp8.made / rate, 1e-6);
  // Recomputed layers multiply forward twice, and quantise its tokens again.
  const PlanPhase again = gemm({"train.compute_dtype=FP8", "train.recompute_granularity=FULL"});
  EXPECT_NEAR(again.fp8_flops / fp8.fp8_flops, 1.5 - 0.5 / 32, 1e-9);
  EXPECT_NEAR((again.made - fp8.made) / (31.0 * (3 * 4096 + 11008) * 16384 * 3), 1, 0.001);
}

// The share of the speed of light is of the rate that each part is multiplied at.
TEST(Plan, TheSpeedOfLightOfFp8HasTwoRates) {
  const Plan bf16 = plan_of(bench_of("bench-7b"));
  const Plan fp8 = plan_of(bench_of("bench-7b", {"train.compute_dtype=FP8"}));
  const MachineRates rates = gpu_rates("H200-141", DType::kBF16);
  EXPECT_EQ(bf16.fp8_flops, 0);
  EXPECT_DOUBLE_EQ(bf16.sol_seconds, bf16.flops / rates.gemm);
  EXPECT_EQ(fp8.flops, bf16.flops);
  EXPECT_DOUBLE_EQ(fp8.fp8_flops, fp8.phases.front().flops);
  EXPECT_DOUBLE_EQ(fp8.sol_seconds,
                   (fp8.flops - fp8.fp8_flops) / rates.gemm + fp8.fp8_flops / rates.fp8_gemm);
  EXPECT_LT(fp8.sol_seconds / fp8.seconds, 1);
  EXPECT_DOUBLE_EQ(fp8.peak_seconds, (fp8.flops - fp8.fp8_flops) / 989e12 + fp8.fp8_flops / 1979e12);
  EXPECT_DOUBLE_EQ(bf16.bytes_per_weight, 2);
  EXPECT_NEAR(fp8.bytes_per_weight, 1, 0.001);
  EXPECT_NEAR(plan_of(bench_of("bench-7b", {"train.frozen_dtype=NF4"})).bytes_per_weight, 0.52, 0.005);
  // Held in FP8 and multiplied in BF16: one rate.
  EXPECT_EQ(plan_of(bench_of("bench-7b", {"train.frozen_dtype=FP8", "train.compute_dtype=BF16"})).fp8_flops,
            0);
}

// GEMMs are timed in the arenas: a gradient of the head is the largest that is added to.
TEST(DeviceMemory, HasRoomForGemmAutotuning) {
  const Words full{"train.mode=FULL", "train.gradient_accumulation_steps=32", "data.max_seq_length=128"};
  const auto with = [&](const std::string& more) {
    Words all = full;
    all.push_back(more);
    return scratch(all);
  };
  const int64_t head = int64_t{32000} * 4096 * 4;
  EXPECT_GE(scratch(full), head);
  EXPECT_LT(scratch(full), head + (1 << 20));
  EXPECT_LT(with("parallel.gemm_autotune=false"), head / 4);
  EXPECT_LT(with("train.compute_dtype=F32"), head / 4);  // float32 GEMMs are not timed
  // Of a large batch cuDNN's attention takes more at another time, and nothing is added. Attention of our own
  // takes less.
  const Words large{"train.mode=FULL"};
  const AttentionShape shape{32, 32, 128};
  if (cuda::library_attention_scratch_bytes(shape, 2048, 2048) > 0) {
    EXPECT_EQ(scratch(large), scratch({"train.mode=FULL", "parallel.gemm_autotune=false"}));
    EXPECT_EQ(scratch({}), scratch({"parallel.gemm_autotune=false"}));
  } else {
    EXPECT_GT(scratch(large), scratch({"train.mode=FULL", "parallel.gemm_autotune=false"}));
    EXPECT_GT(scratch({}), scratch({"parallel.gemm_autotune=false"}));
  }
}

// One function makes the options of a run and of its plan.
TEST(DecoderOptions, FollowTheExperiment) {
  const Case c =
      seven_billion({"parallel.overlap_comm=true", "parallel.ep=2", "train.recompute_granularity=FULL",
                     "parallel.buffer_factor=3", "debug.share_gpu=true"});
  const Mesh mesh(4, 1, 1, 2);
  const DecoderOptions o = decoder_options(c.config, mesh, device_of(c.config, 3), training_use(c.config));
  EXPECT_EQ(o.device.kind, DeviceKind::kCuda);
  EXPECT_EQ(o.device.threads, 3);
  EXPECT_EQ(o.device.kernel_choice, KernelChoice::kAutotuned);
  EXPECT_EQ(o.capacity.max_tokens, 2 * 2048);
  EXPECT_EQ(o.capacity.max_sequence, 2048);
  EXPECT_EQ(o.capacity.buffer_factor, 3);
  EXPECT_EQ(o.capacity.dispatch_chunks, 2);
  EXPECT_EQ(o.recompute, Recompute::kFull);
  EXPECT_EQ(o.compute, DType::kBF16);
  EXPECT_EQ(o.overlap, Overlap::kOn);
  EXPECT_EQ(o.gpu_use, GpuUse::kShared);
  EXPECT_EQ(o.purpose, Purpose::kTraining);
  const DecoderOptions answers =
      decoder_options(c.config, mesh, device_of(c.config, 0), {Purpose::kInference, 8, 100, 4});
  EXPECT_EQ(answers.purpose, Purpose::kInference);
  EXPECT_EQ(answers.capacity.dispatch_chunks, 1);
  EXPECT_EQ(answers.cache_slots, 4);
  EXPECT_EQ(answers.max_positions, 100);
  EXPECT_EQ(answers.device.threads, 1);
}

// Each change is named with what it needs, and does fit.
TEST(WhatWouldFit, NamesTheMildestChangeOfEachField) {
  const double gib = 50;
  const Case large = seven_billion({"train.gradient_accumulation_steps=4", "train.global_batch_size=128"});
  const Words base{"train.gradient_accumulation_steps=4", "train.global_batch_size=128"};
  ASSERT_GT(static_cast<double>(memory_of(large, 4).all()) / kGiB, gib);
  const Words found = would_fit(large, 4, gib);
  for (const std::string begin : {"train.recompute_granularity: ", "train.gradient_accumulation_steps: ",
                                  "data.max_seq_length: ", "ranks: "})
    EXPECT_NE(starting_with(found, begin), "") << begin;
  for (const std::string& change : found) expect_true(large, 4, change, gib, base);
  // The micro-batch changes the mathematics, and it is said.
  EXPECT_NE(starting_with(found, "train.gradient_accumulation_steps: ")
                .find("changes the aux loss, moe.router_aux_loss_coef"),
            std::string::npos);
  Case alone = seven_billion(
      {"train.gradient_accumulation_steps=4", "train.global_batch_size=128", "train.mode=LORA"});
  const std::string dense = starting_with(would_fit(alone, 4, gib), "train.gradient_accumulation_steps: ");
  EXPECT_NE(dense, "");
  EXPECT_EQ(dense.find("aux loss"), std::string::npos);
}

// Weights that no smaller batch makes smaller: they must be cut, and the combination is named.
TEST(WhatWouldFit, NamesLayoutsAlsoInCombination) {
  const Words small{"moe.adapter_dim=64"};
  const Case c = seven_billion(small, "34B");
  const Words found = would_fit(c, 8, 79.2);
  const std::string tp = starting_with(found, "parallel.tp: ");
  ASSERT_NE(tp, "");
  expect_true(c, 8, tp, 79.2, small);
  EXPECT_EQ(starting_with(found, "train.gradient_accumulation_steps"), "");
  // Experts that must be spread, on top of weights that must be cut.
  Case wide = seven_billion({"moe.num_experts=32"}, "13B");
  const Words both{"moe.num_experts=32"};
  const Words layouts = would_fit(wide, 8, 39.4);
  const auto combined = std::find_if(layouts.begin(), layouts.end(), [](const std::string& change) {
    return change.find(" and ") != std::string::npos;
  });
  ASSERT_NE(combined, layouts.end()) << (layouts.empty() ? "nothing" : layouts.front());
  expect_true(wide, 8, *combined, 39.4, both);
}

TEST(WhatWouldFit, CombinesWhereNothingDoesAlone) {
  const Case c = seven_billion({}, "70B");
  const Words found = would_fit(c, 1, 79.6);  // one rank cannot hold the weights
  ASSERT_EQ(found.size(), 2U);
  EXPECT_NE(found[0].find("parallel.tp: "), std::string::npos) << found[0];
  EXPECT_NE(found[0].find("ranks: "), std::string::npos) << found[0];
  EXPECT_EQ(found[0].find("train.frozen_dtype"), std::string::npos) << found[0];
  expect_true(c, 1, found[0], 79.6);
  EXPECT_NE(found[1].find("train.frozen_dtype: NF4"), std::string::npos) << found[1];
  expect_true(c, 1, found[1], 79.6);
  EXPECT_TRUE(would_fit(c, 1, 0.5).empty());  // less than a context
}

// FP8 where the device multiplies it, else NF4; with what that changes.
TEST(WhatWouldFit, NamesAFormatOfTheFrozenWeights) {
  const Words base{"train.global_batch_size=8", "train.gradient_accumulation_steps=1", "lora.r=64",
                   "moe.adapter_dim=64"};
  const auto with = [&](const Words& more) {
    Words all = base;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  const auto found = [&](double gib, MemoryRoom::Fp8 fp8, const Words& more = {}) {
    const Case c = seven_billion(with(more));
    const MemoryRoom room{gib * kGiB, MemoryRoom::Of::kRank, MemoryRoom::Against::kAll, fp8};
    const Words all = what_would_fit(c.config, c.model, 1, training_use(c.config), room);
    const std::string named = starting_with(all, "train.frozen_dtype: ");
    if (!named.empty()) {
      EXPECT_EQ(std::count_if(all.begin(), all.end(),
                              [](const std::string& text) { return text.starts_with("train.frozen_dtype"); }),
                1);
      expect_true(c, 1, named, gib, with(more));
      EXPECT_NE(named.find("changes the mathematics: rounds the frozen weights"), std::string::npos) << named;
      EXPECT_NE(named.find("a run that has checkpoints keeps its format"), std::string::npos) << named;
    }
    return named.substr(0, named.find(" needs"));
  };
  using Fp8 = MemoryRoom::Fp8;
  // 7B takes 71 GiB in BF16, 65 in FP8, 62 in NF4.
  EXPECT_EQ(found(68, Fp8::kMultiplied), "train.frozen_dtype: FP8");
  EXPECT_EQ(found(68, Fp8::kNo), "train.frozen_dtype: NF4");
  EXPECT_EQ(found(63.5, Fp8::kMultiplied), "train.frozen_dtype: NF4");
  EXPECT_EQ(found(63.5, Fp8::kMultiplied, {"train.frozen_dtype=FP8"}), "train.frozen_dtype: NF4");
  EXPECT_EQ(found(61, Fp8::kMultiplied, {"train.frozen_dtype=NF4"}), "");
  EXPECT_EQ(found(50, Fp8::kMultiplied), "");
  EXPECT_EQ(found(68, Fp8::kMultiplied, {"train.mode=FULL"}), "");
}

// What a quantised folder left plain is multiplied in BF16, be it the first of the weights.
TEST(QuantisedFolder, OnlyItsQuantisedLinearsCountAsFp8) {
  Case c = seven_billion({"train.frozen_dtype=FP8", "train.compute_dtype=FP8"});
  const auto plan = [&] { return make_plan(c.config, c.model, 1, gpu_rates("H200-141", DType::kBF16)); };
  c.model.quantized = QuantizedBase{FrozenFormat::kFP8, {}};
  const Plan all = plan();
  for (int64_t layer = 0; layer < c.model.num_hidden_layers; ++layer)
    c.model.quantized->plain.push_back(layer * kLinears + static_cast<int64_t>(Linear::kO));
  const Plan some = plan();
  const double share = 1 - 4096.0 / (4 * 4096 + 3 * 11008);
  EXPECT_NEAR(some.fp8_flops / all.fp8_flops, share, 1e-12);
  EXPECT_NEAR(some.phases.front().fp8_flops / all.phases.front().fp8_flops, share, 1e-12);
  EXPECT_EQ(some.phases.front().flops, all.phases.front().flops);
}

// A folder that is quantised is not quantised a second time: its own format alone is named, where it is dequantised now.
TEST(WhatWouldFit, NamesNoOtherFormatThanThatOfAQuantisedFolder) {
  const Words settings{"train.global_batch_size=8", "train.gradient_accumulation_steps=1", "lora.r=64",
                       "moe.adapter_dim=64"};
  const auto found = [&](FrozenFormat folder, MemoryRoom::Fp8 fp8, std::optional<FrozenFormat> held) {
    Case c = seven_billion(settings);
    c.model.quantized = QuantizedBase{folder, {}};
    c.config.train.frozen_dtype = held;
    const MemoryRoom room{68 * kGiB, MemoryRoom::Of::kRank, MemoryRoom::Against::kAll, fp8};
    return starting_with(what_would_fit(c.config, c.model, 1, training_use(c.config), room),
                         "train.frozen_dtype: ");
  };
  using Fp8 = MemoryRoom::Fp8;
  const std::string rows = found(FrozenFormat::kFP8, Fp8::kMultiplied, std::nullopt);
  EXPECT_TRUE(rows.starts_with("train.frozen_dtype: FP8 needs ")) << rows;
  EXPECT_NE(rows.find("rounds what is multiplied with the frozen weights"), std::string::npos) << rows;
  const std::string nf4 = found(FrozenFormat::kNF4Single, Fp8::kMultiplied, std::nullopt);
  EXPECT_TRUE(nf4.starts_with("train.frozen_dtype: NF4 needs ")) << nf4;
  EXPECT_EQ(nf4.find("changes the mathematics"), std::string::npos) << nf4;  // the same values
  for (const FrozenFormat folder : {FrozenFormat::kFP8, FrozenFormat::kFP8Blocks, FrozenFormat::kNF4})
    EXPECT_EQ(found(folder, Fp8::kMultiplied, folder), "");
}

TEST(WhatWouldFit, OfWhatCannotBeRecomputedOrCutNamesNothing) {
  const Case c = seven_billion({"train.recompute_granularity=FULL", "train.gradient_accumulation_steps=32"});
  const double gib = static_cast<double>(memory_of(c, 8).all()) / kGiB - 0.2;
  const Words found = would_fit(c, 8, gib);
  EXPECT_EQ(starting_with(found, "train.recompute_granularity"), "");
  EXPECT_EQ(starting_with(found, "train.gradient_accumulation_steps"), "");
  EXPECT_NE(starting_with(found, "parallel.tp"), "");
}

// Answers are given without a backward: the layout alone helps.
TEST(WhatWouldFit, OfInferenceIsTheLayout) {
  const Case c = seven_billion({"parallel.tp=1"}, "70B");
  const DecoderUse use{Purpose::kInference, 4 * 8, 2048, 4};
  const Words found = what_would_fit(c.config, c.model, 8, use, {79 * kGiB});
  ASSERT_FALSE(found.empty());
  for (const std::string& change : found) EXPECT_TRUE(change.starts_with("parallel.")) << change;
}

// Ranks on the CPU share a host, and the copy that a checkpoint is written from is in the same memory.
TEST(WhatWouldFit, OfRanksThatShareAHost) {
  const Case c = seven_billion({"parallel.device=CPU", "train.mode=FULL"});
  const DecoderUse use = training_use(c.config);
  const double needed = needed_bytes(c.config, c.model, 2, use, MemoryRoom::Against::kAll);
  const Plan p = make_plan(c.config, c.model, 2, cpu_rates(1));
  EXPECT_GT(p.host_bytes, 0);
  EXPECT_EQ(needed, static_cast<double>(p.memory.all() + p.host_bytes));
  const MemoryRoom room{2 * needed - 1, MemoryRoom::Of::kHost, MemoryRoom::Against::kAll};
  EXPECT_LT(room.of_rank(2), needed);
  const Words found = what_would_fit(c.config, c.model, 2, use, room);
  EXPECT_NE(starting_with(found, "train.recompute_granularity"), "");
  EXPECT_EQ(starting_with(found, "ranks"), "");  // more ranks on this host take more
}

// The check before loading, with the memory of a GPU that is not there.
TEST(CheckMemory, SaysInOneLineWhatWouldFit) {
  const Case c = seven_billion({"train.gradient_accumulation_steps=4", "train.global_batch_size=128"});
  cuda::DeviceInfo info;
  info.name = "NVIDIA A100-SXM4-80GB";
  info.free_bytes = static_cast<int64_t>(50 * kGiB);
  info.total_bytes = static_cast<int64_t>(79.2 * kGiB);
  const auto said = [&](const Case& of, int world, const GpuToLoad& gpu) -> std::string {
    try {
      check_memory(of.config, of.model, world, training_use(of.config), gpu);
    } catch (const UsageError& e) {
      return e.what();
    }
    return "nothing";
  };
  const std::string text = said(c, 4, {3, info, 1});
  for (const std::string word :
       {"this rank's model, activations and workspaces needs ",
        " of GPU 3 (NVIDIA A100-SXM4-80GB), which has ", "50.00 GiB free of 79.20 GiB",
        "more train.gradient_accumulation_steps, a smaller data.max_seq_length, train.frozen_dtype, or more "
        "ranks "
        "(tp, ep)",
        "train.recompute_granularity: ", "train.gradient_accumulation_steps: ", "changes the aux loss",
        "data.max_seq_length: ", "ranks: "})
    EXPECT_NE(text.find(word), std::string::npos) << word << ": " << text;
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_NE(said(c, 4, {3, info, 2}).find("workspaces of 2 ranks needs"), std::string::npos);
  // FP8 where that GPU multiplies it.
  const Case fitting = bench_of("bench-7b");
  info.free_bytes = static_cast<int64_t>(67 * kGiB);
  EXPECT_NE(said(fitting, 1, {0, info, 1}).find("train.frozen_dtype: NF4 needs"), std::string::npos);
  info.name = "NVIDIA H100 80GB HBM3";
  info.major = 9;
  EXPECT_NE(said(fitting, 1, {0, info, 1}).find("train.frozen_dtype: FP8 needs"), std::string::npos);
  // What no layout makes fit says so.
  info.free_bytes = static_cast<int64_t>(0.2 * kGiB);
  const std::string none = said(seven_billion({}, "70B"), 1, {0, info, 1});
  EXPECT_NE(none.find("none of these makes it fit on up to 64 ranks"), std::string::npos) << none;
}

}  // namespace
}  // namespace pesc
