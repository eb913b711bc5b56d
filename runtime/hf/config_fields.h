// Typed access to the keys of a JSON object that a stranger wrote: a wrong type or a value out of range is a
// DataError that names the file and the key. A key that is null counts as absent.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace pesc {

// A value for a message: "'0.5'", "a list".
[[nodiscard]] std::string shown(const nlohmann::json& value);

class ConfigFields {
 public:
  // The largest count or size: 2^31 - 1.
  static constexpr int64_t kMaxInteger = INT32_MAX;

  // `where` begins every message: the file, and for an object inside it the key it stands under. The object
  // outlives this.
  ConfigFields(const nlohmann::json& object, std::string where);

  [[nodiscard]] const std::string& where() const { return where_; }
  // All keys and values, null ones too.
  [[nodiscard]] auto object_items() const { return object_->items(); }
  [[nodiscard]] bool has(const char* key) const { return find(key) != nullptr; }
  // True when the key is not there at all, not even as null.
  [[nodiscard]] bool absent(const char* key) const { return !object_->contains(key); }
  // Null when the key is absent or null.
  [[nodiscard]] const nlohmann::json* find(const char* key) const;
  // A whole number in [low, kMaxInteger].
  [[nodiscard]] std::optional<int64_t> integer(const char* key, int64_t low) const;
  [[nodiscard]] int64_t required_integer(const char* key, int64_t low) const;
  // A finite number above zero.
  [[nodiscard]] std::optional<double> positive(const char* key) const;
  [[nodiscard]] double required_positive(const char* key) const;
  [[nodiscard]] std::optional<bool> boolean(const char* key) const;
  [[nodiscard]] std::optional<std::string> string(const char* key) const;
  // An array of strings; a null array is absent.
  [[nodiscard]] std::optional<std::vector<std::string>> strings(const char* key) const;
  // The object under `key`.
  [[nodiscard]] std::optional<ConfigFields> object(const char* key) const;

  [[noreturn]] void fail(const char* key, const std::string& what) const;

 private:
  const nlohmann::json* object_;
  std::string where_;
};

}  // namespace pesc
