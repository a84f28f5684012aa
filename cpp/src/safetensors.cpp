#include "safetensors.h"

#include "json.h"
#include "text.h"

#include <cstring>

namespace ztdeploy {
namespace {

struct Kind {
    const char* name;
    std::int64_t type; // of ONNX
    std::size_t bytes;
};

constexpr Kind kinds[] = { { "F32", 1, 4 }, { "F16", 10, 2 }, { "I64", 7, 8 }, { "I32", 6, 4 }, { "I8", 3, 1 },
    { "U8", 2, 1 }, { "BOOL", 9, 1 }, { "BF16", 16, 2 } };

StoredTensor tensor_of(const Node& node, std::size_t begin, std::size_t end)
{
    const Kind& kind = kinds[node.at("dtype").one_of({ "F32", "F16", "I64", "I32", "I8", "U8", "BOOL", "BF16" })];
    StoredTensor tensor;
    tensor.type = kind.type;
    const auto most = static_cast<std::int64_t>(end - begin);
    std::size_t bytes = kind.bytes;
    for (const Node& length : node.at("shape").list()) {
        tensor.shape.push_back(length.whole(0, most));
        bytes *= static_cast<std::size_t>(tensor.shape.back());
        if (bytes > end - begin) {
            length.refuse("the tensor is larger than the file");
        }
    }
    const std::vector<Node> places = node.at("data_offsets").list();
    if (places.size() != 2) {
        node.refuse("it has no two offsets");
    }
    const auto from = static_cast<std::size_t>(places[0].whole(0, most)), to = static_cast<std::size_t>(places[1].whole(0, most));
    if (from > to || to - from != bytes) {
        node.refuse("its offsets do not fit its shape");
    }
    tensor.begin = begin + from;
    tensor.size = bytes;
    return tensor;
}

} // namespace

std::map<std::string, StoredTensor> tensors_of(const MappedFile& file, const std::filesystem::path& path)
{
    try {
        std::uint64_t length = 0;
        if (file.size() >= sizeof length) {
            std::memcpy(&length, file.data(), sizeof length);
        }
        if (file.size() < sizeof length || length > file.size() - sizeof length || length > std::uint64_t { 100'000'000 }) {
            throw Damage("", "it is cut off");
        }
        const std::size_t begin = sizeof length + static_cast<std::size_t>(length);
        const Document header(std::string(file.data() + sizeof length, static_cast<std::size_t>(length)));
        std::map<std::string, StoredTensor> tensors;
        for (const auto& [name, node] : header.root().table()) {
            if (name != "__metadata__") {
                const StoredTensor tensor = tensor_of(node, begin, file.size());
                if (tensor.type != 16) {
                    tensors[name] = tensor;
                }
            }
        }
        return tensors;
    } catch (const Damage& damage) {
        throw Error(bundle_error, "'" + path.string() + "' is damaged at " + damage.what(), "a safetensors file",
            "copy or build the bundle again");
    }
}

} // namespace ztdeploy
