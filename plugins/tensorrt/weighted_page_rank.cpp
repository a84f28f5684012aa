#include "weighted_page_rank.h"

namespace ztdeploy {

bool WeightedPageRank::check(const Dims* inputs, int count) const
{
    if (count != 1 && count != 2) {
        refuse("has " + std::to_string(count) + " inputs; expected attention, and survivors if tokens may be gone");
        return false;
    }
    const Dims& attention = inputs[0];
    if (attention.nbDims != 4 || !fits(attention.d[2], attention.d[3])) {
        refuse("attention has the shape " + to_text(attention) + "; expected [batch, heads, tokens, tokens]");
        return false;
    }
    if (count == 1) {
        return true;
    }
    const Dims& survivors = inputs[1];
    if (survivors.nbDims != 2 || !fits(survivors.d[0], attention.d[0]) || !fits(survivors.d[1], attention.d[2])) {
        refuse("survivors has the shape " + to_text(survivors) + " beside attention " + to_text(attention)
            + "; expected [batch, tokens]");
        return false;
    }
    return true;
}

bool WeightedPageRank::accepts(int position, int inputs, nvinfer1::DataType type)
{
    if (inputs != 1 && inputs != 2) {
        return false;
    }
    return position == 0 ? is_fp32_or_fp16(type) : type == nvinfer1::DataType::kFLOAT;
}

std::size_t WeightedPageRank::workspace(const nvinfer1::DynamicPluginTensorDesc* inputs)
{
    const Dims& most = inputs[0].max;
    return page_rank_workspace({static_cast<std::int32_t>(most.d[0]), static_cast<std::int32_t>(most.d[1]),
        static_cast<std::int32_t>(most.d[2])});
}

std::int32_t WeightedPageRank::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t count,
    const nvinfer1::PluginTensorDesc* outputs, std::int32_t output_count) noexcept
{
    has_survivors_ = count == 2;
    return PluginBase::onShapeChange(inputs, count, outputs, output_count);
}

std::int32_t WeightedPageRank::enqueue(const nvinfer1::PluginTensorDesc* input_descs,
    const nvinfer1::PluginTensorDesc* /*output_descs*/, const void* const* inputs, void* const* outputs,
    void* workspace, cudaStream_t stream) noexcept
{
    const Dims& dims = input_descs[0].dims;
    const PageRankShape shape{static_cast<std::int32_t>(dims.d[0]), static_cast<std::int32_t>(dims.d[1]),
        static_cast<std::int32_t>(dims.d[2])};
    const Element element = input_descs[0].type == nvinfer1::DataType::kHALF ? Element::fp16 : Element::fp32;
    const auto* survivors = has_survivors_ ? static_cast<const float*>(inputs[1]) : nullptr;
    const cudaError_t status = launch_page_rank(
        settings_, shape, element, inputs[0], survivors, static_cast<float*>(outputs[0]), workspace, stream);
    return status == cudaSuccess ? 0 : refuse_launch(status, dims);
}

} // namespace ztdeploy
