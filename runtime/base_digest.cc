#include "runtime/base_digest.h"

#include <memory>
#include <string_view>
#include <vector>

#include "ops/core/check.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr std::string_view kTokenizerPart = "+tokenizer:";

}  // namespace

std::string weights_part(const std::string& digest) {
  return digest.substr(0, digest.find(kTokenizerPart));
}

std::string tokenizer_part(const std::string& digest) {
  const size_t at = digest.find(kTokenizerPart);
  return at == std::string::npos ? "" : digest.substr(at + kTokenizerPart.size());
}

const std::string& BaseDigest::to_compare(const std::string& saved) const {
  return weights_part(saved) == weights_part(of_raw_config) ? of_raw_config : value;
}

void check_adapter_base(const Job& job, const BaseDigest& base) {
  if (job.adapter == nullptr) return;
  const std::string trained_on = job.adapter->base_digest();
  if (trained_on.empty() || trained_on == weights_part(base.value)) return;
  throw UsageError(str_cat(
      job.config.places.prefix("model.adapter"), "model.adapter '", job.adapter->folder(),
      "' was trained on another base than model.path '", job.config.model.path, "' (digest ",
      printable(trained_on), " -> ", weights_part(base.value),
      job.adapter->base().empty() ? "" : "; it names as its base ",
      job.adapter->base().empty() ? "" : in_quotes(job.adapter->base()), "); set model.path to that base"));
}

namespace {

BaseDigest take_base_digest(Job& job) {
  Communicator& world = job.ranks->world();
  // One more than the folder has: config.json as an older pesc took it.
  const size_t parts = job.base == nullptr ? 0 : job.base->digest_parts() + 1;
  const auto ranks = static_cast<size_t>(world.size());
  std::string mine;  // of parts rank, rank + ranks, ...
  std::string tokenizer;
  run_collectively(world, [&] {
    for (size_t part = static_cast<size_t>(world.rank()); part < parts; part += ranks) {
      if (job.still_wanted) job.still_wanted();
      mine += part + 1 == parts ? job.base->raw_config_digest() : job.base->part_digest(part);
    }
    tokenizer = tokenizer_digest(job.config.model.tokenizer, job.config.model.links);
  });
  const std::vector<std::string> all = world.host_all_gather(mine);
  std::vector<std::string> digests;
  for (size_t part = 0; part < parts; ++part) {
    const std::string& of_rank = all[part % ranks];
    const size_t length = HfFolder::kDigestLength;
    digests.push_back(of_rank.substr(part / ranks * length, length));
  }
  const std::string end = str_cat(kTokenizerPart, tokenizer);
  if (parts == 0) return {"random" + end, "random" + end};
  const std::string raw_config = digests.back();
  digests.pop_back();
  BaseDigest both;
  both.value = HfFolder::content_digest(digests) + end;
  digests.front() = raw_config;
  both.of_raw_config = HfFolder::content_digest(digests) + end;
  return both;
}

}  // namespace

BaseDigest base_digest(Job& job) {
  if (job.digest == nullptr) job.digest = std::make_shared<const BaseDigest>(take_base_digest(job));
  return *job.digest;
}

}  // namespace pesc
