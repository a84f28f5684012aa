#include "arrays.h"

#include "files.h"
#include "text.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

namespace ztdeploy {
namespace {

constexpr std::uint64_t limit = std::uint64_t { 1 } << 30;
constexpr std::size_t most_values = std::size_t { 1 } << 28;

// A little-endian number of so many bytes.
std::size_t number(const std::string& from, std::size_t at, std::size_t bytes)
{
    if (at > from.size() || bytes > from.size() - at) {
        throw std::runtime_error("it is cut off");
    }
    std::size_t value = 0;
    for (std::size_t byte = 0; byte < bytes; ++byte) {
        value |= std::size_t { static_cast<std::uint8_t>(from[at + byte]) } << 8 * byte;
    }
    return value;
}

std::string part(const std::string& from, std::size_t at, std::size_t bytes)
{
    if (at > from.size() || bytes > from.size() - at) {
        throw std::runtime_error("it is cut off");
    }
    return from.substr(at, bytes);
}

std::string between(const std::string& header, const std::string& before, char end)
{
    const std::size_t begin = header.find(before);
    const std::size_t stop = header.find(end, begin == std::string::npos ? begin : begin + before.size());
    if (stop == std::string::npos) {
        throw std::runtime_error("its header is damaged");
    }
    return header.substr(begin + before.size(), stop - begin - before.size());
}

Array array_of(const std::string& raw)
{
    const std::size_t width = number(raw, 6, 1) == 1 ? 2 : 4, length = number(raw, 8, width), begin = 8 + width + length;
    const std::string header = part(raw, 8 + width, length);
    if (raw.compare(0, 6, "\x93NUMPY") != 0 || header.find("'fortran_order': False") == std::string::npos) {
        throw std::runtime_error("it holds no array");
    }
    Array array { between(header, "'descr': '", '\''), {}, raw.substr(begin) };
    std::size_t bytes = array.type.size() == 3 ? number(array.type, 2, 1) - '0' : 0;
    const std::string shape = between(header, "'shape': (", ')');
    for (std::size_t at = 0; at < shape.size();) {
        const std::size_t end = std::min(shape.find(',', at), shape.size());
        const std::string digits = shape.substr(at, end - at);
        const std::size_t first = digits.find_first_of("0123456789");
        if (first != std::string::npos) {
            if (digits.size() - first > 9 || digits.find_first_not_of("0123456789", first) != std::string::npos) {
                throw std::runtime_error("its shape is none");
            }
            array.shape.push_back(std::stoul(digits.substr(first)));
            bytes *= array.shape.back();
        }
        if (bytes > 8 * most_values) {
            throw std::runtime_error("it is too large");
        }
        at = end + 1;
    }
    if (bytes != array.bytes.size()) {
        throw std::runtime_error("it holds more or fewer numbers than its shape says");
    }
    return array;
}

// The members of a ZIP file, by its directory at the end.
std::map<std::string, Array> members_of(const std::string& content)
{
    const std::size_t last = content.rfind("PK\5\6");
    if (last == std::string::npos) {
        throw std::runtime_error("it is cut off");
    }
    const std::size_t count = number(content, last + 10, 2);
    std::size_t at = number(content, last + 16, 4);
    std::map<std::string, Array> arrays;
    for (std::size_t member = 0; member < count; ++member) {
        const std::size_t names = number(content, at + 28, 2), file = number(content, at + 42, 4);
        const std::size_t data = file + 30 + number(content, file + 26, 2) + number(content, file + 28, 2);
        if (number(content, at + 10, 2) != 0) {
            throw std::runtime_error("it is compressed");
        }
        const std::string name = part(content, at + 46, names);
        arrays[name.substr(0, name.rfind(".npy"))] = array_of(part(content, data, number(content, at + 24, 4)));
        at += 46 + names + number(content, at + 30, 2) + number(content, at + 32, 2);
    }
    return arrays;
}

} // namespace

std::map<std::string, Array> read_arrays(const std::filesystem::path& path)
{
    try {
        const std::string content = read_regular(path, limit);
        return content.compare(0, 2, "PK") == 0 ? members_of(content) : std::map<std::string, Array> { { "", array_of(content) } };
    } catch (const std::exception& error) {
        throw Error(bundle_error, "'" + path.string() + "' cannot be read (" + error.what() + ")", "arrays of numbers as built",
            "build the bundle again");
    }
}

} // namespace ztdeploy
