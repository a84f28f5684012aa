// The launches of the fast forms; plugins/README.md lists the kernels and their arguments.
#include "launch.h"

#include "../kernels/kernels.cuh"
#include "../kernels/launch_plan.h"

#include <cuda_fp16.h>

namespace ztdeploy {
namespace {

// What a block of the current device may have with the opt-in. Asked each time: a process may switch devices.
cudaError_t shared_limit(int& bytes)
{
    int device = 0;
    const cudaError_t status = cudaGetDevice(&device);
    return status != cudaSuccess ? status
                                 : cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

template <class Kernel>
cudaError_t allow_shared(Kernel kernel, int bytes)
{
    if (bytes <= zt::DEFAULT_SHARED_BYTES) {
        return cudaSuccess;
    }
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <class Element>
using HeadsKernel = void (*)(const Element*, const float*, int, int, int, int, int, int, float*, float*);

// Overloads, chosen by the type of the attention matrix.
HeadsKernel<float> heads_kernel(const float* /*attention*/, zt::PageRankPath path)
{
    return path == zt::PageRankPath::shared ? zt_page_rank_heads_f32_shared : zt_page_rank_heads_f32_l2;
}

HeadsKernel<__half> heads_kernel(const __half* /*attention*/, zt::PageRankPath path)
{
    return path == zt::PageRankPath::shared ? zt_page_rank_heads_f16_shared : zt_page_rank_heads_f16_l2;
}

template <class Element>
cudaError_t launch_heads(const PageRankSettings& settings, const PageRankShape& shape, const Element* attention,
    const float* survivors, float* head_scores, float* variances, cudaStream_t stream)
{
    int limit = 0;
    if (const cudaError_t status = shared_limit(limit); status != cudaSuccess) {
        return status;
    }
    const auto plan = zt::page_rank_plan(shape.tokens, sizeof(Element), settings.iterations, limit);
    if (plan.path == zt::PageRankPath::none) {
        return cudaErrorInvalidConfiguration;
    }
    const auto kernel = heads_kernel(attention, plan.path);
    if (const cudaError_t status = allow_shared(kernel, plan.shared_bytes); status != cudaSuccess) {
        return status;
    }
    kernel<<<dim3(shape.heads, shape.batch), plan.threads, plan.shared_bytes, stream>>>(attention, survivors,
        shape.heads, shape.tokens, settings.iterations, settings.boost, plan.lanes, plan.groups, head_scores, variances);
    return cudaGetLastError();
}

template <class Element, class Kernel>
cudaError_t launch_prune_as(Kernel kernel, const PruneSettings& settings, const PruneShape& shape, const float* scores,
    const void* keys, float* survivors, cudaStream_t stream)
{
    int limit = 0;
    if (const cudaError_t status = shared_limit(limit); status != cudaSuccess) {
        return status;
    }
    const auto plan = zt::similarity_plan(shape.tokens, settings.prefix_tokens, shape.width, limit);
    if (plan.threads == 0) {
        return cudaErrorInvalidConfiguration;
    }
    if (const cudaError_t status = allow_shared(kernel, plan.shared_bytes); status != cudaSuccess) {
        return status;
    }
    kernel<<<shape.batch, plan.threads, plan.shared_bytes, stream>>>(scores, static_cast<const Element*>(keys),
        shape.heads, shape.tokens, shape.width, settings.drop, settings.prefix_tokens, plan.tile, survivors);
    return cudaGetLastError();
}

} // namespace

std::size_t page_rank_workspace(const PageRankShape& shape)
{
    return zt::page_rank_workspace(shape.batch, shape.heads, shape.tokens);
}

std::size_t prune_workspace(const PruneShape& /*shape*/) { return 0; }

cudaError_t launch_page_rank(const PageRankSettings& settings, const PageRankShape& shape, Element element,
    const void* attention, const float* survivors, float* scores, void* workspace, cudaStream_t stream)
{
    if (shape.batch == 0) {
        return cudaSuccess; // an empty grid is an error to CUDA, an empty batch is none to us
    }
    auto* head_scores = static_cast<float*>(workspace);
    float* variances = head_scores + static_cast<std::size_t>(shape.batch) * shape.heads * shape.tokens;
    const cudaError_t status = element == Element::fp16
        ? launch_heads(settings, shape, static_cast<const __half*>(attention), survivors, head_scores, variances, stream)
        : launch_heads(settings, shape, static_cast<const float*>(attention), survivors, head_scores, variances, stream);
    if (status != cudaSuccess) {
        return status;
    }
    zt_join_heads<<<shape.batch, zt::join_threads(shape.tokens), 0, stream>>>(head_scores, variances, shape.heads,
        shape.tokens, settings.filter_heads, settings.root_mean_square, settings.variance_min, settings.variance_max,
        scores);
    return cudaGetLastError();
}

cudaError_t launch_prune(const PruneSettings& settings, const PruneShape& shape, Element element, const float* scores,
    const void* keys, float* survivors, void* /*workspace*/, cudaStream_t stream)
{
    if (shape.batch == 0) {
        return cudaSuccess;
    }
    return element == Element::fp16
        ? launch_prune_as<__half>(zt_similarity_prune_f16, settings, shape, scores, keys, survivors, stream)
        : launch_prune_as<float>(zt_similarity_prune_f32, settings, shape, scores, keys, survivors, stream);
}

} // namespace ztdeploy
