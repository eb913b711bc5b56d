#include "runtime/export/export_format.h"

#include <algorithm>
#include <cctype>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {

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
  std::string upper = name;
  std::ranges::transform(upper, upper.begin(), [](unsigned char c) { return std::toupper(c); });
  for (const ExportFormat format : {ExportFormat::kHf, ExportFormat::kPeft, ExportFormat::kCamelidae})
    if (upper == format_name(format)) return format;
  throw UsageError(
      str_cat("--format ", in_quotes(name),
              ": give HF (a folder that transformers loads), PEFT (an adapter), or CAMELIDAE (the form "
              "that the authors of PESC publish)"));
}

}  // namespace pesc
