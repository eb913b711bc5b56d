#pragma once
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/stream_decoder.h"
