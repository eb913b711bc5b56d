// The header is parsed by events, not into a JSON document: nothing is kept that the format does not ask for,
// an unexpected event ends the parse at once (so deep nesting costs nothing), and repeated keys are seen.
#include "runtime/hf/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/safetensors_types.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr size_t kMaxRank = 16;
constexpr size_t kMaxDigits = 1 << 20;  // in a row, in a header

// Receives the JSON events of a header. `State` is what the next event must be.
class HeaderReader {
 public:
  HeaderReader(std::string file, SafetensorsHeader& header) : file_(std::move(file)), header_(header) {}

  bool start_object(size_t /*elements*/) {
    switch (state_) {
      case State::kStart:
        state_ = State::kRoot;
        return true;
      case State::kTensor:
        state_ = State::kField;
        return true;
      case State::kMetadata:
        state_ = State::kMetadataKey;
        return true;
      default:
        return unexpected("an object");
    }
  }
  bool key(std::string& name) {
    switch (state_) {
      case State::kRoot:
        root_key(name);
        return true;
      case State::kField:
        field_key(name);
        return true;
      case State::kMetadataKey:
        metadata_key_ = name;
        state_ = State::kMetadataValue;
        return true;
      default:
        return unexpected("a key");
    }
  }
  bool end_object() {
    if (state_ == State::kField) {
      finish_tensor();
      state_ = State::kRoot;
    } else if (state_ == State::kMetadataKey) {
      state_ = State::kRoot;
    } else if (state_ == State::kRoot) {
      state_ = State::kEnd;
    } else {
      return unexpected("the end of an object");
    }
    return true;
  }
  bool start_array(size_t /*elements*/) {
    if (state_ == State::kShape) {
      state_ = State::kShapeItem;
    } else if (state_ == State::kOffsets) {
      state_ = State::kOffsetItem;
    } else {
      return unexpected("an array");
    }
    return true;
  }
  bool end_array() {
    if (state_ == State::kOffsetItem && offsets_.size() != 2) fail("data_offsets needs two numbers");
    state_ = State::kField;
    return true;
  }
  bool string(std::string& value) {
    if (state_ == State::kMetadataValue) {
      if (!header_.metadata.emplace(std::move(metadata_key_), std::move(value)).second) {
        fail("__metadata__ has a key twice");
      }
      if (header_.metadata.size() > kMaxSafetensorsMetadata) {
        fail(str_cat("__metadata__ has more than ", kMaxSafetensorsMetadata, " keys"));
      }
      state_ = State::kMetadataKey;
    } else if (state_ == State::kDType) {
      entry_.dtype = dtype_of(value);
      entry_.type = std::move(value);
      state_ = State::kField;
    } else {
      return unexpected("a string");
    }
    return true;
  }
  bool number_unsigned(uint64_t value) {
    if (state_ == State::kShapeItem) {
      if (value > static_cast<uint64_t>(INT64_MAX)) fail(str_cat("dimension ", value, " is too large"));
      if (entry_.shape.size() == kMaxRank) fail(str_cat("shape has more than ", kMaxRank, " dimensions"));
      entry_.shape.push_back(static_cast<int64_t>(value));
    } else if (state_ == State::kOffsetItem) {
      if (offsets_.size() == 2) fail("data_offsets needs two numbers");
      offsets_.push_back(value);
    } else {
      return unexpected("a number");
    }
    return true;
  }
  bool number_integer(int64_t value) { return unexpected(str_cat("the number ", value)); }
  bool number_float(double value, const std::string& /*text*/) {
    return unexpected(str_cat("the number ", value));
  }
  bool null() {
    if (state_ != State::kMetadata) return unexpected("null");
    state_ = State::kRoot;  // no metadata
    return true;
  }
  bool boolean(bool /*value*/) { return unexpected("a boolean"); }
  bool binary(std::vector<uint8_t>& /*value*/) { return unexpected("bytes"); }
  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) {
    fail(str_cat("the header is not valid JSON near its byte ", position));
  }

 private:
  enum class State {
    kStart,
    kRoot,
    kTensor,
    kField,
    kDType,
    kShape,
    kShapeItem,
    kOffsets,
    kOffsetItem,
    kMetadata,
    kMetadataKey,
    kMetadataValue,
    kEnd
  };

  [[noreturn]] void fail(const std::string& what) const {
    const bool in_tensor = state_ == State::kTensor || state_ == State::kField || state_ == State::kDType ||
                           state_ == State::kShape || state_ == State::kShapeItem ||
                           state_ == State::kOffsets || state_ == State::kOffsetItem;
    const std::string tensor = in_tensor ? str_cat("tensor ", in_quotes(entry_.name), ": ") : "";
    throw DataError(str_cat(file_, ": ", tensor, what));
  }

  bool unexpected(const std::string& what) const {
    switch (state_) {
      case State::kStart:
      case State::kEnd:
        fail(str_cat("the header must be one JSON object, not ", what));
      case State::kTensor:
        fail(str_cat("must be an object with dtype, shape and data_offsets, not ", what));
      case State::kDType:
        fail(str_cat("dtype must be a string, not ", what));
      case State::kShape:
      case State::kShapeItem:
        fail(str_cat("shape must be an array of whole numbers from 0, not ", what));
      case State::kOffsets:
      case State::kOffsetItem:
        fail(str_cat("data_offsets must be two whole numbers from 0, not ", what));
      case State::kMetadata:
      case State::kMetadataKey:
      case State::kMetadataValue:
        fail(str_cat("__metadata__ must be an object of strings, not ", what));
      default:
        fail(str_cat("unexpected ", what, " in the header"));
    }
  }

  void root_key(std::string& name) {
    if (name == "__metadata__") {
      if (std::exchange(saw_metadata_, true)) fail("__metadata__ appears twice in the header");
      state_ = State::kMetadata;
      return;
    }
    entry_ = SafetensorsEntry{};
    entry_.name = std::move(name);
    offsets_.clear();
    saw_dtype_ = saw_shape_ = saw_offsets_ = false;
    state_ = State::kTensor;
    if (header_.tensors.size() == kMaxSafetensorsTensors) {
      fail(str_cat("the file has more than ", kMaxSafetensorsTensors, " tensors"));
    }
  }

  void field_key(const std::string& name) {
    bool* seen = nullptr;
    State next = State::kField;
    if (name == "dtype") {
      seen = &saw_dtype_;
      next = State::kDType;
    } else if (name == "shape") {
      seen = &saw_shape_;
      next = State::kShape;
    } else if (name == "data_offsets") {
      seen = &saw_offsets_;
      next = State::kOffsets;
    } else {
      fail(str_cat("unknown field ", in_quotes(name), "; known are dtype, shape, data_offsets"));
    }
    if (std::exchange(*seen, true)) fail(str_cat("the field ", name, " appears twice"));
    state_ = next;
  }

  void finish_tensor() {
    if (!saw_dtype_) fail("dtype is missing");
    if (!saw_shape_) fail("shape is missing");
    if (!saw_offsets_) fail("data_offsets is missing");
    entry_.begin = offsets_[0];
    entry_.end = offsets_[1];
    if (entry_.begin > entry_.end) {
      fail(str_cat("data_offsets [", entry_.begin, ", ", entry_.end, "] end before they begin"));
    }
    check_size();
    header_.tensors.push_back(std::move(entry_));
  }

  // A type that is not known has no size to check. That its tensor lies in the file is checked in any case.
  void check_size() const {
    const SafetensorsType* type = safetensors_type(entry_.type);
    if (type == nullptr) return;
    uint64_t bits = type->bits;
    for (const int64_t n : entry_.shape) {
      if (__builtin_mul_overflow(bits, static_cast<uint64_t>(n), &bits)) {
        fail(str_cat("shape ", shape_text(entry_.shape), " is larger than any file"));
      }
    }
    if (bits % 8 != 0 || bits / 8 != entry_.bytes()) {
      fail(str_cat("shape ", shape_text(entry_.shape), " of ", entry_.type, " needs ", bits / 8,
                   bits % 8 == 0 ? "" : " and a part", " bytes, but data_offsets give it ", entry_.bytes()));
    }
  }

  std::string file_;
  SafetensorsHeader& header_;
  State state_ = State::kStart;
  SafetensorsEntry entry_;
  std::vector<uint64_t> offsets_;
  std::string metadata_key_;
  bool saw_metadata_ = false;
  bool saw_dtype_ = false;
  bool saw_shape_ = false;
  bool saw_offsets_ = false;
};

// The header's bytes, after the checks of its length.
std::string_view header_text(std::span<const std::byte> file, const std::string& file_name) {
  constexpr const char* kAdvice = "; the file is damaged, cut short, or not safetensors";
  const auto* first = reinterpret_cast<const char*>(file.data());
  check_first_bytes({first, std::min(file.size(), kFirstBytes)}, file_name, FileUse::kSafetensors);
  uint64_t length = 0;
  if (file.size() < sizeof(length)) {
    throw DataError(str_cat(file_name, ": has only ", file.size(), " bytes", kAdvice));
  }
  for (size_t i = 0; i < sizeof(length); ++i) length |= std::to_integer<uint64_t>(file[i]) << (8 * i);
  if (length > kMaxSafetensorsHeader) {
    throw DataError(str_cat(file_name, ": the header's length is given as ", length, " bytes, the limit is ",
                            kMaxSafetensorsHeader, kAdvice));
  }
  if (length < 2 || length > file.size() - sizeof(length)) {
    throw DataError(str_cat(file_name, ": the header's length is given as ", length, " bytes, the file has ",
                            file.size() - sizeof(length), " after it", kAdvice));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof(length), length);
  if (text.front() != '{') {
    throw DataError(str_cat(file_name, ": the header does not begin with '{'", kAdvice));
  }
  // The JSON reader takes a zero byte for the end of its input and would accept anything behind it.
  if (text.find('\0') != std::string_view::npos) {
    throw DataError(str_cat(file_name, ": the header holds a zero byte", kAdvice));
  }
  size_t digits = 0;  // a number of many megabytes takes the JSON reader seconds
  for (const char c : text) {
    digits = c >= '0' && c <= '9' ? digits + 1 : 0;
    if (digits > kMaxDigits)
      throw DataError(str_cat(file_name, ": the header holds an endless number", kAdvice));
  }
  return text;
}

void check_names(SafetensorsHeader& header, const std::string& file_name) {
  const auto name_of = [&](uint32_t i) -> const std::string& { return header.tensors[i].name; };
  header.by_name.resize(header.tensors.size());
  std::iota(header.by_name.begin(), header.by_name.end(), 0U);
  std::sort(header.by_name.begin(), header.by_name.end(),
            [&](uint32_t a, uint32_t b) { return name_of(a) < name_of(b); });
  const auto twice = std::adjacent_find(header.by_name.begin(), header.by_name.end(),
                                        [&](uint32_t a, uint32_t b) { return name_of(a) == name_of(b); });
  if (twice != header.by_name.end()) {
    throw DataError(
        str_cat(file_name, ": tensor ", in_quotes(name_of(*twice)), " appears twice in the header"));
  }
}

void check_cover(const SafetensorsHeader& header, uint64_t data_bytes, const std::string& file_name) {
  uint64_t end = 0;
  const SafetensorsEntry* before = nullptr;
  for (const SafetensorsEntry& t : header.tensors) {
    const std::string where = t.begin == end && t.end <= data_bytes
                                  ? ""
                                  : str_cat(file_name, ": tensor ", in_quotes(t.name), " at data bytes [",
                                            t.begin, ", ", t.end, "] ");
    if (t.end > data_bytes) {
      throw DataError(
          str_cat(where, "lies beyond the ", data_bytes, " bytes of data; the file is cut short"));
    }
    if (t.begin < end) {
      throw DataError(str_cat(where, "overlaps tensor ", in_quotes(before->name), ", which ends at ", end));
    }
    if (t.begin > end) throw DataError(str_cat(where, "leaves a gap after byte ", end));
    end = t.end;
    before = &t;
  }
  if (end != data_bytes) {
    throw DataError(str_cat(file_name, ": ", data_bytes - end, " bytes follow the last tensor",
                            before == nullptr ? "" : " " + in_quotes(before->name),
                            "; the file is damaged or not what its header says"));
  }
}

}  // namespace

const SafetensorsEntry* SafetensorsHeader::find(std::string_view name) const {
  const auto it = std::lower_bound(by_name.begin(), by_name.end(), name,
                                   [&](uint32_t i, std::string_view n) { return tensors[i].name < n; });
  if (it == by_name.end() || tensors[*it].name != name) return nullptr;
  return &tensors[*it];
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& file_name) {
  const std::string_view text = header_text(file, file_name);
  SafetensorsHeader header;
  header.data_begin = sizeof(uint64_t) + text.size();
  HeaderReader reader(file_name, header);
  PESC_CHECK(nlohmann::json::sax_parse(text.begin(), text.end(), &reader));
  check_names(header, file_name);
  // An empty tensor sorts before a full one at the same offset, so that the cover is seen whole.
  std::vector<SafetensorsEntry>& tensors = header.tensors;
  const auto before = [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  };
  if (!std::is_sorted(tensors.begin(), tensors.end(), before)) {
    std::stable_sort(tensors.begin(), tensors.end(), before);
    check_names(header, file_name);  // the indices have moved
  }
  check_cover(header, file.size() - header.data_begin, file_name);
  return header;
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(path), header_(parse_safetensors(file_.bytes(), path)) {}

const SafetensorsEntry& SafetensorsFile::at(std::string_view name) const {
  const SafetensorsEntry* entry = header_.find(name);
  if (entry == nullptr) throw DataError(str_cat(path(), ": there is no tensor ", in_quotes(name)));
  return *entry;
}

std::span<const std::byte> SafetensorsFile::bytes(const SafetensorsEntry& entry) const {
  return file_.bytes().subspan(header_.data_begin + entry.begin, entry.bytes());
}

}  // namespace pesc
