// Moved: runtime/text/utf8.h.
#pragma once

#include "runtime/text/utf8.h"  // IWYU pragma: export
