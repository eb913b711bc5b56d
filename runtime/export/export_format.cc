#include "runtime/export/export_format.h"

#include <algorithm>
#include <cctype>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

std::string in_upper_case(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

}  // namespace

const char* format_name(ExportFormat format) {
  switch (format) {
    case ExportFormat::kHf:
      return "HF";
    case ExportFormat::kPeft:
      return "PEFT";
    case ExportFormat::kCamelidae:
      return "CAMELIDAE";
  }
  throw InternalError("format_name: no such format");
}

ExportFormat export_format(const std::string& name) {
  const std::string upper = in_upper_case(name);
  for (const ExportFormat format : {ExportFormat::kHf, ExportFormat::kPeft, ExportFormat::kCamelidae})
    if (upper == format_name(format)) return format;
  throw UsageError(
      str_cat("--format ", in_quotes(name),
              ": give HF (a folder that transformers loads), PEFT (an adapter), or CAMELIDAE (the form "
              "that the authors of PESC publish)"));
}

const char* merge_into_name(MergeInto into) {
  switch (into) {
    case MergeInto::kOriginal:
      return "ORIGINAL";
    case MergeInto::kDequantised:
      return "DEQUANTISED";
  }
  throw InternalError("merge_into_name: no such value");
}

MergeInto merge_into(const std::string& name) {
  const std::string upper = in_upper_case(name);
  for (const MergeInto into : {MergeInto::kOriginal, MergeInto::kDequantised})
    if (upper == merge_into_name(into)) return into;
  throw UsageError(str_cat("--merge_into ", in_quotes(name), ": give ", kMergeIntoChoices));
}

}  // namespace pesc
