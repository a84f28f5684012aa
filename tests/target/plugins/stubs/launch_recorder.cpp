// Stands in for tensorrt/launch.cu: writes down what it is asked to launch. A batch of 99 fails.
#include "launch.h"

#include <cstdio>

namespace ztdeploy {
namespace {

const char* name_of(Element element) { return element == Element::fp16 ? "fp16" : "fp32"; }
const char* shown(const void* pointer) { return pointer == nullptr ? "null" : "given"; }
cudaError_t outcome(int batch) { return batch == 99 ? cudaErrorInvalidConfiguration : cudaSuccess; }

} // namespace

std::size_t page_rank_workspace(const PageRankShape& shape)
{
    return static_cast<std::size_t>(4) * shape.batch * shape.heads * (shape.tokens + 1);
}

std::size_t prune_workspace(const PruneShape& /*shape*/) { return 0; }

cudaError_t launch_page_rank(const PageRankSettings& settings, const PageRankShape& shape, Element element,
    const void* attention, const float* survivors, float* scores, void* workspace, cudaStream_t /*stream*/)
{
    std::printf("page_rank iterations=%d batch=%d heads=%d tokens=%d %s attention=%s survivors=%s scores=%s work=%s\n",
        settings.iterations, shape.batch, shape.heads, shape.tokens, name_of(element), shown(attention),
        shown(survivors), shown(scores), shown(workspace));
    return outcome(shape.batch);
}

cudaError_t launch_prune(const PruneSettings& settings, const PruneShape& shape, Element element, const float* scores,
    const void* keys, float* survivors, void* /*workspace*/, cudaStream_t /*stream*/)
{
    std::printf("prune drop=%d batch=%d heads=%d tokens=%d width=%d %s scores=%s keys=%s survivors=%s\n", settings.drop,
        shape.batch, shape.heads, shape.tokens, shape.width, name_of(element), shown(scores), shown(keys),
        shown(survivors));
    return outcome(shape.batch);
}

} // namespace ztdeploy
