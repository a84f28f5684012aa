// What both plugins share: everything of IPluginV3 but their names, shapes, types and launches.
//
// A derived class has: `kName`; `check(dims, count)`, which logs and returns false where the input shapes are not those
// of the contract (an unknown extent is -1); `accepts(position, inputs, type)`; `batch_and_tokens()`, which input holds
// the two extents of the output and in which places; `workspace(inputs)`; and `enqueue`.
#pragma once

#include "fields.h"
#include "log.h"
#include "version.h"

#include <NvInferRuntime.h>

#include <array>
#include <new>
#include <string>

namespace ztdeploy {

using Dims = nvinfer1::Dims;

inline constexpr int kMostInputs = 2;

inline bool fits(std::int64_t extent, std::int64_t wanted) { return extent == -1 || wanted == -1 || extent == wanted; }

inline bool is_fp32_or_fp16(nvinfer1::DataType type)
{
    return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF;
}

inline std::string to_text(const Dims& dims)
{
    std::string text = "[";
    for (int axis = 0; axis < dims.nbDims; ++axis) {
        text += (axis == 0 ? "" : ", ") + std::to_string(dims.d[axis]);
    }
    return text + "]";
}

template <class Derived, class SettingsOf>
class PluginBase : public nvinfer1::IPluginV3,
                   public nvinfer1::IPluginV3OneCore,
                   public nvinfer1::IPluginV3OneBuild,
                   public nvinfer1::IPluginV3OneRuntime {
public:
    using Settings = SettingsOf;

    explicit PluginBase(const Settings& settings)
        : settings_(settings)
    {
        FieldLister lister;
        Settings::visit(settings_, lister);
        fields_ = lister.fields;
        text_ = lister.text;
        collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
    }

    // The fields point into this very object; `clone` makes a new one from the settings.
    PluginBase(const PluginBase&) = delete;
    PluginBase& operator=(const PluginBase&) = delete;

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override
    {
        switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) Derived(settings_); }

    const char* getPluginName() const noexcept override { return Derived::kName; }
    const char* getPluginVersion() const noexcept override { return ZT_PLUGIN_VERSION; }
    const char* getPluginNamespace() const noexcept override { return ZT_PLUGIN_NAMESPACE; }

    std::int32_t getNbOutputs() const noexcept override { return 1; }
    const char* getTimingCacheID() noexcept override { return text_.c_str(); }
    const char* getMetadataString() noexcept override { return text_.c_str(); }

    std::int32_t getOutputDataTypes(nvinfer1::DataType* types, std::int32_t outputs,
        const nvinfer1::DataType* /*inputs*/, std::int32_t /*count*/) const noexcept override
    {
        if (outputs != 1) {
            return refuse("has " + std::to_string(outputs) + " outputs; expected one");
        }
        types[0] = nvinfer1::DataType::kFLOAT;
        return 0;
    }

    std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t count,
        const nvinfer1::DimsExprs* /*shape_inputs*/, std::int32_t /*shape_count*/, nvinfer1::DimsExprs* outputs,
        std::int32_t output_count, nvinfer1::IExprBuilder& /*builder*/) noexcept override
    {
        std::array<Dims, kMostInputs> known{};
        if (output_count != 1 || count < 1 || count > kMostInputs) {
            return refuse("has " + std::to_string(count) + " inputs and " + std::to_string(output_count)
                + " outputs; expected at most two and one");
        }
        for (int index = 0; index < count; ++index) {
            known[index] = constants(inputs[index]);
        }
        if (!self().check(known.data(), count)) {
            return 1;
        }
        const auto [input, batch, tokens] = Derived::batch_and_tokens();
        outputs[0].nbDims = 2;
        outputs[0].d[0] = inputs[input].d[batch];
        outputs[0].d[1] = inputs[input].d[tokens];
        return 0;
    }

    bool supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
        std::int32_t inputs, std::int32_t outputs) noexcept override
    {
        const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
        if (position >= inputs + outputs || tensor.format != nvinfer1::TensorFormat::kLINEAR) {
            return false;
        }
        return position >= inputs ? tensor.type == nvinfer1::DataType::kFLOAT
                                  : Derived::accepts(position, inputs, tensor.type);
    }

    std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t count,
        const nvinfer1::DynamicPluginTensorDesc* /*outputs*/, std::int32_t /*output_count*/) noexcept override
    {
        std::array<Dims, kMostInputs> known{};
        for (int index = 0; index < count && index < kMostInputs; ++index) {
            known[index] = inputs[index].desc.dims;
        }
        return self().check(known.data(), count) ? 0 : 1;
    }

    std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t count,
        const nvinfer1::PluginTensorDesc* /*outputs*/, std::int32_t /*output_count*/) noexcept override
    {
        std::array<Dims, kMostInputs> known{};
        for (int index = 0; index < count && index < kMostInputs; ++index) {
            known[index] = inputs[index].dims;
        }
        return self().check(known.data(), count) ? 0 : 1;
    }

    std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t /*count*/,
        const nvinfer1::DynamicPluginTensorDesc* /*outputs*/, std::int32_t /*output_count*/) const noexcept override
    {
        return Derived::workspace(inputs);
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept override
    {
        return clone();
    }

    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

protected:
    static std::int32_t refuse(const std::string& why)
    {
        log_error(std::string(Derived::kName) + ": " + why);
        return 1;
    }

    static std::int32_t refuse_launch(cudaError_t status, const Dims& dims)
    {
        return refuse("the launch for " + to_text(dims) + " failed: " + cudaGetErrorString(status));
    }

    const Settings settings_;

private:
    Derived& self() { return static_cast<Derived&>(*this); }

    static Dims constants(const nvinfer1::DimsExprs& shape)
    {
        Dims known{};
        known.nbDims = shape.nbDims;
        for (int axis = 0; axis < shape.nbDims && axis < Dims::MAX_DIMS; ++axis) {
            known.d[axis] = shape.d[axis]->isConstant() ? shape.d[axis]->getConstantValue() : -1;
        }
        return known;
    }

    std::vector<nvinfer1::PluginField> fields_;
    std::string text_;
    nvinfer1::PluginFieldCollection collection_{};
};

template <class Plugin>
class Creator : public nvinfer1::IPluginCreatorV3One {
public:
    Creator()
    {
        FieldLister lister;
        Plugin::Settings::visit(defaults_, lister);
        fields_ = lister.fields;
        collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
    }

    nvinfer1::IPluginV3* createPlugin(const char* /*name*/, const nvinfer1::PluginFieldCollection* fields,
        nvinfer1::TensorRTPhase /*phase*/) noexcept override
    {
        typename Plugin::Settings settings;
        FieldReader reader(Plugin::kName, fields);
        Plugin::Settings::visit(settings, reader);
        if (const char* why = settings.contradiction(); reader.good() && why != nullptr) {
            reader.refuse(why);
        }
        return reader.good() ? new (std::nothrow) Plugin(settings) : nullptr;
    }

    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return Plugin::kName; }
    const char* getPluginVersion() const noexcept override { return ZT_PLUGIN_VERSION; }
    const char* getPluginNamespace() const noexcept override { return ZT_PLUGIN_NAMESPACE; }

private:
    typename Plugin::Settings defaults_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

} // namespace ztdeploy
