// Engines of TensorRT, built by `ztdeploy finalize` on the same device. This file has never run: no machine of the
// project has a GPU with TensorRT for C++.
#include "engine.h"
#include "files.h"
#include "text.h"

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <map>
#include <memory>

namespace ztdeploy {
namespace {

constexpr std::uint64_t engine_limit = std::uint64_t { 16 } << 30;

void check(cudaError_t code)
{
    if (code != cudaSuccess) {
        throw Error(environment_error, std::string("CUDA: ") + cudaGetErrorString(code), "a GPU that works, with free memory",
            "close what else uses the GPU, or give fewer images at a time");
    }
}

class Log : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override
    {
        if (severity <= Severity::kERROR) {
            std::fprintf(stderr, "%s\n", message);
        }
    }
};

// Memory on the GPU.
class Buffer {
public:
    explicit Buffer(std::size_t size)
        : size_(size)
    {
        check(cudaMalloc(&data_, size));
    }
    ~Buffer() { cudaFree(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* data() const { return data_; }
    std::size_t size() const { return size_; }

private:
    void* data_ = nullptr;
    std::size_t size_;
};

Type type_of(nvinfer1::DataType type)
{
    return type == nvinfer1::DataType::kFLOAT ? Type::float32
        : type == nvinfer1::DataType::kUINT8  ? Type::uint8
        : type == nvinfer1::DataType::kINT32  ? Type::int32
                                              : Type::other;
}

std::size_t bytes_of(const TensorFacts& facts)
{
    std::size_t bytes = facts.type == Type::uint8 ? 1 : 4;
    for (const std::int64_t length : facts.shape) {
        bytes *= static_cast<std::size_t>(length);
    }
    return bytes;
}

class TensorRtEngine : public OpenEngine {
public:
    explicit TensorRtEngine(const std::filesystem::path& path)
        : runtime_(nvinfer1::createInferRuntime(log_))
    {
        const std::string content = read_regular(path, engine_limit);
        engine_.reset(runtime_ ? runtime_->deserializeCudaEngine(content.data(), content.size()) : nullptr);
        context_.reset(engine_ ? engine_->createExecutionContext() : nullptr);
        if (!context_) {
            throw Error(bundle_error, runtime() + " refuses '" + path.string() + "'", "an engine that it built on this GPU",
                "run 'ztdeploy finalize' on the bundle");
        }
        check(cudaStreamCreate(&stream_));
        for (int at = 0; at < engine_->getNbIOTensors(); ++at) {
            const char* const name = engine_->getIOTensorName(at);
            const bool taken = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
            (taken ? inputs_ : outputs_).push_back(facts_of(name, engine_->getTensorShape(name)));
        }
    }
    ~TensorRtEngine() override
    {
        if (stream_ != nullptr) {
            cudaStreamDestroy(stream_);
        }
    }

    std::vector<TensorFacts> inputs() const override { return inputs_; }
    std::vector<TensorFacts> outputs() const override { return outputs_; }

    std::vector<Value> infer(const void* input, const TensorFacts& facts) override
    {
        nvinfer1::Dims shape {};
        shape.nbDims = static_cast<std::int32_t>(facts.shape.size());
        for (std::size_t at = 0; at < facts.shape.size(); ++at) {
            shape.d[at] = static_cast<std::decay_t<decltype(shape.d[0])>>(facts.shape[at]);
        }
        void* const taken = buffer(facts);
        check(cudaMemcpyAsync(taken, input, bytes_of(facts), cudaMemcpyHostToDevice, stream_));
        bool good = context_->setInputShape(facts.name.c_str(), shape) && context_->setTensorAddress(facts.name.c_str(), taken);
        std::vector<Value> values;
        for (const TensorFacts& output : outputs_) {
            values.push_back({ facts_of(output.name.c_str(), context_->getTensorShape(output.name.c_str())), {} });
            good = good && context_->setTensorAddress(output.name.c_str(), buffer(values.back().facts));
        }
        if (!good || !context_->enqueueV3(stream_)) {
            throw Error(bundle_error, runtime() + " cannot run the engine", "an engine as built, and memory for so many images",
                "give fewer images at a time, or run: ztdeploy verify");
        }
        for (Value& value : values) {
            value.bytes.resize(bytes_of(value.facts));
            check(cudaMemcpyAsync(
                value.bytes.data(), buffers_.at(value.facts.name)->data(), value.bytes.size(), cudaMemcpyDeviceToHost, stream_));
        }
        check(cudaStreamSynchronize(stream_));
        return values;
    }

private:
    TensorFacts facts_of(const char* name, const nvinfer1::Dims& shape) const
    {
        TensorFacts facts { name, type_of(engine_->getTensorDataType(name)), {} };
        for (std::int32_t at = 0; at < shape.nbDims; ++at) {
            facts.shape.push_back(shape.d[at]);
        }
        return facts;
    }

    // Memory for a tensor, kept from call to call while it suffices.
    void* buffer(const TensorFacts& facts)
    {
        std::unique_ptr<Buffer>& own = buffers_[facts.name];
        const std::size_t bytes = bytes_of(facts);
        if (!own || own->size() < bytes) {
            own.reset();
            own = std::make_unique<Buffer>(bytes);
        }
        return own->data();
    }

    Log log_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cudaStream_t stream_ = nullptr;
    std::vector<TensorFacts> inputs_, outputs_;
    std::map<std::string, std::unique_ptr<Buffer>> buffers_;
};

} // namespace

const char* const backend = "tensorrt";

std::string runtime_version()
{
    return std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + "." + std::to_string(NV_TENSORRT_PATCH);
}

std::unique_ptr<OpenEngine> open_engine(const StoredEngine& stored)
{
    if (stored.has_plugins) {
        throw Error(environment_error, "engine '" + stored.file.filename().string() + "' needs compiled plugins",
            "an engine of plain operators", "run it with the Python runner, which loads them");
    }
    return std::make_unique<TensorRtEngine>(stored.file);
}

} // namespace ztdeploy
