#pragma once

#include "launch.h"
#include "plugin_base.h"

#include <tuple>

namespace ztdeploy {

// attention [B, H, N, N], and if there is a second input survivors [B, N] -> scores [B, N].
class WeightedPageRank : public PluginBase<WeightedPageRank, PageRankSettings> {
public:
    static constexpr const char* kName = "ZtWeightedPageRank";

    using PluginBase::PluginBase;

    bool check(const Dims* inputs, int count) const;
    static bool accepts(int position, int inputs, nvinfer1::DataType type);
    static std::tuple<int, int, int> batch_and_tokens() { return {0, 0, 2}; }
    static std::size_t workspace(const nvinfer1::DynamicPluginTensorDesc* inputs);

    std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t count,
        const nvinfer1::PluginTensorDesc* outputs, std::int32_t output_count) noexcept override;
    std::int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
        const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;

private:
    // `enqueue` is not told how many inputs there are; the preceding `onShapeChange` is.
    bool has_survivors_ = false;
};

} // namespace ztdeploy
