// Opens the compiled library as TensorRT's registry does, and drives one plugin from the command line:
//
//   driver LIBRARY create  PLUGIN [name=i:3 | name=l:3 | name=f:0.5 | name=d:0.5 | name=s:text | name=n:0 (no values)]...
//   driver LIBRARY shapes  PLUGIN fields... -- [B,H,N,N] [B,N]     output shape from symbols; -1 is not known
//   driver LIBRARY formats PLUGIN fields... -- count of inputs     all types and formats that each position accepts
//   driver LIBRARY again   PLUGIN fields...                        create, serialise, create from that, clone
//   driver LIBRARY run     PLUGIN fields... -- fp16 [..] fp32 [..] shapes change, then enqueue
//
// What the library logs is printed as "log: ...".
#include <NvInferRuntime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <sstream>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

struct Logger : ILogger {
    void log(Severity severity, const char* message) noexcept override
    {
        std::printf("log: %s%s\n", severity == Severity::kERROR ? "" : "(not an error) ", message);
    }
};

struct Finder : ILoggerFinder {
    Logger logger;
    ILogger* findLogger() override { return &logger; }
};

struct Symbol : IDimensionExpr {
    explicit Symbol(std::int64_t its_value) : value(its_value) {}
    bool isConstant() const noexcept override { return value != -1; }
    std::int64_t getConstantValue() const noexcept override { return value; }
    std::int64_t value;
};

// Owns what fields point to.
struct Fields {
    std::deque<std::string> names, texts;
    std::deque<std::int32_t> ints;
    std::deque<std::int64_t> longs;
    std::deque<float> floats;
    std::deque<double> doubles;
    std::vector<PluginField> fields;

    void add(const std::string& argument)
    {
        const auto equals = argument.find('=');
        names.push_back(argument.substr(0, equals));
        const char kind = argument[equals + 1];
        const std::string value = argument.substr(equals + 3);
        const char* name = names.back().c_str();
        if (kind == 'i' || kind == 'n') {
            ints.push_back(std::atoi(value.c_str()));
            fields.emplace_back(name, &ints.back(), PluginFieldType::kINT32, kind == 'i' ? 1 : 0);
        } else if (kind == 'l') {
            longs.push_back(std::atoll(value.c_str()));
            fields.emplace_back(name, &longs.back(), PluginFieldType::kINT64, 1);
        } else if (kind == 'f') {
            floats.push_back(std::strtof(value.c_str(), nullptr));
            fields.emplace_back(name, &floats.back(), PluginFieldType::kFLOAT32, 1);
        } else if (kind == 'd') {
            doubles.push_back(std::atof(value.c_str()));
            fields.emplace_back(name, &doubles.back(), PluginFieldType::kFLOAT64, 1);
        } else {
            texts.push_back(value);
            fields.emplace_back(name, texts.back().data(), PluginFieldType::kCHAR, 1);
        }
    }

    PluginFieldCollection collection() const { return {static_cast<std::int32_t>(fields.size()), fields.data()}; }
};

Dims parse_dims(const std::string& text)
{
    Dims dims{};
    std::stringstream stream(text.substr(1, text.size() - 2));
    for (std::string part; std::getline(stream, part, ',');) {
        dims.d[dims.nbDims++] = std::atoll(part.c_str());
    }
    return dims;
}

IPluginCreatorV3One* find_creator(void* library, const std::string& wanted)
{
    using GetCreators = IPluginCreatorInterface* const* (*)(std::int32_t&);
    const auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    std::int32_t count = 0;
    IPluginCreatorInterface* const* creators = get_creators(count);
    for (std::int32_t index = 0; index < count; ++index) {
        auto* creator = static_cast<IPluginCreatorV3One*>(creators[index]);
        if (wanted == creator->getPluginName()) {
            std::printf("creator: %s %s %s\n", creator->getPluginName(), creator->getPluginVersion(),
                creator->getPluginNamespace());
            return creator;
        }
    }
    return nullptr;
}

template <class Capability>
Capability* as(IPluginV3* plugin, PluginCapabilityType type)
{
    return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

void shapes(IPluginV3* plugin, const std::vector<std::string>& rest)
{
    auto* build = as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
    std::deque<Symbol> symbols;
    std::vector<DimsExprs> inputs;
    for (const std::string& text : rest) {
        const Dims dims = parse_dims(text);
        DimsExprs exprs{dims.nbDims, {}};
        for (int axis = 0; axis < dims.nbDims; ++axis) {
            symbols.emplace_back(dims.d[axis]);
            exprs.d[axis] = &symbols.back();
        }
        inputs.push_back(exprs);
    }
    DimsExprs output{};
    IExprBuilder builder;
    const int code = build->getOutputShapes(
        inputs.data(), static_cast<int>(inputs.size()), nullptr, 0, &output, 1, builder);
    std::printf("code: %d\noutput:", code);
    for (int axis = 0; code == 0 && axis < output.nbDims; ++axis) {
        for (std::size_t input = 0; input < inputs.size(); ++input) { // by identity: extents are passed on, not guessed
            for (int from = 0; from < inputs[input].nbDims; ++from) {
                if (output.d[axis] == inputs[input].d[from]) {
                    std::printf(" %zu.%d", input, from);
                }
            }
        }
    }
    DataType type = DataType::kBOOL;
    DataType given[2] = {DataType::kHALF, DataType::kHALF};
    const int typed = build->getOutputDataTypes(&type, 1, given, 2);
    std::printf("\ntypes: %d %s of %d\n", typed, type == DataType::kFLOAT ? "fp32" : "other", build->getNbOutputs());
}

void formats(IPluginV3* plugin, int count)
{
    auto* build = as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
    const DataType types[] = {DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kINT32, DataType::kBF16};
    const char* names[] = {"fp32", "fp16", "int8", "int32", "bf16"};
    for (int position = 0; position <= count; ++position) {
        std::printf("accepts %d:", position);
        for (int type = 0; type < 5; ++type) {
            for (const TensorFormat format : {TensorFormat::kLINEAR, TensorFormat::kCHW2}) {
                std::vector<DynamicPluginTensorDesc> tensors(count + 1);
                tensors[position].desc.type = types[type];
                tensors[position].desc.format = format;
                if (build->supportsFormatCombination(position, tensors.data(), count, 1)) {
                    std::printf(" %s%s", names[type], format == TensorFormat::kLINEAR ? "" : "(not linear)");
                }
            }
        }
        std::printf("\n");
    }
}

void again(IPluginCreatorV3One* creator, IPluginV3* plugin)
{
    auto* runtime = as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
    IPluginV3* second = creator->createPlugin("again", runtime->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
    IPluginV3* third = second->clone();
    IPluginV3* fourth = as<IPluginV3OneRuntime>(third, PluginCapabilityType::kRUNTIME)->attachToContext(nullptr);
    delete second; // what a clone serialises must be its own
    for (IPluginV3* each : {plugin, third, fourth}) {
        auto* fields = as<IPluginV3OneRuntime>(each, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
        auto* build = as<IPluginV3OneBuild>(each, PluginCapabilityType::kBUILD);
        IPluginV3* copy = creator->createPlugin("copy", fields, TensorRTPhase::kRUNTIME);
        std::printf("settings: %s\n", build->getMetadataString());
        std::printf("same: %d\n", std::strcmp(build->getTimingCacheID(),
            as<IPluginV3OneBuild>(copy, PluginCapabilityType::kBUILD)->getTimingCacheID()) == 0);
        delete copy;
    }
    delete third;
    delete fourth;
}

void run(IPluginV3* plugin, const std::vector<std::string>& rest)
{
    std::vector<PluginTensorDesc> inputs;
    std::vector<DynamicPluginTensorDesc> bounds;
    for (std::size_t index = 0; index + 1 < rest.size(); index += 2) {
        const DataType type = rest[index] == "fp16" ? DataType::kHALF : DataType::kFLOAT;
        inputs.push_back({parse_dims(rest[index + 1]), type, TensorFormat::kLINEAR, 1.0F});
        const Dims& dims = inputs.back().dims;
        bounds.push_back({inputs.back(), dims, dims, dims});
    }
    auto* build = as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
    auto* runtime = as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
    const int count = static_cast<int>(inputs.size());
    PluginTensorDesc output{};
    float memory[4] = {};
    const void* pointers[2] = {&memory[0], &memory[1]};
    void* results[1] = {&memory[2]};
    std::printf("configure: %d\n", build->configurePlugin(bounds.data(), count, nullptr, 1));
    std::printf("workspace: %zu\n", build->getWorkspaceSize(bounds.data(), count, nullptr, 1));
    const int changed = runtime->onShapeChange(inputs.data(), count, &output, 1);
    std::printf("change: %d\n", changed);
    if (changed == 0) {
        const int code = runtime->enqueue(inputs.data(), &output, pointers, results, &memory[3], nullptr);
        std::printf("enqueue: %d\n", code);
    }
}

} // namespace

int main(int count, char** arguments)
{
    void* library = count > 3 ? dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (library == nullptr) {
        std::printf("cannot open: %s\n", count > 3 ? dlerror() : "too few arguments");
        return 2;
    }
    Finder finder;
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    IPluginCreatorV3One* creator = find_creator(library, arguments[3]);
    if (creator == nullptr) {
        std::printf("no such plugin\n");
        return 2;
    }
    Fields fields;
    std::vector<std::string> rest;
    int index = 4;
    for (; index < count && std::strcmp(arguments[index], "--") != 0; ++index) {
        fields.add(arguments[index]);
    }
    for (++index; index < count; ++index) {
        rest.emplace_back(arguments[index]);
    }
    const PluginFieldCollection collection = fields.collection();
    IPluginV3* plugin = creator->createPlugin("layer", &collection, TensorRTPhase::kBUILD);
    if (plugin == nullptr) {
        std::printf("refused\n");
        return 0;
    }
    const std::string command = arguments[2];
    std::printf("made: %s\n", as<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE)->getPluginName());
    if (command == "shapes") {
        shapes(plugin, rest);
    } else if (command == "formats") {
        formats(plugin, std::atoi(rest[0].c_str()));
    } else if (command == "again") {
        again(creator, plugin);
    } else if (command == "run") {
        run(plugin, rest);
    }
    delete plugin;
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(nullptr);
    return 0;
}
