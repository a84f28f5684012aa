// Text from outside, made harmless for a terminal, and the errors that carry it.
#pragma once

#include <ztdeploy/ztdeploy.h>

#include <string>

namespace ztdeploy {

enum ExitCode { input_error = 3, bundle_error = 4, parity_error = 5, environment_error = 6 };

// One line without control characters, nothing invisible, nothing that reorders what is read. Such characters become
// blanks, and bytes that are not UTF-8 their number, such as "\xff".
std::string printable(const std::string& text);

// The first line of a library's message, short enough for ours.
std::string first_line(const std::string& message);

// A number as Python's format "g" writes it.
std::string general(double value);

} // namespace ztdeploy
