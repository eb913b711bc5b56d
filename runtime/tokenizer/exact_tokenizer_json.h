// tokenizer.json of a sentencepiece model, for programs that read no tokenizer.model, or read it otherwise.
//
// Of a BPE model whose text is not rewritten and whose unknown characters become bytes (Llama 2, Mistral, Yi) one can say the
// same with the parts of PyPI's tokenizers. Two things are done otherwise than by the converter of transformers, which is not
// exact there:
//
//   space mark   The text, where it begins with no control token, gets a mark before it, also where it begins with a space. A
//                Metaspace puts it there only where there is none: so spaces become marks first, then a Metaspace of the
//                space puts a space there, and a second one makes a mark of it.
//   merges       A piece may be made of several pairs, which have one score; sentencepiece takes the leftmost pair, the
//                library the pair of the lowest rank. They differ where two pairs overlap, p = a + b = b + c. Then (a, b) has
//                the lower rank, since it is the one on the left. Runs of one character of several lengths may have one score
//                (the spaces of Mistral): the leftmost grows first, so that the pair of the longest left part has the lowest rank.
#pragma once

#include <string>
#include <string_view>

#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

// `model` is the content of tokenizer.model, and `tokenizer` what was opened from it; `path` is for messages. The result gives
// the ids of `tokenizer` for several thousand texts made of its pieces, spaces, other characters and control tokens. Throws
// DataError saying why there is no such file.
[[nodiscard]] std::string exact_tokenizer_json(std::string_view model, const Tokenizer& tokenizer,
                                               const std::string& path);

}  // namespace pesc
