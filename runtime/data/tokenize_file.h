// The rows of a file, read, parsed and tokenised in several threads, and put into a sink in their order.
#pragma once

#include "runtime/data/dataset_options.h"
#include "runtime/data/row_encoder.h"
#include "runtime/data/tokenized_rows.h"

namespace pesc {

// The sink gets the same, and the report and what is thrown are the same, whatever number of threads. Throws
// DataError for bad rows (as the options say) and bad files, IoError, and what the sink throws.
void tokenize_file(const DatasetFile& file, const RowEncoder& encoder, const DatasetOptions& options,
                   RowSink& sink);

}  // namespace pesc
