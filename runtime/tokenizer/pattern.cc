#include "runtime/tokenizer/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <ctime>

#include "ops/core/check.h"
#include "runtime/tokenizer/pattern_rewrite.h"
#include "runtime/tokenizer/unicode.h"

namespace pesc {
namespace {

// One search ends in an error after so many steps back: one for each character of a run of spaces is usual, more
// than a few are not. Of all searches in a text together, processor time counts.
constexpr size_t kMostSteps = 5'000'000;
constexpr size_t kStepsPerByte = 8;
constexpr uint32_t kMostHeapKib = 64 << 10;
constexpr size_t kStackStart = 32 << 10;
constexpr size_t kStackMost = size_t{64} << 20;
constexpr int kSearchesPerLook = 8;
constexpr double kSeconds = 0.5;
constexpr double kSecondsPerMiB = 4;

double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// What a search writes to; one a thread, for all patterns.
struct MatchSpace {
  MatchSpace()
      : data(pcre2_match_data_create(1, nullptr)),
        context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(kStackStart, kStackMost, nullptr)) {
    if (data == nullptr || context == nullptr) throw std::bad_alloc();
    pcre2_set_heap_limit(context, kMostHeapKib);
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchSpace() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchSpace(const MatchSpace&) = delete;
  MatchSpace& operator=(const MatchSpace&) = delete;
  pcre2_match_data* data;
  pcre2_match_context* context;
  pcre2_jit_stack* stack;
};

MatchSpace& match_space() {
  thread_local MatchSpace mine;
  return mine;
}

std::string message_of(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct Pattern::Compiled {
  ~Compiled() { pcre2_code_free(code); }
  std::string text;  // as the file has it
  pcre2_code* code = nullptr;
  bool jit = false;
};

Pattern::Pattern(std::unique_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {}
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;
Pattern::~Pattern() = default;

Pattern Pattern::literal(std::string text) {
  if (text.empty()) throw DataError("an empty string is searched for");
  auto compiled = std::make_unique<Compiled>();
  compiled->text = std::move(text);
  return Pattern(std::move(compiled));
}

Pattern Pattern::regex(const std::string& expression) {
  constexpr size_t kLongest = 64 << 10;
  if (expression.size() > kLongest)
    throw DataError(
        str_cat("a pattern has ", expression.size(), " bytes; at most ", kLongest, " are supported"));
  const std::string rewritten = rewrite_pattern(expression);
  auto compiled = std::make_unique<Compiled>();
  compiled->text = expression;
  int error = 0;
  PCRE2_SIZE place = 0;
  compiled->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(),
                                 PCRE2_UTF | PCRE2_NO_UTF_CHECK, &error, &place, nullptr);
  if (compiled->code == nullptr)
    throw DataError(str_cat("the pattern '", expression, "' is refused by PCRE2: ", message_of(error)));
  compiled->jit = pcre2_jit_compile(compiled->code, PCRE2_JIT_COMPLETE) == 0;
  return Pattern(std::move(compiled));
}

bool Pattern::can_match_nothing() const {
  if (compiled_->code == nullptr) return false;
  uint32_t answer = 0;
  pcre2_pattern_info(compiled_->code, PCRE2_INFO_MATCHEMPTY, &answer);
  return answer != 0;
}

// The time of the day is cheap to look at. When enough of it has passed, the processor time counts from there
// on, so that a process that stands still or waits for its turn is not taken for a slow one.
void Pattern::Matches::check_time() {
  const double now = seconds_of(CLOCK_MONOTONIC_COARSE);
  if (searches_ == 1) started_ = now;
  if (now - started_ < kSeconds) return;
  const double used = seconds_of(CLOCK_THREAD_CPUTIME_ID);
  if (processor_started_ == 0) processor_started_ = used;
  if (used - processor_started_ > kSeconds + kSecondsPerMiB * static_cast<double>(text_.size()) / (1 << 20)) {
    throw DataError(str_cat("the pattern '", pattern_.compiled_->text, "' takes too long for a text of ",
                            text_.size(), " bytes: it has come to byte ", from_,
                            " only; it steps back without end"));
  }
}

bool Pattern::Matches::search(TextRange& match) {
  const Compiled& pattern = *pattern_.compiled_;
  if (pattern.code == nullptr) {
    const size_t found = text_.find(pattern.text, from_);
    if (found == std::string_view::npos) return false;
    match = {found, found + pattern.text.size()};
    return true;
  }
  if (searches_++ % kSearchesPerLook == 0) check_time();
  const MatchSpace& space = match_space();
  pcre2_set_match_limit(space.context, static_cast<uint32_t>(std::min<size_t>(
                                           kMostSteps + kStepsPerByte * text_.size(), UINT32_MAX)));
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text_.data());
  const int result =
      pattern.jit ? pcre2_jit_match(pattern.code, subject, text_.size(), from_, 0, space.data, space.context)
                  : pcre2_match(pattern.code, subject, text_.size(), from_, PCRE2_NO_UTF_CHECK, space.data,
                                space.context);
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result < 0) {
    throw DataError(str_cat("the pattern '", pattern.text, "' cannot be searched for from byte ", from_,
                            " of a text of ", text_.size(), " bytes: ", message_of(result)));
  }
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(space.data);
  match = {range[0], range[1]};
  return true;
}

bool Pattern::Matches::next(TextRange& match) {
  while (from_ <= text_.size()) {
    if (!search(match)) {
      from_ = text_.size() + 1;
      return false;
    }
    if (match.begin != match.end || last_end_ != match.end) {
      from_ = match.end;
      last_end_ = match.end;
      return true;
    }
    // Nothing, right behind the last match: look again behind the next character.
    if (from_ < text_.size()) {
      (void)unicode::next_char(text_, from_);
    } else {
      ++from_;
    }
  }
  return false;
}

}  // namespace pesc
