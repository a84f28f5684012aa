#include "similarity_prune.h"

#include "../kernels/launch_plan.h"

namespace ztdeploy {
namespace {

PruneShape shape_of(const Dims& keys)
{
    return {static_cast<std::int32_t>(keys.d[0]), static_cast<std::int32_t>(keys.d[1]),
        static_cast<std::int32_t>(keys.d[2]), static_cast<std::int32_t>(keys.d[3])};
}

} // namespace

bool SimilarityPrune::check(const Dims* inputs, int count) const
{
    if (count != 2) {
        refuse("has " + std::to_string(count) + " inputs; expected scores and keys");
        return false;
    }
    const Dims& scores = inputs[0];
    const Dims& keys = inputs[1];
    const bool shaped = scores.nbDims == 2 && keys.nbDims == 4;
    if (!shaped || !fits(scores.d[0], keys.d[0]) || !fits(scores.d[1], keys.d[2])) {
        refuse("scores " + to_text(scores) + " and keys " + to_text(keys)
            + " do not fit; expected [batch, tokens] and [batch, heads, tokens, width]");
        return false;
    }
    if (keys.d[3] > zt::MAX_WIDTH) {
        refuse("heads are " + std::to_string(keys.d[3]) + " wide; expected at most " + std::to_string(zt::MAX_WIDTH));
        return false;
    }
    const std::int64_t tokens = scores.d[1] == -1 ? keys.d[2] : scores.d[1];
    const std::int64_t droppable = (tokens - settings_.prefix_tokens) / 2;
    if (tokens != -1 && settings_.drop > droppable) {
        refuse("cannot drop " + std::to_string(settings_.drop) + " of " + std::to_string(tokens) + " tokens with "
            + std::to_string(settings_.prefix_tokens) + " prefix tokens; expected at most half of the others");
        return false;
    }
    return true;
}

bool SimilarityPrune::accepts(int position, int inputs, nvinfer1::DataType type)
{
    if (inputs != 2) {
        return false;
    }
    return position == 0 ? type == nvinfer1::DataType::kFLOAT : is_fp32_or_fp16(type);
}

std::size_t SimilarityPrune::workspace(const nvinfer1::DynamicPluginTensorDesc* inputs)
{
    return prune_workspace(shape_of(inputs[1].max));
}

std::int32_t SimilarityPrune::enqueue(const nvinfer1::PluginTensorDesc* input_descs,
    const nvinfer1::PluginTensorDesc* /*output_descs*/, const void* const* inputs, void* const* outputs,
    void* workspace, cudaStream_t stream) noexcept
{
    const Element element = input_descs[1].type == nvinfer1::DataType::kHALF ? Element::fp16 : Element::fp32;
    const cudaError_t status = launch_prune(settings_, shape_of(input_descs[1].dims), element,
        static_cast<const float*>(inputs[0]), inputs[1], static_cast<float*>(outputs[0]), workspace, stream);
    return status == cudaSuccess ? 0 : refuse_launch(status, input_descs[1].dims);
}

} // namespace ztdeploy
