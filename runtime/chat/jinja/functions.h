// What a template can call: the global functions, and the methods of values.
#pragma once

#include <span>
#include <string_view>

#include "runtime/chat/jinja/interpreter.h"

namespace pesc::jinja {

// namespace, range, dict, raise_exception, strftime_now; and by name those of Jinja that are refused when
// called.
[[nodiscard]] std::span<const Function> global_functions();

// Whether Python's value has an attribute of that name ("items" of a mapping): such a name is a method and no
// key.
[[nodiscard]] bool has_method(const Value& self, std::string_view name);
// Whether it is one of those that change their object.
[[nodiscard]] bool changes_object(const Value& self, std::string_view name);
// Throws Failure for a method that is not supported, and for those that change their object, as the sandbox
// does.
Value call_method(Interpreter& in, const Value& self, std::string_view name, Arguments& arguments);

}  // namespace pesc::jinja
