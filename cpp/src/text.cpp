#include "text.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

namespace ztdeploy {
namespace {

constexpr std::size_t longest = 1000, longest_reason = 200;

// The length of the UTF-8 character at a place and its number; 0 where there is none.
std::size_t decoded(const std::string& text, std::size_t at, std::uint32_t& number)
{
    const auto first = static_cast<std::uint8_t>(text[at]);
    const std::size_t length = first < 0x80 ? 1 : first >> 5 == 6 ? 2 : first >> 4 == 14 ? 3 : first >> 3 == 30 ? 4 : 0;
    if (length == 0 || at + length > text.size()) {
        return 0;
    }
    number = length == 1 ? first : first & (0xffU >> (length + 1));
    for (std::size_t place = 1; place < length; ++place) {
        const auto next = static_cast<std::uint8_t>(text[at + place]);
        if (next >> 6 != 2) {
            return 0;
        }
        number = number << 6 | (next & 0x3fU);
    }
    constexpr std::uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    return number < least[length] || number > 0x10ffff || number >> 11 == 0x1b ? 0 : length;
}

// Controls, and marks that are invisible or change the direction of writing.
bool is_hidden(std::uint32_t number)
{
    return number < 0x20 || (number >= 0x7f && number < 0xa0) || number == 0xad || number == 0x61c
        || (number >= 0x200b && number <= 0x200f) || (number >= 0x2028 && number <= 0x202e)
        || (number >= 0x2060 && number <= 0x206f) || number == 0xfeff || (number >= 0xfff9 && number <= 0xfffb)
        || number >> 8 == 0xe00;
}

} // namespace

std::string printable(const std::string& text)
{
    std::string shown;
    for (std::size_t at = 0; at < text.size();) {
        std::uint32_t number = 0;
        const std::size_t length = decoded(text, at, number);
        if (length == 0) {
            char byte[5];
            std::snprintf(byte, sizeof byte, "\\x%02x", static_cast<std::uint8_t>(text[at]));
            shown += byte;
        } else {
            shown += is_hidden(number) ? std::string(" ") : text.substr(at, length);
        }
        at += length == 0 ? 1 : length;
        if (shown.size() > longest) {
            return shown + " ...";
        }
    }
    return shown;
}

std::string first_line(const std::string& message)
{
    const std::size_t begin = message.find_first_not_of(" \t\r\n");
    if (begin == std::string::npos) {
        return "no reason is given";
    }
    return message.substr(begin, std::min(message.find_first_of("\r\n", begin) - begin, longest_reason));
}

std::string general(double value)
{
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    return text;
}

Error::Error(int exit_code, const std::string& given, const std::string& expected, const std::string& fix)
    : std::runtime_error(printable(given) + "; expected " + printable(expected) + "; " + printable(fix))
    , exit_code_(exit_code)
{
}

} // namespace ztdeploy
