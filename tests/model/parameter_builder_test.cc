// Every trainable parameter has a gradient of its shape, and the model's structs find it under the name of
// the value that it belongs to: for all families, modes and LoRA targets, on every rank of several layouts.
#include "model/parameter_builder.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "model/hf_names.h"
#include "tests/model/rig.h"

namespace pesc {
namespace {

using Names = std::vector<std::string>;

// Compares the slots of one rank's model with its table.
class Slots {
 public:
  explicit Slots(const ModelParameters& p) : p_(p) {
    for (const Parameter& q : p.all()) names_.insert(q.spec.name);
  }

  void check(const PescConfig& pesc, const Mesh& mesh) {
    expect(p_.dembedding, {hf::kEmbedding});
    expect(p_.dhead, {names_.count(hf::kHead) > 0 ? hf::kHead : hf::kEmbedding});
    expect(p_.dfinal_norm, {hf::kFinalNorm});
    for (size_t i = 0; i < p_.layers.size(); ++i) {
      const auto layer = static_cast<int64_t>(i);
      const LayerParameters& l = p_.layers[i];
      expect(l.dinput_norm, {hf::input_norm(layer)});
      expect(l.dpost_norm, {hf::post_norm(layer)});
      expect(l.dq_norm, {hf::q_norm(layer)});
      expect(l.dk_norm, {hf::k_norm(layer)});
      for (const ColumnLinears* linears : {&l.qkv, &l.gate_up}) {
        Names a;
        for (const ColumnLinears::Part& part : linears->parts) {
          expect(part.dweight, {hf::weight(layer, part.linear)});
          expect(part.dbias, {hf::bias(layer, part.linear)});
          expect(part.dlora_b, {hf::lora_b(layer, part.linear)});
          if (part.lora_begin >= 0) a.push_back(hf::lora_a(layer, part.linear));
        }
        expect(linears->dlora_a, a);
      }
      for (const RowLinear* linear : {&l.o, &l.down}) {
        expect(linear->dweight, {hf::weight(layer, linear->linear)});
        expect(linear->dlora_a, {hf::lora_a(layer, linear->linear)});
        expect(linear->dlora_b, {hf::lora_b(layer, linear->linear)});
      }
      Names down, up;
      const Range mine = pesc.mode == TrainMode::kPesc ? mesh.experts(pesc.moe.num_experts) : Range{};
      for (int64_t e = mine.begin; e < mine.end; ++e) {
        down.push_back(hf::adapter_down(layer, e));
        up.push_back(hf::adapter_up(layer, e));
      }
      expect(l.moe.drouter, {hf::router(layer)});
      expect(l.moe.ddown, down);
      expect(l.moe.dup, up);
    }
    int64_t elements = 0;
    for (const Parameter& q : p_.all()) {
      EXPECT_EQ(reached_.count(q.spec.name), q.trainable ? 1U : 0U) << q.spec.name;
      if (!q.trainable) continue;
      EXPECT_EQ(q.grad.rows, q.spec.rows) << q.spec.name;
      EXPECT_EQ(q.grad.cols, q.spec.cols) << q.spec.name;
      elements += q.grad.size();
    }
    int64_t flat = 0;
    for (int g = 0; g < kReplicaGroups; ++g) flat += p_.flat_grad(static_cast<ReplicaGroup>(g)).size();
    EXPECT_EQ(elements, flat);
    EXPECT_GT(elements, 0);
  }

 private:
  // The gradients of these parameters, one below the other; nothing where they are frozen or not there.
  void expect(const Tensor& slot, const Names& names) {
    int64_t row = 0;
    for (const std::string& name : names) {
      if (names_.count(name) == 0 || !p_.find(name).trainable) continue;
      const Tensor& grad = p_.find(name).grad;
      reached_.insert(name);
      ASSERT_LE(row + grad.rows, slot.rows) << name;
      EXPECT_EQ(slot.cols, grad.cols) << name;
      EXPECT_EQ(slot.row_range(row, row + grad.rows).data, grad.data) << name;
      row += grad.rows;
    }
    EXPECT_EQ(slot.rows, row) << (names.empty() ? "" : names.front());
  }

  const ModelParameters& p_;
  std::set<std::string> names_, reached_;
};

PescConfig lora_alone() {
  PescConfig p = dense_only();
  p.lora = tiny_pesc().lora;
  return p;
}

void check_everywhere(const ModelConfig& model, const PescConfig& pesc, DType compute) {
  struct Shape {
    int world, tp, ep;
  };
  for (const Shape& s : {Shape{1, 1, 1}, {2, 2, 1}, {4, 2, 4}, {4, 4, 2}, {8, 4, 8}}) {
    if (pesc.mode != TrainMode::kPesc && s.ep > 1) continue;
    for (int rank = 0; rank < s.world; ++rank) {
      SCOPED_TRACE(
          str_cat("rank ", rank, " of ", s.world, ", tp ", s.tp, ", ep ", s.ep, ", ", dtype_name(compute)));
      const Mesh mesh(s.world, rank, s.tp, s.ep);
      Arena weights = Arena::planning("weights"), copies = Arena::planning("copies"),
            optimizer = Arena::planning("optimizer");
      const ModelParameters planned(model, pesc, mesh, compute, {weights, copies, &optimizer});
      Slots(planned).check(pesc, mesh);
      Arena real_weights("weights", Device{}, weights.used()), real_copies("copies", Device{}, copies.used()),
          real_optimizer("optimizer", Device{}, optimizer.used());
      const ModelParameters taken(model, pesc, mesh, compute, {real_weights, real_copies, &real_optimizer});
      Slots(taken).check(pesc, mesh);
      EXPECT_EQ(real_weights.used(), weights.used());
      EXPECT_EQ(real_copies.used(), copies.used());
      EXPECT_EQ(real_optimizer.used(), optimizer.used());
    }
  }
}

TEST(ParameterBuilder, EveryTrainableParameterHasItsGradientSlot) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (const PescConfig& pesc : {tiny_pesc(), odd_pesc(), bf16_pesc(), lora_alone(), full_tuning()}) {
      check_everywhere(tiny_llama(), pesc, compute);
      check_everywhere(tiny_qwen2(), pesc, compute);  // biases; one table is embedding and head
      check_everywhere(tiny_qwen3(), pesc, compute);  // norms of q and k
    }
    check_everywhere(bf16_llama(), bf16_pesc(), compute);  // in BF16 LoRA's B stands beside the weights
  }
}

// Every rank has the norms of q and k whole, in the group whose gradients are summed over all ranks: also where
// a KV head stands on several tp ranks, whose sums are then parts of one.
TEST(ParameterBuilder, NormsOfQAndKAreWholeAndSummedOverTheWorld) {
  Arena weights = Arena::planning("weights"), copies = Arena::planning("copies"),
        optimizer = Arena::planning("optimizer");
  const ModelConfig model = tiny_qwen3();
  for (int rank = 0; rank < 8; ++rank) {
    const ModelParameters p(model, full_tuning(), Mesh(8, rank, 4, 1), DType::kF32,
                            {weights, copies, &optimizer});
    for (int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
      for (const std::string& name : {hf::q_norm(layer), hf::k_norm(layer)}) {
        const Parameter& q = p.find(name);
        EXPECT_EQ(q.group, ReplicaGroup::kWorld) << name;
        EXPECT_EQ(q.spec.global_cols, model.head_dim) << name;
        EXPECT_EQ(q.spec.cols, model.head_dim) << name;
        EXPECT_TRUE(q.dense && q.trainable) << name;
        EXPECT_EQ(q.master.dtype, DType::kF32) << name;
      }
    }
  }
  const ModelParameters without(tiny_llama(), full_tuning(), Mesh(1, 0, 1, 1), DType::kF32,
                                {weights, copies, &optimizer});
  EXPECT_EQ(without.layers.front().q_norm.cols, 0);
  EXPECT_THROW((void)without.find(hf::q_norm(0)), InternalError);
}

TEST(ParameterBuilder, WithoutAnOptimizerThereAreNoGradients) {
  Arena weights = Arena::planning("weights"), copies = Arena::planning("copies");
  const ModelParameters p(tiny_llama(), tiny_pesc(), Mesh(1, 0, 1, 1), DType::kF32,
                          {weights, copies, nullptr});
  for (const Parameter& q : p.all()) EXPECT_EQ(q.grad.cols, 0) << q.spec.name;
  EXPECT_EQ(p.layers.front().moe.ddown.cols, 0);
  EXPECT_EQ(p.layers.front().qkv.dlora_a.cols, 0);
}

// The frozen linears, and they alone, say how they are held; the other dense tensors are values.
TEST(ParameterBuilder, FrozenLinearsSayHowTheyAreHeld) {
  Arena weights = Arena::planning("weights"), copies = Arena::planning("copies");
  const Mesh mesh(1, 0, 1, 1);
  const ModelParameters p(bf16_llama(), bf16_pesc(), mesh, DType::kBF16, {weights, copies, nullptr});
  int held = 0;
  for (const Parameter& q : p.all()) {
    if (q.held.out == 0) continue;
    ++held;
    EXPECT_FALSE(q.trainable) << q.spec.name;
    EXPECT_EQ(q.held.type.format, FrozenFormat::kBF16) << q.spec.name;
    EXPECT_EQ(q.held.out, q.spec.rows) << q.spec.name;
    EXPECT_EQ(q.held.in, q.spec.cols) << q.spec.name;
    EXPECT_NE(q.spec.name.find("_proj.weight"), std::string::npos) << q.spec.name;
  }
  EXPECT_EQ(held, kLinears * static_cast<int>(p.layers.size()));
  const LayerParameters& layer = p.layers.front();
  EXPECT_EQ(layer.qkv.concat_columns(), 3 * 8);
  EXPECT_EQ(layer.gate_up.concat_columns(), 2 * 8);
  EXPECT_EQ(layer.o.concat_columns(), 8);
  EXPECT_EQ(layer.down.concat_columns(), 8);
  const ModelParameters full(bf16_llama(), full_tuning(), mesh, DType::kBF16, {weights, copies, nullptr});
  for (const Parameter& q : full.all()) EXPECT_EQ(q.held.out, 0) << q.spec.name;
  EXPECT_EQ(full.layers.front().o.base.type.format, FrozenFormat::kBF16);
}

}  // namespace
}  // namespace pesc
