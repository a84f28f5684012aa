// The part of ONNX Runtime's C interface that is used here, so that its library alone is enough to compile against: its
// Python wheel holds that and no headers. The interface is a table of functions to which versions only append, so each
// function keeps its place; the table of version 1.18 holds all of these.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtEnv;
struct OrtSessionOptions;
struct OrtSession;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorInfo;
struct OrtMemoryInfo;
struct OrtAllocator;

namespace ztdeploy {

constexpr std::uint32_t interface_version = 18;
constexpr int only_fatal = 4, optimise_all = 99, arena_allocator = 1, default_memory = 0;

enum class ElementType : int { undefined = 0, float32 = 1, uint8 = 2, int32 = 6 };

struct OrtApi {
    using Other = void (*)();

    Other from_0[2];
    const char* (*GetErrorMessage)(const OrtStatus*);
    OrtStatus* (*CreateEnv)(int level, const char* name, OrtEnv**);
    Other from_4[2];
    OrtStatus* (*DisableTelemetryEvents)(const OrtEnv*);
    OrtStatus* (*CreateSession)(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**);
    Other from_8[1];
    OrtStatus* (*Run)(OrtSession*, const void* options, const char* const* input_names, const OrtValue* const* inputs,
        std::size_t input_count, const char* const* output_names, std::size_t output_count, OrtValue** outputs);
    OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**);
    Other from_11[6];
    OrtStatus* (*DisableMemPattern)(OrtSessionOptions*);
    Other from_18[4];
    OrtStatus* (*SetSessionLogSeverityLevel)(OrtSessionOptions*, int level);
    OrtStatus* (*SetSessionGraphOptimizationLevel)(OrtSessionOptions*, int level);
    OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int threads);
    OrtStatus* (*SetInterOpNumThreads)(OrtSessionOptions*, int threads);
    Other from_26[4];
    OrtStatus* (*SessionGetInputCount)(const OrtSession*, std::size_t*);
    OrtStatus* (*SessionGetOutputCount)(const OrtSession*, std::size_t*);
    Other from_32[1];
    OrtStatus* (*SessionGetInputTypeInfo)(const OrtSession*, std::size_t place, OrtTypeInfo**);
    OrtStatus* (*SessionGetOutputTypeInfo)(const OrtSession*, std::size_t place, OrtTypeInfo**);
    Other from_35[1];
    OrtStatus* (*SessionGetInputName)(const OrtSession*, std::size_t place, OrtAllocator*, char**);
    OrtStatus* (*SessionGetOutputName)(const OrtSession*, std::size_t place, OrtAllocator*, char**);
    Other from_38[11];
    OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, std::size_t bytes,
        const std::int64_t* shape, std::size_t rank, ElementType, OrtValue**);
    Other from_50[1];
    OrtStatus* (*GetTensorMutableData)(OrtValue*, void**);
    Other from_52[3];
    OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo*, const OrtTensorInfo**);
    Other from_56[4];
    OrtStatus* (*GetTensorElementType)(const OrtTensorInfo*, ElementType*);
    OrtStatus* (*GetDimensionsCount)(const OrtTensorInfo*, std::size_t*);
    OrtStatus* (*GetDimensions)(const OrtTensorInfo*, std::int64_t* shape, std::size_t rank);
    Other from_63[1];
    OrtStatus* (*GetTensorShapeElementCount)(const OrtTensorInfo*, std::size_t*);
    OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorInfo**);
    Other from_66[3];
    OrtStatus* (*CreateCpuMemoryInfo)(int allocator, int memory, OrtMemoryInfo**);
    Other from_70[6];
    OrtStatus* (*AllocatorFree)(OrtAllocator*, void*);
    Other from_77[1];
    OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator**);
    Other from_79[13];
    void (*ReleaseEnv)(OrtEnv*);
    void (*ReleaseStatus)(OrtStatus*);
    void (*ReleaseMemoryInfo)(OrtMemoryInfo*);
    void (*ReleaseSession)(OrtSession*);
    void (*ReleaseValue)(OrtValue*);
    Other from_97[1];
    void (*ReleaseTypeInfo)(OrtTypeInfo*);
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorInfo*);
    void (*ReleaseSessionOptions)(OrtSessionOptions*);
    Other from_101[29];
    OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions*, const char* key, const char* value);
    Other from_131[19];
    OrtStatus* (*AddInitializer)(OrtSessionOptions*, const char* name, const OrtValue*);
    Other from_151[128];
    OrtStatus* (*AddExternalInitializersFromFilesInMemory)(OrtSessionOptions*, const char* const* names,
        char* const* contents, const std::size_t* sizes, std::size_t count);
};

static_assert(offsetof(OrtApi, AddInitializer) == 150 * sizeof(void*));
static_assert(offsetof(OrtApi, AddExternalInitializersFromFilesInMemory) == 279 * sizeof(void*));

struct OrtApiBase {
    const OrtApi* (*GetApi)(std::uint32_t version);
    const char* (*GetVersionString)();
};

} // namespace ztdeploy

extern "C" const ztdeploy::OrtApiBase* OrtGetApiBase();
