// What identifies the frozen base of a run, which no checkpoint holds, and its tokenizer.
#pragma once

#include <string>

#include "runtime/job.h"

namespace pesc {

struct BaseDigest {
  std::string value;          // in a checkpoint
  std::string of_raw_config;  // in a checkpoint of an older pesc: of the bytes of config.json as they are
  // The one of the two to compare with the digest `saved` of a checkpoint.
  [[nodiscard]] const std::string& to_compare(const std::string& saved) const;
};
// The digest of the base's files (HfFolder::content_digest; "random" for random weights) and of the
// tokenizer, the same on every rank. Reads all of the base the first time. Collective.
[[nodiscard]] BaseDigest base_digest(Job& job);

// Throws UsageError where the adapter (model.adapter) says that it was trained on another base.
void check_adapter_base(const Job& job, const BaseDigest& base);

// The two parts of a digest. A digest may lack the tokenizer's, which is empty then.
[[nodiscard]] std::string weights_part(const std::string& digest);
[[nodiscard]] std::string tokenizer_part(const std::string& digest);

}  // namespace pesc
