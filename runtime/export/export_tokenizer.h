// The tokenizer of an exported folder: it gives the tokens that the run was trained on, in transformers too.
//
// The classes of transformers for Llama, Qwen2 and others do not obey all of tokenizer.json. tokenizer_config.json therefore names
// PreTrainedTokenizerFast, which takes the file as it is, or a class of pesc that does the same (see transformers_tokenizer.h).
// A template of data.chat_template replaces the folder's own in the exported folder too. The published prompt is no template,
// for its texts are tokenised piece by piece; a run with that prompt exports none.
#pragma once

#include <string>

#include "runtime/export/export_folder.h"
#include "runtime/job.h"

namespace pesc {

// What becomes of a tokenizer without a tokenizer.json: a sentencepiece model, or a tekken.json.
enum class TokenizerJson {
  kRequired,  // a tokenizer.json that does the same; without one (as of tekken.json) there is no export
  kIfExact,   // that, where there is one
  kNone,
};

class ExportTokenizer {
 public:
  // Reads what is needed and checks it; nothing is written. `job` outlives this object. Throws DataError where kRequired
  // cannot be met, saying why.
  ExportTokenizer(const Job& job, TokenizerJson json);
  // Writes the files; `prefix` begins their names.
  void add_to(ExportFolder& folder, const std::string& prefix) const;
  // Why there is no tokenizer.json (kIfExact); empty where there is.
  [[nodiscard]] const std::string& why_no_json() const { return why_no_json_; }
  // Whether the folder has tokenization_pesc.py (transformers_tokenizer.h).
  [[nodiscard]] bool names_class() const { return names_class_; }

 private:
  void make_json(TokenizerJson wanted);
  void look_at_steps();
  void make_template();
  [[nodiscard]] std::string config_text() const;

  const Job& job_;
  std::string folder_;     // the run's
  std::string made_json_;  // of a sentencepiece model; empty: none is made
  std::string why_no_json_;
  std::string made_template_;  // in the place of the folder's own, or of a processor; empty: none
  bool keeps_template_ = true;
  bool loads_json_ = false;                               // the exported folder has a tokenizer.json
  bool adds_prefix_space_ = false, names_class_ = false;  // see transformers_tokenizer.h
};

}  // namespace pesc
