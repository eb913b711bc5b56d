// A small run without files of a base: its dense weights are a function of name and place, its trained ones stand in a
// checkpoint of a file system in memory.
#pragma once

#include <cmath>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "model/parameters.h"
#include "model/weight_source.h"
#include "ops/core/arena.h"
#include "parallel/mesh.h"
#include "runtime/checkpoint/store.h"
#include "tests/runtime/checkpoint/thread_communicator.h"
#include "tests/runtime/filesystem/faulty_filesystem.h"

namespace pesc::testing {

inline ModelConfig small_model(Family family = Family::kLlama) {
  ModelConfig m;
  m.family = family;
  m.vocab_size = 40;
  m.hidden_size = 16;
  m.intermediate_size = 24;
  m.num_hidden_layers = 2;
  m.num_attention_heads = 4;
  m.num_key_value_heads = 2;
  m.head_dim = 4;
  m.max_position_embeddings = 64;
  m.qkv_bias = traits_of(family).qkv_bias();
  m.bos_id = 1;
  m.eos_ids = {2};
  return m;
}

inline PescConfig small_pesc(TrainMode mode = TrainMode::kPesc) {
  PescConfig p;
  p.mode = mode;
  p.lora.r = 3;
  p.lora.lora_alpha = 7;
  p.lora.target_modules = {Linear::kQ, Linear::kV, Linear::kGate, Linear::kDown};
  p.moe = {.num_experts = 4, .num_experts_per_tok = 2, .adapter_dim = 5, .adapter_scaling = 0.25};
  return p;
}

// Somewhere within (-1, 1), of full float32 precision.
inline float value_at(const std::string& name, int64_t index) {
  uint32_t hash = 2166136261U;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
  return static_cast<float>(std::sin(static_cast<double>(hash % 1000) + 1.7 * static_cast<double>(index)));
}

class SmallBase : public WeightSource {
 public:
  [[nodiscard]] int64_t bytes_read() const override { return 0; }
  [[nodiscard]] bool has(const std::string&) const override { return true; }
  void read(const ShardSpec& piece, float* to) override {
    largest_ = std::max(largest_, piece.size());
    for (int64_t r = piece.row; r < piece.row + piece.rows; ++r)
      for (int64_t c = piece.col; c < piece.col + piece.cols; ++c)
        *to++ = value_at(piece.name, r * piece.global_cols + c);
  }
  [[nodiscard]] int64_t largest() const { return largest_; }  // values of the largest read

 private:
  int64_t largest_ = 0;
};

class SmallRun {
 public:
  SmallRun(const ModelConfig& model, const PescConfig& pesc) {
    Arena weights = Arena::planning("weights"), compute = Arena::planning("compute weights");
    const ModelParameters parameters(model, pesc, Mesh(1, 0, 1, 1), DType::kF32, {weights, compute, nullptr});
    std::deque<std::vector<float>> memory;
    std::vector<TrainableTensor> tensors;
    for (const Parameter& p : parameters.all()) {
      specs_.emplace(p.spec.name, p.spec);
      if (!p.trainable) continue;
      auto& values = memory.emplace_back();
      for (int64_t i = 0; i < p.spec.size(); ++i) values.push_back(value_at(p.spec.name, i));
      tensors.push_back({p.spec, tensor_of(values.data(), p.spec.rows, p.spec.cols), {}, {}});
    }
    files_.create_directory("run");
    ThreadCommunicator::Group group(1);
    ThreadCommunicator world(group, 0);
    CheckpointState state;
    state.step = 3;
    CheckpointStore store(files_, "run", {});
    checkpoint_ = open_checkpoint(files_, world, store.save(world, stream_, state, tensors, 1).directory);
  }

  [[nodiscard]] MemoryFileSystem& files() { return files_; }
  [[nodiscard]] const LoadedCheckpoint& checkpoint() const { return checkpoint_; }
  [[nodiscard]] Stream& stream() { return stream_; }
  [[nodiscard]] const ShardSpec& spec(const std::string& name) const { return specs_.at(name); }

 private:
  MemoryFileSystem files_;
  Stream stream_{Device{}};
  LoadedCheckpoint checkpoint_;
  std::map<std::string, ShardSpec> specs_;
};

}  // namespace pesc::testing
