// Engines of ONNX Runtime, opened with the options of ztdeploy/target/backends/onnxruntime.py.
#include "engine.h"
#include "files.h"
#include "machine.h"
#include "onnx_file.h"
#include "onnxruntime_table.h"
#include "safetensors.h"
#include "text.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

namespace ztdeploy {
namespace {

namespace fs = std::filesystem;

const OrtApi& api()
{
    static const OrtApi* const found = OrtGetApiBase()->GetApi(interface_version);
    if (found == nullptr) {
        throw Error(environment_error, "ONNX Runtime " + runtime_version() + " at run time",
            "version 1." + std::to_string(interface_version) + " or newer", "install the version that the bundle was built with");
    }
    return *found;
}

// A failed call, in the words of ONNX Runtime.
struct Refusal : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void check(OrtStatus* status)
{
    if (status != nullptr) {
        const std::string message = first_line(api().GetErrorMessage(status));
        api().ReleaseStatus(status);
        throw Refusal(message);
    }
}

// What ONNX Runtime made and we release.
template <class Thing>
using Owned = std::unique_ptr<Thing, void (*)(Thing*)>;

template <class Thing, class Make>
Owned<Thing> made(void (*release)(Thing*), const Make& make)
{
    Thing* thing = nullptr;
    check(make(&thing));
    return Owned<Thing>(thing, release);
}

OrtEnv* environment()
{
    static const Owned<OrtEnv> shared = made<OrtEnv>(api().ReleaseEnv, [](OrtEnv** into) {
        OrtStatus* status = api().CreateEnv(only_fatal, "ztdeploy", into);
        return status != nullptr ? status : api().DisableTelemetryEvents(*into);
    });
    return shared.get();
}

void set(OrtSessionOptions* options, const char* key, const char* value)
{
    check(api().AddSessionConfigEntry(options, key, value));
}

Owned<OrtSessionOptions> session_options(int threads, Memory memory)
{
    auto options = made<OrtSessionOptions>(api().ReleaseSessionOptions, api().CreateSessionOptions);
    check(api().SetIntraOpNumThreads(options.get(), threads));
    check(api().SetInterOpNumThreads(options.get(), 1));
    check(api().DisableMemPattern(options.get())); // a block for all values of a call: megabytes, and no faster
    check(api().SetSessionLogSeverityLevel(options.get(), only_fatal)); // errors are thrown
    check(api().SetSessionGraphOptimizationLevel(options.get(), optimise_all));
    set(options.get(), "optimization.disable_specified_optimizers", "SkipLayerNormFusion"); // slower than what it replaces
    if (processor().loses_sums) {
        set(options.get(), "session.x64quantprecision", "1"); // exact products with 8-bit weights
    }
    if (memory == Memory::shared) {
        set(options.get(), "session.disable_prepacking", "1");
    }
    return options;
}

Type type_of(ElementType type)
{
    switch (type) {
    case ElementType::float32:
        return Type::float32;
    case ElementType::uint8:
        return Type::uint8;
    case ElementType::int32:
        return Type::int32;
    default:
        return Type::other;
    }
}

ElementType type_of(Type type)
{
    return type == Type::uint8 ? ElementType::uint8 : ElementType::float32;
}

TensorFacts facts_of(const OrtTensorInfo* info, std::string name)
{
    TensorFacts facts;
    facts.name = std::move(name);
    ElementType type = ElementType::undefined;
    check(api().GetTensorElementType(info, &type));
    facts.type = type_of(type);
    std::size_t rank = 0;
    check(api().GetDimensionsCount(info, &rank));
    facts.shape.resize(rank);
    check(api().GetDimensions(info, facts.shape.data(), rank));
    return facts;
}

const OrtMemoryInfo* cpu_memory()
{
    static const Owned<OrtMemoryInfo> shared = made<OrtMemoryInfo>(api().ReleaseMemoryInfo,
        [](OrtMemoryInfo** into) { return api().CreateCpuMemoryInfo(arena_allocator, default_memory, into); });
    return shared.get();
}

Owned<OrtValue> tensor_over(
    const void* data, std::size_t bytes, const std::vector<std::int64_t>& shape, ElementType type)
{
    return made<OrtValue>(api().ReleaseValue, [&](OrtValue** into) { // it is only read from
        return api().CreateTensorWithDataAsOrtValue(
            cpu_memory(), const_cast<void*>(data), bytes, shape.data(), shape.size(), type, into);
    });
}

// One mapping of the weights file, and values over its tensors that sessions read in place.
class SharedWeights {
public:
    SharedWeights(const StoredEngine& stored, OrtSessionOptions* options)
        : file_(stored.weights)
    {
        const std::map<std::string, Constant> constants = constants_of(stored.file);
        for (const auto& [name, tensor] : tensors_of(file_, stored.weights)) {
            const auto found = constants.find(name);
            if (found == constants.end() || !lies_there(stored, found->second, tensor)) {
                continue; // its own: a runtime keeps the name of a tensor that it transposes
            }
            if (found->second.type != tensor.type || found->second.shape != tensor.shape) {
                throw Error(bundle_error, "'" + stored.weights.string() + "' has '" + name + "' of another type or shape",
                    "what '" + stored.file.filename().string() + "' says", "copy or build the bundle again");
            }
            values_.push_back(tensor_over(file_.data() + tensor.begin, tensor.size, tensor.shape,
                static_cast<ElementType>(tensor.type)));
            check(api().AddInitializer(options, name.c_str(), values_.back().get()));
        }
    }

private:
    bool lies_there(const StoredEngine& stored, const Constant& constant, const StoredTensor& tensor) const
    {
        const Outside& place = constant.outside;
        if (place.file == stored.weights.filename()) {
            return true;
        }
        const MappedFile other(stored.file.parent_path() / (place.file.empty() ? stored.file.filename().string() : place.file));
        return place.begin <= other.size() && tensor.size <= other.size() - place.begin
            && std::memcmp(other.data() + place.begin, file_.data() + tensor.begin, tensor.size) == 0;
    }

    MappedFile file_;
    std::vector<Owned<OrtValue>> values_;
};

// ONNX Runtime follows no link out of a graph's folder, and hubs' clients make a bundle of links: it is given these
// files' bytes, which were held against the manifest before.
std::vector<MappedFile> lend_linked(const fs::path& model, const fs::path& weights, OrtSessionOptions* options)
{
    const fs::path home = fs::canonical(model).parent_path();
    std::vector<MappedFile> lent;
    std::vector<std::string> names;
    for (const fs::path& file : { weights, fs::path(model).replace_extension(".weights") }) {
        const fs::path real = fs::is_regular_file(file) ? fs::canonical(file) : home / "";
        const auto [end, rest] = std::mismatch(home.begin(), home.end(), real.begin(), real.end());
        if (end != home.end()) {
            lent.emplace_back(file);
            names.push_back(file.filename().string());
        }
    }
    std::vector<const char*> keys;
    std::vector<char*> contents;
    std::vector<std::size_t> sizes;
    for (std::size_t at = 0; at < lent.size(); ++at) {
        keys.push_back(names[at].c_str());
        contents.push_back(const_cast<char*>(lent[at].data())); // it is only read from
        sizes.push_back(lent[at].size());
    }
    if (!lent.empty()) {
        check(api().AddExternalInitializersFromFilesInMemory(options, keys.data(), contents.data(), sizes.data(), keys.size()));
    }
    return lent;
}

class OrtEngine : public OpenEngine {
public:
    explicit OrtEngine(const StoredEngine& stored)
        : session_(nullptr, api().ReleaseSession)
    {
        const auto options = session_options(stored.threads, stored.memory);
        if (stored.memory == Memory::shared) {
            shared_ = std::make_unique<SharedWeights>(stored, options.get());
        }
        const std::vector<MappedFile> lent = lend_linked(stored.file, stored.weights, options.get());
        session_ = made<OrtSession>(api().ReleaseSession, [&](OrtSession** into) {
            return api().CreateSession(environment(), stored.file.c_str(), options.get(), into);
        });
        inputs_ = signature(api().SessionGetInputCount, api().SessionGetInputName, api().SessionGetInputTypeInfo);
        outputs_ = signature(api().SessionGetOutputCount, api().SessionGetOutputName, api().SessionGetOutputTypeInfo);
    }

    std::vector<TensorFacts> inputs() const override { return inputs_; }
    std::vector<TensorFacts> outputs() const override { return outputs_; }

    std::vector<Value> infer(const void* input, const TensorFacts& facts) override
    {
        try {
            return run(input, facts);
        } catch (const Refusal& error) {
            throw Error(bundle_error, "ONNX Runtime " + runtime_version() + " cannot run the engine: " + error.what(),
                "an engine as built, and memory for so many images",
                "give fewer images at a time, or run: ztdeploy verify");
        }
    }

private:
    template <class Count, class Name, class Info>
    std::vector<TensorFacts> signature(Count count, Name name, Info info) const
    {
        OrtAllocator* allocator = nullptr;
        check(api().GetAllocatorWithDefaultOptions(&allocator));
        std::size_t length = 0;
        check(count(session_.get(), &length));
        std::vector<TensorFacts> all;
        for (std::size_t at = 0; at < length; ++at) {
            char* text = nullptr;
            check(name(session_.get(), at, allocator, &text));
            const std::string own = text;
            check(api().AllocatorFree(allocator, text));
            const auto kind = made<OrtTypeInfo>(
                api().ReleaseTypeInfo, [&](OrtTypeInfo** into) { return info(session_.get(), at, into); });
            const OrtTensorInfo* tensor = nullptr;
            check(api().CastTypeInfoToTensorInfo(kind.get(), &tensor));
            all.push_back(tensor == nullptr ? TensorFacts { own, Type::other, {} } : facts_of(tensor, own));
        }
        return all;
    }

    std::vector<Value> run(const void* input, const TensorFacts& facts)
    {
        std::size_t bytes = facts.type == Type::uint8 ? 1 : 4;
        for (const std::int64_t length : facts.shape) {
            bytes *= static_cast<std::size_t>(length);
        }
        const auto feed = tensor_over(input, bytes, facts.shape, type_of(facts.type));
        const OrtValue* const feeds[] = { feed.get() };
        const char* const input_names[] = { facts.name.c_str() };
        std::vector<const char*> names;
        for (const TensorFacts& output : outputs_) {
            names.push_back(output.name.c_str());
        }
        std::vector<OrtValue*> found(names.size(), nullptr);
        check(api().Run(session_.get(), nullptr, input_names, feeds, 1, names.data(), names.size(), found.data()));
        std::vector<Owned<OrtValue>> owned;
        for (OrtValue* const one : found) {
            owned.emplace_back(one, api().ReleaseValue);
        }
        std::vector<Value> values;
        for (std::size_t at = 0; at < owned.size(); ++at) {
            values.push_back(value_of(owned[at].get(), outputs_[at].name));
        }
        return values;
    }

    static Value value_of(OrtValue* value, const std::string& name)
    {
        const auto info = made<OrtTensorInfo>(api().ReleaseTensorTypeAndShapeInfo,
            [&](OrtTensorInfo** into) { return api().GetTensorTypeAndShape(value, into); });
        Value found { facts_of(info.get(), name), {} };
        std::size_t count = 0;
        check(api().GetTensorShapeElementCount(info.get(), &count));
        void* data = nullptr;
        check(api().GetTensorMutableData(value, &data));
        if (found.facts.type == Type::float32 || found.facts.type == Type::int32) { // others are refused
            found.bytes.resize(count * 4);
        }
        if (!found.bytes.empty()) {
            std::memcpy(found.bytes.data(), data, found.bytes.size());
        }
        return found;
    }

    std::unique_ptr<SharedWeights> shared_; // the session does not own them
    Owned<OrtSession> session_;
    std::vector<TensorFacts> inputs_, outputs_;
};

} // namespace

const char* const backend = "onnxruntime";

std::string runtime_version()
{
    return OrtGetApiBase()->GetVersionString();
}

std::unique_ptr<OpenEngine> open_engine(const StoredEngine& stored)
{
    try {
        return std::make_unique<OrtEngine>(stored);
    } catch (const Refusal& error) {
        throw Error(bundle_error,
            "ONNX Runtime " + runtime_version() + " refuses '" + stored.file.string() + "': " + error.what(),
            "a graph that it can load", "run 'ztdeploy verify' on the bundle, or build it again");
    }
}

} // namespace ztdeploy
