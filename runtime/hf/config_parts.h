// Parts of the reading and writing of config.json (config_json.cc, config_json_write.cc), each in a file of
// its own.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/families.h"
#include "runtime/hf/config_fields.h"

namespace pesc {

// config_family.cc: names in config.json.

// The row of the family that `model_type` and `architectures` name. Throws DataError for a model type or an
// architecture that no row has; the message lists those of all rows.
[[nodiscard]] const FamilyTraits& read_family(const ConfigFields& fields);
// The row whose text model is a part of the model of more than text that the file describes; null where the
// file describes a text model, or nothing known.
[[nodiscard]] const FamilyTraits* find_multimodal(const ConfigFields& fields);
// The first name is the one to write.
[[nodiscard]] std::span<const std::string_view> activation_names(Activation activation);
[[nodiscard]] const char* rope_kind_name(RopeKind kind);
// "default, linear, llama3"
[[nodiscard]] std::string rope_kind_names(std::span<const RopeKind> kinds);

// config_window.cc

// The window that some layer's attention has, or 0. `model` has its layers, and those without RoPE. Throws
// DataError for a key that contradicts another one.
[[nodiscard]] int64_t read_sliding_window(const ConfigFields& fields, const FamilyTraits& traits,
                                          const ModelConfig& model);

// config_rope_layers.cc

// The layers that do not rotate q and k, rising.
[[nodiscard]] std::vector<int64_t> read_layers_without_rope(const ConfigFields& fields,
                                                            const FamilyTraits& traits, int64_t layers);

// config_rope.cc

// `rope_parameters`, `rope_scaling` and `rope_theta`. Each kind of rope has a closed list of keys: one that
// is not on it and might change the result is refused. Throws DataError naming the dictionary and the key.
[[nodiscard]] RopeConfig read_rope(const ConfigFields& fields, const FamilyTraits& traits,
                                   int64_t max_positions);

// config_unsupported.cc

// Refuses keys that change what the model computes and ask for something else than the family's row has or
// than anything here computes. `model` has its family and sizes. Throws DataError naming the key, its value
// and the value that is supported.
void refuse_unsupported(const ConfigFields& fields, const ModelConfig& model);
// Refuses `what`, which `key` asks for, because the row has only `supported`. Every refusal of something that
// a family's row does not have is made by this function.
[[noreturn]] void refuse_beyond_row(const ConfigFields& fields, const char* key, const std::string& what,
                                    const FamilyTraits& traits, const std::string& supported);

}  // namespace pesc
