#pragma once

#include "launch.h"
#include "plugin_base.h"

#include <tuple>

namespace ztdeploy {

// scores [B, N], keys [B, H, N, d] -> survivors [B, N].
class SimilarityPrune : public PluginBase<SimilarityPrune, PruneSettings> {
public:
    static constexpr const char* kName = "ZtSimilarityPrune";

    using PluginBase::PluginBase;

    bool check(const Dims* inputs, int count) const;
    static bool accepts(int position, int inputs, nvinfer1::DataType type);
    static std::tuple<int, int, int> batch_and_tokens() { return {0, 0, 1}; }
    static std::size_t workspace(const nvinfer1::DynamicPluginTensorDesc* inputs);

    std::int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
        const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
};

} // namespace ztdeploy
