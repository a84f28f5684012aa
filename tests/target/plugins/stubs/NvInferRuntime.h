// A stand-in for TensorRT's header: just the names that the plugins use, written from the documented interface, so that
// the adapter is compiled and driven where no TensorRT is. Its memory layout is NOT TensorRT's: a library compiled
// against it must never be loaded into TensorRT.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>

#ifndef STUB_TENSORRT_MAJOR
#define STUB_TENSORRT_MAJOR 10
#endif
#ifndef STUB_TENSORRT_MINOR
#define STUB_TENSORRT_MINOR 0
#endif
#define NV_TENSORRT_VERSION (STUB_TENSORRT_MAJOR * 10000 + STUB_TENSORRT_MINOR * 100)

namespace nvinfer1 {

enum class DataType : std::int32_t { kFLOAT, kHALF, kINT8, kINT32, kBOOL, kBF16 };
enum class TensorFormat : std::int32_t { kLINEAR, kCHW2 };
enum class TensorRTPhase : std::int32_t { kBUILD, kRUNTIME };
enum class PluginCapabilityType : std::int32_t { kCORE, kBUILD, kRUNTIME };
enum class PluginFieldType : std::int32_t { kFLOAT32, kFLOAT64, kINT32, kINT64, kCHAR, kUNKNOWN };

struct Dims {
    static constexpr std::int32_t MAX_DIMS = 8;
    std::int32_t nbDims;
    std::int64_t d[MAX_DIMS];
};

struct PluginField {
    const char* name;
    const void* data;
    PluginFieldType type;
    std::int32_t length;
    PluginField(const char* its_name, const void* its_data, PluginFieldType its_type, std::int32_t its_length)
        : name(its_name), data(its_data), type(its_type), length(its_length) {}
};

struct PluginFieldCollection {
    std::int32_t nbFields;
    const PluginField* fields;
};

struct PluginTensorDesc {
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};

struct DynamicPluginTensorDesc {
    PluginTensorDesc desc;
    Dims min, max, opt;
};

struct IDimensionExpr {
    virtual ~IDimensionExpr() = default;
    virtual bool isConstant() const noexcept = 0;
    virtual std::int64_t getConstantValue() const noexcept = 0;
};

struct DimsExprs {
    std::int32_t nbDims;
    const IDimensionExpr* d[Dims::MAX_DIMS];
};

struct IExprBuilder {};
struct IPluginResourceContext {};

struct IVersionedInterface {
    virtual ~IVersionedInterface() = default;
};

// TensorRT 11 made the loggers versioned interfaces.
#if STUB_TENSORRT_MAJOR >= 11
#define STUB_LOGGER_BASE : IVersionedInterface
#else
#define STUB_LOGGER_BASE
#endif

struct ILogger STUB_LOGGER_BASE {
    enum class Severity : std::int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
    virtual ~ILogger() = default;
    virtual void log(Severity severity, const char* message) noexcept = 0;
};

struct ILoggerFinder STUB_LOGGER_BASE {
    virtual ~ILoggerFinder() = default;
    virtual ILogger* findLogger() = 0;
};

struct IPluginCapability : IVersionedInterface {};

struct IPluginV3 : IVersionedInterface {
    virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
    virtual IPluginV3* clone() noexcept = 0;
};

struct IPluginV3OneCore : IPluginCapability {
    virtual const char* getPluginName() const noexcept = 0;
    virtual const char* getPluginVersion() const noexcept = 0;
    virtual const char* getPluginNamespace() const noexcept = 0;
};

struct IPluginV3OneBuild : IPluginCapability {
    virtual std::int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, std::int32_t count,
        const DynamicPluginTensorDesc* outputs, std::int32_t output_count) noexcept = 0;
    virtual std::int32_t getOutputDataTypes(
        DataType* types, std::int32_t outputs, const DataType* inputs, std::int32_t count) const noexcept = 0;
    virtual std::int32_t getOutputShapes(const DimsExprs* inputs, std::int32_t count, const DimsExprs* shape_inputs,
        std::int32_t shape_count, DimsExprs* outputs, std::int32_t output_count, IExprBuilder& builder) noexcept = 0;
    virtual bool supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* tensors,
        std::int32_t inputs, std::int32_t outputs) noexcept = 0;
    virtual std::int32_t getNbOutputs() const noexcept = 0;
    virtual std::size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, std::int32_t count,
        const DynamicPluginTensorDesc* outputs, std::int32_t output_count) const noexcept = 0;
    virtual const char* getTimingCacheID() noexcept = 0;
    virtual const char* getMetadataString() noexcept = 0;
};

struct IPluginV3OneRuntime : IPluginCapability {
    virtual std::int32_t onShapeChange(const PluginTensorDesc* inputs, std::int32_t count,
        const PluginTensorDesc* outputs, std::int32_t output_count) noexcept = 0;
    virtual std::int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs,
        const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept = 0;
    virtual IPluginV3* attachToContext(IPluginResourceContext* context) noexcept = 0;
    virtual const PluginFieldCollection* getFieldsToSerialize() noexcept = 0;
};

struct IPluginCreatorInterface : IVersionedInterface {};

struct IPluginCreatorV3One : IPluginCreatorInterface {
    virtual IPluginV3* createPlugin(
        const char* name, const PluginFieldCollection* fields, TensorRTPhase phase) noexcept = 0;
    virtual const PluginFieldCollection* getFieldNames() noexcept = 0;
    virtual const char* getPluginName() const noexcept = 0;
    virtual const char* getPluginVersion() const noexcept = 0;
    virtual const char* getPluginNamespace() const noexcept = 0;
};

struct IPluginRegistry {
    virtual ~IPluginRegistry() = default;
    virtual bool registerCreator(IPluginCreatorInterface& creator, const char* name_space) noexcept = 0;
};

} // namespace nvinfer1

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept;
extern "C" nvinfer1::ILogger* getLogger() noexcept;
