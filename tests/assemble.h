// Whole tensors put together from the pieces of all ranks, for comparisons across layouts.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/decoder.h"

namespace pesc {

using Tensors = std::map<std::string, std::vector<float>>;

// `pick` chooses what is gathered of each trainable parameter: its value, gradient, ... Collective; every
// rank gets all. Throws InternalError when pieces do not cover a tensor, or when replicas of a piece differ
// in any bit.
inline Tensors assemble(Communicator& world, Decoder& decoder,
                        const std::function<Tensor(const Parameter&)>& pick) {
  std::string mine;
  const auto put = [&mine](const auto& v) { mine.append(reinterpret_cast<const char*>(&v), sizeof(v)); };
  for (const Parameter& p : decoder.parameters().all()) {
    if (!p.trainable) continue;
    const ShardSpec& s = p.spec;
    put(static_cast<int64_t>(s.name.size()));
    mine += s.name;
    for (const int64_t v : {s.global_rows, s.global_cols, s.row, s.rows, s.col, s.cols}) put(v);
    std::vector<float> host(static_cast<size_t>(s.size()));
    copy_to_host(decoder.stream(), pick(p), host.data());
    mine.append(reinterpret_cast<const char*>(host.data()), host.size() * sizeof(float));
  }
  Tensors all;
  std::map<std::string, std::vector<bool>> seen;
  for (const std::string& bytes : world.host_all_gather(mine)) {
    size_t at = 0;
    const auto get = [&](void* to, size_t n) {
      std::memcpy(to, bytes.data() + at, n);
      at += n;
    };
    while (at < bytes.size()) {
      int64_t length = 0;
      get(&length, sizeof(length));
      std::string name(static_cast<size_t>(length), '\0');
      get(name.data(), name.size());
      int64_t v[6];
      get(v, sizeof(v));
      std::vector<float> piece(static_cast<size_t>(v[3] * v[5]));
      get(piece.data(), piece.size() * sizeof(float));
      auto& whole = all[name];
      auto& covered = seen[name];
      whole.resize(static_cast<size_t>(v[0] * v[1]));
      covered.resize(whole.size());
      for (int64_t r = 0; r < v[3]; ++r) {
        for (int64_t c = 0; c < v[5]; ++c) {
          const auto to = static_cast<size_t>((v[2] + r) * v[1] + v[4] + c);
          const float value = piece[static_cast<size_t>(r * v[5] + c)];
          PESC_CHECK(!covered[to] || std::memcmp(&whole[to], &value, sizeof(value)) == 0, "replicas of ",
                     name, " differ at ", to);
          whole[to] = value;
          covered[to] = true;
        }
      }
    }
  }
  for (const auto& [name, covered] : seen) {
    for (const bool c : covered) PESC_CHECK(c, "pieces do not cover ", name);
  }
  return all;
}

}  // namespace pesc
