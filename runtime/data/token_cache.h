// A folder of tokenised rows (data.cache_dir): the rows of a file are tokenised once, by one process, and every
// later start reads them from a file there.
//
// A file is named by its key (token_cache_key.h): the content of the source, and all that its tokens depend on.
// It is written under another name, synced and renamed, so that it is there whole or not at all; a process that
// is killed leaves a file with ".tmp." in its name, which the next writer removes. One process at a time writes
// in a folder (cache_lock.h). Others wait for it, and then read what it has committed; where it has failed
// over the rows that they want too, they fail with it. A file that is cut off or damaged is put aside (its name
// gets ".damaged") and made anew, when it is opened or, for a row that is found so later, at the next start.
// Nothing else in the folder is touched, and whatever is removed from it while no run reads it is made anew.
#pragma once

#include <memory>

#include "runtime/data/dataset_options.h"
#include "runtime/data/row_encoder.h"
#include "runtime/data/tokenized_rows.h"

namespace pesc {

// The rows of a file, from the cache or tokenised into it. REQUIRES: options.cache is there, and
// options.on_row is not. Throws as tokenize_file(), and IoError when the folder or a file in it cannot be made,
// read or written, or the process that writes there has shown no progress for so long.
[[nodiscard]] std::unique_ptr<TokenizedRows> cached_rows(const DatasetFile& file, const RowEncoder& encoder,
                                                         const DatasetOptions& options);

}  // namespace pesc
