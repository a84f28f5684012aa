// The seam to a runtime. One of onnxruntime.cpp, openvino.cpp and tensorrt.cpp is compiled; CMake's ZTDEPLOY_RUNTIME
// chooses which.
#pragma once

#include <ztdeploy/ztdeploy.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace ztdeploy {

enum class Type { float32, uint8, int32, other };

// An input or output as the runtime reports it; -1: any length.
struct TensorFacts {
    std::string name;
    Type type = Type::other;
    std::vector<std::int64_t> shape;
};

// What one call gave.
struct Value {
    TensorFacts facts;
    std::vector<std::uint8_t> bytes;
};

// An engine in memory.
class OpenEngine {
public:
    virtual ~OpenEngine() = default;
    virtual std::vector<TensorFacts> inputs() const = 0;
    virtual std::vector<TensorFacts> outputs() const = 0;
    // Run once on a whole input of this shape. Throws Error.
    virtual std::vector<Value> infer(const void* input, const TensorFacts& facts) = 0;
};

// An engine on disk, its files checked.
struct StoredEngine {
    std::filesystem::path file, graph, weights; // weights: those that all variants share
    std::string graph_sha256;
    int threads = 1;
    Memory memory = Memory::speed;
    bool has_plugins = false; // it needs code of ours, of a library of its own
};

extern const char* const backend; // its name in manifests
std::string runtime_version();    // which engines are bound to
// Throws Error.
std::unique_ptr<OpenEngine> open_engine(const StoredEngine& stored);

} // namespace ztdeploy
