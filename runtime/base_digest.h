// What identifies the frozen base of a run, which no checkpoint holds, and its tokenizer.
#pragma once

#include <string>

#include "runtime/job.h"

namespace pesc {

struct BaseDigest {
  std::string value;          // which a checkpoint keeps
  std::string of_raw_config;  // which one of an older pesc keeps: config.json taken byte by byte
  // The one of the two that a checkpoint with digest `saved` is compared with.
  [[nodiscard]] const std::string& to_compare(const std::string& saved) const;
};
// Of the base's files (HfFolder::content_digest; "random" where the weights are) and of the tokenizer, the
// same on every rank. Collective.
[[nodiscard]] BaseDigest base_digest(Job& job);

// The two parts of a digest. A digest may lack the tokenizer's, which is empty then.
[[nodiscard]] std::string weights_part(const std::string& digest);
[[nodiscard]] std::string tokenizer_part(const std::string& digest);

}  // namespace pesc
