// What the library exports; everything else is hidden.
#include "log.h"
#include "similarity_prune.h"
#include "version.h"
#include "weighted_page_rank.h"

#include <NvInferRuntime.h>

#include <array>

#define ZT_EXPORT extern "C" __attribute__((visibility("default")))

// Weak for the reason given in log.cpp.
#pragma weak getPluginRegistry

namespace ztdeploy {
namespace {

using CreatorPointer = nvinfer1::IPluginCreatorInterface*;

const std::array<CreatorPointer, 2>& creators()
{
    static Creator<WeightedPageRank> page_rank;
    static Creator<SimilarityPrune> prune;
    static const std::array<CreatorPointer, 2> all{&page_rank, &prune};
    return all;
}

} // namespace
} // namespace ztdeploy

// Called by IPluginRegistry::loadLibrary, in this order; TensorRT looks the names up.
ZT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { ztdeploy::set_logger_finder(finder); }

ZT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count)
{
    count = static_cast<std::int32_t>(ztdeploy::creators().size());
    return ztdeploy::creators().data();
}

ZT_EXPORT const char* zt_plugin_version() { return ZT_PLUGIN_ABI; }

// major * 10000 + minor * 100 + patch of the headers that it was compiled with. TensorRT 11 changed the layout of
// ILogger and ILoggerFinder, so a library must not be loaded into another major version.
ZT_EXPORT std::int32_t zt_tensorrt_version() { return static_cast<std::int32_t>(NV_TENSORRT_VERSION); }

// Registers with the process-wide registry, for hosts that open the library with dlopen and call nothing by name.
// Returns how many plugins were registered: 0 where no TensorRT is loaded in this process, or they are registered already.
ZT_EXPORT std::int32_t zt_register_plugins()
{
    nvinfer1::IPluginRegistry* registry = getPluginRegistry != nullptr ? getPluginRegistry() : nullptr;
    std::int32_t registered = 0;
    for (auto* creator : ztdeploy::creators()) {
        registered += registry != nullptr && registry->registerCreator(*creator, ZT_PLUGIN_NAMESPACE) ? 1 : 0;
    }
    return registered;
}

#ifdef ZT_STATIC_REGISTRATION
// Off by default: IPluginRegistry::loadLibrary refuses a library whose plugins are registered already.
namespace {
[[maybe_unused]] const std::int32_t registered_on_load = zt_register_plugins();
}
#endif
