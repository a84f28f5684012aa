// The kernels' entry points, under names that stay. Arguments come as inputs, 32-bit ints, floats, outputs.
// launch_plan.h says how to launch each.
#pragma once

#include "similarity_prune.cuh"
#include "weighted_page_rank.cuh"

// Limits of the head filter in the single-launch form, where they can't be arguments.
#ifndef ZT_VARIANCE_MIN
#define ZT_VARIANCE_MIN 0.01f
#endif
#ifndef ZT_VARIANCE_MAX
#define ZT_VARIANCE_MAX 0.7f
#endif

// Fast form, first launch: grid (heads, batch). `survivors` may be null. Fills head_scores [B, H, N], variances [B, H].
#define ZT_PAGE_RANK_HEADS(name, T, path)                                                                             \
    extern "C" __global__ void __launch_bounds__(1024, 1)                                                             \
        name(const T* __restrict__ attention, const float* __restrict__ survivors, int heads, int tokens,             \
             int iterations, int boost, int lanes, int groups, float* __restrict__ head_scores,                       \
             float* __restrict__ variances) {                                                                         \
        zt::page_rank_of_head<T, zt::PageRankPath::path>(attention, survivors, heads, tokens, iterations, boost,      \
                                                         lanes, groups, head_scores, variances);                      \
    }

ZT_PAGE_RANK_HEADS(zt_page_rank_heads_f32_shared, float, shared)
ZT_PAGE_RANK_HEADS(zt_page_rank_heads_f16_shared, __half, shared)
ZT_PAGE_RANK_HEADS(zt_page_rank_heads_f32_l2, float, l2)
ZT_PAGE_RANK_HEADS(zt_page_rank_heads_f16_l2, __half, l2)

// Fast form, second launch: grid (batch).
extern "C" __global__ void __launch_bounds__(1024, 1)
    zt_join_heads(const float* __restrict__ head_scores, const float* __restrict__ variances, int heads, int tokens,
                  int filter_heads, int root_mean_square, float variance_min, float variance_max,
                  float* __restrict__ scores) {
    const zt::HeadFilter filter = {filter_heads != 0, variance_min, variance_max};
    zt::join_heads(head_scores, variances, heads, tokens, filter, root_mean_square != 0, scores);
}

// Single-launch form: grid (batch), no workspace.
#define ZT_SINGLE_PAGE_RANK(name, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024, 1)                                                             \
        name(const T* __restrict__ attention, const float* __restrict__ survivors, int heads, int tokens,             \
             int iterations, int boost, int filter_heads, int root_mean_square, int lanes, int groups,                \
             float* __restrict__ scores) {                                                                            \
        const zt::HeadFilter filter = {filter_heads != 0, ZT_VARIANCE_MIN, ZT_VARIANCE_MAX};                          \
        zt::page_rank_of_image<T>(attention, survivors, heads, tokens, iterations, boost, filter,                     \
                                  root_mean_square != 0, lanes, groups, scores);                                      \
    }

ZT_SINGLE_PAGE_RANK(zt_weighted_page_rank_f32, float)
ZT_SINGLE_PAGE_RANK(zt_weighted_page_rank_f16, __half)

// The same without survivors, for callers that cannot pass a null pointer.
#define ZT_SINGLE_PAGE_RANK_ALL(name, T)                                                                              \
    extern "C" __global__ void __launch_bounds__(1024, 1)                                                             \
        name(const T* __restrict__ attention, int heads, int tokens, int iterations, int boost, int filter_heads,     \
             int root_mean_square, int lanes, int groups, float* __restrict__ scores) {                               \
        const zt::HeadFilter filter = {filter_heads != 0, ZT_VARIANCE_MIN, ZT_VARIANCE_MAX};                          \
        zt::page_rank_of_image<T>(attention, nullptr, heads, tokens, iterations, boost, filter,                       \
                                  root_mean_square != 0, lanes, groups, scores);                                      \
    }

ZT_SINGLE_PAGE_RANK_ALL(zt_weighted_page_rank_all_f32, float)
ZT_SINGLE_PAGE_RANK_ALL(zt_weighted_page_rank_all_f16, __half)

// Grid (batch), no workspace.
#define ZT_SIMILARITY_PRUNE(name, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(512)                                                                 \
        name(const float* __restrict__ scores, const T* __restrict__ keys, int heads, int tokens, int width,          \
             int drop, int prefix_tokens, int tile, float* __restrict__ survivors) {                                  \
        zt::similarity_prune<T>(scores, keys, heads, tokens, width, drop, prefix_tokens, tile, survivors);            \
    }

ZT_SIMILARITY_PRUNE(zt_similarity_prune_f32, float)
ZT_SIMILARITY_PRUNE(zt_similarity_prune_f16, __half)
