// A stand-in for TensorRT's header: just the names that cpp/src/tensorrt.cpp uses, written from the documented
// interface. What is compiled against it cannot run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>

#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 3
#define NV_TENSORRT_PATCH 0

namespace nvinfer1 {

enum class DataType : std::int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5 };
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class ExecutionContextAllocationStrategy : std::int32_t { kSTATIC = 0 };

struct Dims {
    static constexpr std::int32_t MAX_DIMS = 8;
    std::int32_t nbDims;
    std::int64_t d[MAX_DIMS];
};

class ILogger {
public:
    enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2 };
    virtual ~ILogger() = default;
    virtual void log(Severity severity, const char* message) noexcept = 0;
};

class IExecutionContext {
public:
    virtual ~IExecutionContext() noexcept = default;
    bool setInputShape(const char* name, const Dims& shape) noexcept;
    bool setTensorAddress(const char* name, void* data) noexcept;
    Dims getTensorShape(const char* name) const noexcept;
    bool enqueueV3(cudaStream_t stream) noexcept;
};

class ICudaEngine {
public:
    virtual ~ICudaEngine() noexcept = default;
    IExecutionContext* createExecutionContext(
        ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC) noexcept;
    std::int32_t getNbIOTensors() const noexcept;
    const char* getIOTensorName(std::int32_t place) const noexcept;
    TensorIOMode getTensorIOMode(const char* name) const noexcept;
    Dims getTensorShape(const char* name) const noexcept;
    DataType getTensorDataType(const char* name) const noexcept;
};

class IRuntime {
public:
    virtual ~IRuntime() noexcept = default;
    ICudaEngine* deserializeCudaEngine(const void* content, std::size_t size) noexcept;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

} // namespace nvinfer1
