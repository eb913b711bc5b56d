#pragma once

namespace pesc {

// Which answers of a conversation are learned: all, or the last one.
enum class TrainOn { kAll, kLast };

}  // namespace pesc
