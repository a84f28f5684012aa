// The seam between the TensorRT adapter (plain C++) and the kernels (CUDA): the adapter's tests put a stand-in behind it.
#pragma once

#include "settings.h"

#include <cstddef>
#include <cuda_runtime_api.h>

namespace ztdeploy {

enum class Element { fp32, fp16 };

struct PageRankShape {
    std::int32_t batch;
    std::int32_t heads;
    std::int32_t tokens;
};

struct PruneShape {
    std::int32_t batch;
    std::int32_t heads;
    std::int32_t tokens;
    std::int32_t width;
};

// Bytes of device memory that a launch needs between its kernels.
std::size_t page_rank_workspace(const PageRankShape& shape);
std::size_t prune_workspace(const PruneShape& shape);

// All pointers are device pointers; `survivors` may be null: then all tokens stay. Launches only, never synchronises.
cudaError_t launch_page_rank(const PageRankSettings& settings, const PageRankShape& shape, Element element,
    const void* attention, const float* survivors, float* scores, void* workspace, cudaStream_t stream);
cudaError_t launch_prune(const PruneSettings& settings, const PruneShape& shape, Element element, const float* scores,
    const void* keys, float* survivors, void* workspace, cudaStream_t stream);

} // namespace ztdeploy
