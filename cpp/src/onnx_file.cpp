// The fields' numbers are those of onnx.proto. What is refused is what ztdeploy/core/onnx_file.py refuses.
#include "onnx_file.h"

#include "files.h"
#include "text.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>
#include <system_error>

namespace ztdeploy {
namespace {

constexpr std::uint64_t limit = std::uint64_t { 64 } << 20, most_values = std::uint64_t { 1 } << 28;
constexpr int most_fields = 2'000'000;
constexpr std::size_t few_bytes = 512; // longer constants are no shapes, and their numbers are not read

struct Part {
    const char* begin = nullptr;
    const char* end = nullptr;

    std::size_t size() const { return static_cast<std::size_t>(end - begin); }
    std::string text() const { return { begin, end }; }
};

struct Field {
    std::uint64_t number = 0;
    bool is_integer = false;
    std::uint64_t integer = 0;
    Part part;

    Part message() const
    {
        if (is_integer) {
            throw std::runtime_error("it is no ONNX file");
        }
        return part;
    }
};

std::uint64_t varint(Part& left)
{
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (left.begin == left.end) {
            throw std::runtime_error("it is cut off");
        }
        const auto byte = static_cast<std::uint8_t>(*left.begin++);
        value |= std::uint64_t { byte & 0x7fU } << shift;
        if (byte < 0x80) {
            return value;
        }
    }
    throw std::runtime_error("it is no ONNX file");
}

class Reader {
public:
    explicit Reader(const std::string& content)
    {
        bool found = false;
        for (const Field& field : fields({ content.data(), content.data() + content.size() })) {
            if (field.number == 25) {
                throw std::runtime_error("it has functions of its own");
            }
            if (field.number == 7) {
                found = true;
                graph(field.message());
            }
        }
        if (!found) {
            throw std::runtime_error("it holds no graph");
        }
        for (const auto& [operator_name, inputs] : sized_) {
            check_sizes(operator_name, inputs);
        }
    }

    std::map<std::string, std::uint64_t> reads;
    std::map<std::string, Constant> constants;

private:
    std::vector<Field> fields(Part part)
    {
        std::vector<Field> found;
        while (part.begin != part.end) {
            if (++fields_ > most_fields) {
                throw std::runtime_error("it has more than " + std::to_string(most_fields) + " fields");
            }
            const std::uint64_t key = varint(part), wire = key & 7;
            Field field;
            field.number = key >> 3;
            field.is_integer = wire == 0;
            if (field.is_integer) {
                field.integer = varint(part);
            } else {
                if (wire != 1 && wire != 2 && wire != 5) {
                    throw std::runtime_error("it is no ONNX file");
                }
                const std::uint64_t size = wire == 2 ? varint(part) : wire == 1 ? 8 : 4;
                if (size > part.size()) {
                    throw std::runtime_error("it is cut off");
                }
                field.part = { part.begin, part.begin + size };
                part.begin += size;
            }
            found.push_back(field);
        }
        return found;
    }

    void graph(Part part)
    {
        for (const Field& field : fields(part)) {
            if (field.number == 1) {
                node(field.message());
            } else if (field.number == 5) {
                tensor(field.message(), true);
            } else if (field.number == 15) {
                throw std::runtime_error("it has sparse tensors");
            }
        }
    }

    void node(Part part)
    {
        std::vector<std::string> inputs, outputs;
        std::vector<double> values;
        std::string operator_name;
        for (const Field& field : fields(part)) {
            if (field.number == 1) {
                inputs.push_back(field.message().text());
            } else if (field.number == 2) {
                outputs.push_back(field.message().text());
            } else if (field.number == 4) {
                operator_name = field.message().text();
            } else if (field.number == 5) {
                const std::vector<double> more = attribute(field.message());
                values.insert(values.end(), more.begin(), more.end());
            }
        }
        static const std::set<std::string> sizing
            = { "ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample" };
        if (sizing.count(operator_name) == 1) {
            sized_.emplace_back(operator_name, inputs);
        }
        if (operator_name == "Constant" && !outputs.empty()) {
            numbers_[outputs[0]] = values;
        }
    }

    // Its numbers; none if it holds many.
    std::vector<double> attribute(Part part)
    {
        std::vector<double> values;
        for (const Field& field : fields(part)) {
            std::vector<double> more;
            switch (field.number) {
            case 6:
            case 11:
                throw std::runtime_error("it has a graph inside a node, such as a loop");
            case 22:
            case 23:
                throw std::runtime_error("it has sparse tensors");
            case 5:
            case 10:
                more = tensor(field.message(), false);
                break;
            case 2:
            case 7:
                more = unpacked<float>(field.message());
                break;
            case 3:
            case 8:
                more = integers(field);
                break;
            default:
                break;
            }
            values.insert(values.end(), more.begin(), more.end());
        }
        return values;
    }

    // Record what a tensor reads. Returns its numbers; none if it has many.
    std::vector<double> tensor(Part part, bool is_constant)
    {
        Constant constant;
        std::string name;
        std::map<std::string, std::string> outside;
        std::vector<double> values;
        const std::vector<Field> found = fields(part);
        for (const Field& field : found) {
            constant.type = field.number == 2 && field.is_integer ? static_cast<std::int64_t>(field.integer) : constant.type;
        }
        for (const Field& field : found) {
            std::vector<double> more;
            if (field.number == 1) {
                if (!field.is_integer && field.part.size() > few_bytes) {
                    throw std::runtime_error("it has a tensor of too many dimensions");
                }
                for (const double length : integers(field)) {
                    constant.shape.push_back(static_cast<std::int64_t>(length));
                }
            } else if (field.number == 4) {
                more = unpacked<float>(field.message());
            } else if (field.number == 5 || field.number == 7) {
                more = integers(field);
            } else if (field.number == 8) {
                name = field.message().text();
            } else if (field.number == 9) {
                more = raw(field.message(), constant.type);
            } else if (field.number == 10) {
                more = unpacked<double>(field.message());
            } else if (field.number == 13) {
                outside.insert(entry(field.message()));
            }
            values.insert(values.end(), more.begin(), more.end());
        }
        const std::uint64_t most = outside.empty() ? 4 * part.size() : most_values; // a value has 2 bits or more
        const std::uint64_t count = count_of(constant.shape, most, name);
        if (!outside.empty()) {
            constant.outside = reads_of(name, count, outside);
        }
        if (is_constant) {
            numbers_[name] = values;
            constants[name] = constant;
        }
        return values;
    }

    static std::uint64_t count_of(const std::vector<std::int64_t>& shape, std::uint64_t most, const std::string& name)
    {
        double count = 1;
        bool negative = false;
        for (const std::int64_t length : shape) {
            negative = negative || length < 0;
            count *= static_cast<double>(length);
        }
        if (negative || count > static_cast<double>(most)) {
            throw std::runtime_error("the tensor '" + name.substr(0, 80) + "' is larger than what it is made of");
        }
        return static_cast<std::uint64_t>(count);
    }

    Outside reads_of(const std::string& name, std::uint64_t count, std::map<std::string, std::string>& outside)
    {
        const auto number = [&](const char* key) -> std::uint64_t {
            const std::string text = outside[key];
            if (text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) {
                throw std::runtime_error("the tensor '" + name.substr(0, 80) + "' begins before its file");
            }
            return text.empty() ? 0 : std::stoull(text);
        };
        const Outside place { outside["location"], number("offset") };
        std::uint64_t& least = reads[place.file];
        least = std::max(least, place.begin + std::max(number("length"), count / 4));
        return place;
    }

    std::pair<std::string, std::string> entry(Part part)
    {
        std::pair<std::string, std::string> found;
        for (const Field& field : fields(part)) {
            (field.number == 1 ? found.first : found.second) = field.message().text();
        }
        return found;
    }

    void check_sizes(const std::string& operator_name, const std::vector<std::string>& inputs) const
    {
        static const std::map<std::string, std::vector<std::size_t>> sizing
            = { { "ConstantOfShape", { 0 } }, { "Range", { 0, 1, 2 } }, { "Resize", { 2, 3 } } };
        const auto found = sizing.find(operator_name);
        std::vector<std::vector<double>> values;
        for (const std::size_t place : found == sizing.end() ? std::vector<std::size_t> { 1 } : found->second) {
            if (place < inputs.size()) {
                const auto held = numbers_.find(inputs[place]);
                values.push_back(held == numbers_.end() ? std::vector<double>() : held->second);
            }
        }
        double all = 1, largest = 0;
        for (const std::vector<double>& some : values) {
            for (const double one : some) {
                all *= std::max(1.0, std::fabs(one));
                largest = std::max(largest, std::fabs(one));
            }
        }
        const auto has_any = [](const std::vector<double>& some) { return !some.empty(); };
        if (operator_name == "Range" && values.size() == 3 && std::all_of(values.begin(), values.end(), has_any)) {
            const double step = std::fabs(values[2][0]);
            all = step > 0 ? std::fabs(values[1][0] - values[0][0]) / step : std::numeric_limits<double>::infinity();
        }
        if (!((operator_name == "Pad" ? largest : all) <= static_cast<double>(most_values))) {
            throw std::runtime_error(
                "its operator " + operator_name + " makes a tensor of more than " + std::to_string(most_values) + " values");
        }
    }

    static std::vector<double> integers(const Field& field)
    {
        const auto as_signed = [](std::uint64_t value) { return static_cast<double>(static_cast<std::int64_t>(value)); };
        if (field.is_integer) {
            return { as_signed(field.integer) };
        }
        std::vector<double> found;
        Part left = field.part;
        while (field.part.size() <= few_bytes && left.begin != left.end) {
            found.push_back(as_signed(varint(left)));
        }
        return found;
    }

    template <class Value>
    static std::vector<double> unpacked(Part part)
    {
        std::vector<double> found;
        for (; part.size() >= sizeof(Value) && part.size() <= few_bytes; part.begin += sizeof(Value)) {
            Value value;
            std::memcpy(&value, part.begin, sizeof value);
            found.push_back(static_cast<double>(value));
        }
        return found;
    }

    static std::vector<double> raw(Part part, std::int64_t type)
    {
        switch (type) {
        case 1:
            return unpacked<float>(part);
        case 6:
            return unpacked<std::int32_t>(part);
        case 7:
            return unpacked<std::int64_t>(part);
        case 11:
            return unpacked<double>(part);
        default:
            return {};
        }
    }

    int fields_ = 0;
    std::map<std::string, std::vector<double>> numbers_;
    std::vector<std::pair<std::string, std::vector<std::string>>> sized_;
};

Reader reader_of(const std::filesystem::path& path)
{
    try {
        return Reader(read_regular(path, limit));
    } catch (const std::system_error&) {
        throw;
    } catch (const std::exception& error) {
        throw Error(bundle_error, "'" + path.string() + "' cannot be run: " + error.what(), "a plain graph as built",
            "copy or build the bundle again");
    }
}

} // namespace

std::map<std::string, std::uint64_t> read_graph(const std::filesystem::path& path)
{
    return reader_of(path).reads;
}

std::map<std::string, Constant> constants_of(const std::filesystem::path& path)
{
    return reader_of(path).constants;
}

} // namespace ztdeploy
