#include "runtime/hf/safetensors_write.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "ops/core/check.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/hf/safetensors.h"

namespace pesc {
namespace {

constexpr size_t kHeaderAlignment = 8;

uint64_t bytes_of(const SafetensorsWriteEntry& entry) {
  uint64_t bytes = static_cast<uint64_t>(dtype_bytes(entry.dtype));
  for (const int64_t n : entry.shape) {
    PESC_CHECK(n >= 0 && !__builtin_mul_overflow(bytes, static_cast<uint64_t>(n), &bytes), "tensor ",
               entry.name, " has shape ", shape_text(entry.shape));
  }
  return bytes;
}

// Length prefix, JSON, padding.
std::string header_of(const std::vector<SafetensorsWriteEntry>& entries, const std::vector<size_t>& order,
                      const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  // push_back of a pair appends without ordered_json's linear search for the key; names are checked for
  // repeats apart.
  auto& members = header.get_ref<nlohmann::ordered_json::object_t&>();
  if (!metadata.empty()) members.emplace_back("__metadata__", metadata);
  uint64_t begin = 0;
  for (const size_t i : order) {
    const SafetensorsWriteEntry& entry = entries[i];
    const uint64_t end = begin + bytes_of(entry);
    nlohmann::ordered_json value = {{"dtype", dtype_name(entry.dtype)}, {"shape", entry.shape}};
    value["data_offsets"] = {begin, end};
    members.emplace_back(entry.name, std::move(value));
    begin = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');
  PESC_CHECK(text.size() <= kMaxSafetensorsHeader, "header of ", text.size(), " bytes");
  std::string prefix;
  for (int i = 0; i < 8; ++i) prefix += static_cast<char>((text.size() >> (8 * i)) & 0xFF);
  return prefix + text;
}

}  // namespace

SafetensorsWriteEntry safetensors_entry(std::string name, DType dtype, std::vector<int64_t> shape,
                                        std::span<const std::byte> data) {
  return {std::move(name), dtype, std::move(shape), [data](const ByteSink& sink) { sink(data); }};
}

int64_t safetensors_bytes(const SafetensorsWriteEntry& entry) {
  return static_cast<int64_t>(bytes_of(entry));
}

std::vector<size_t> safetensors_order(const std::vector<SafetensorsWriteEntry>& entries) {
  std::vector<size_t> order(entries.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const int64_t bytes_a = dtype_bytes(entries[a].dtype);
    const int64_t bytes_b = dtype_bytes(entries[b].dtype);
    return bytes_a != bytes_b ? bytes_a > bytes_b : entries[a].name < entries[b].name;
  });
  return order;
}

int64_t stream_safetensors(const std::string& where, const std::vector<SafetensorsWriteEntry>& entries,
                           const std::map<std::string, std::string>& metadata, const ByteSink& out) {
  std::vector<std::string> names;
  for (const SafetensorsWriteEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  PESC_CHECK(twice == names.end(), where, ": tensor ", *twice, " is given twice");
  PESC_CHECK(!std::binary_search(names.begin(), names.end(), "__metadata__"), where,
             ": a tensor named __metadata__");

  PESC_CHECK(entries.size() <= kMaxSafetensorsTensors && metadata.size() <= kMaxSafetensorsMetadata, where,
             ": more than can be read back: ", entries.size(), " tensors");
  const std::vector<size_t> order = safetensors_order(entries);
  const std::string header = header_of(entries, order, metadata);
  out(std::as_bytes(std::span(header)));
  uint64_t total = header.size();
  for (const size_t i : order) {
    const uint64_t want = bytes_of(entries[i]);
    uint64_t got = 0;
    entries[i].produce([&](std::span<const std::byte> bytes) {
      got += bytes.size();
      PESC_CHECK(got <= want, where, ": tensor ", entries[i].name, " gives more than its ", want, " bytes");
      out(bytes);
    });
    PESC_CHECK(got == want, where, ": tensor ", entries[i].name, " gave ", got, " of its ", want, " bytes");
    total += want;
  }
  return static_cast<int64_t>(total);
}

int64_t write_safetensors(const std::string& path, const std::vector<SafetensorsWriteEntry>& entries,
                          const std::map<std::string, std::string>& metadata) {
  AtomicFile file(path);
  const int64_t total = stream_safetensors(path, entries, metadata,
                                           [&](std::span<const std::byte> bytes) { file.write(bytes); });
  file.commit();
  return total;
}

}  // namespace pesc
