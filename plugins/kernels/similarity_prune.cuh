// Drops near-duplicates among the less important tokens: the S-stage of Zero-TPrune, arXiv 2305.17328.
// The contract is in plugins/README.md.
#pragma once

#include "common.cuh"

namespace zt {

constexpr int PATCH = 4;                     // a thread compares 4 tokens of A with 4 of B
constexpr int PATCHES_B = TILE_B / PATCH;    // threads that share a row of the tile
constexpr float NO_MATCH = -3.402823466e38f; // below any similarity

struct SimilarityBlock {
    Shared<float> features;  // [tile + TILE_B, stride], unit length: tokens of A, then of B
    Shared<float> squares;   // [TILE_B, THREADS_PER_ROW]: parts of squared lengths
    Shared<int> order;       // [N]: tokens by importance
    Shared<unsigned> keys;   // [N]: scores, later group A's similarities, as sortable integers
    int tile, stride;
};

ZT_DEVICE SimilarityBlock similarity_block(int tokens, int width, int tile) {
    const int stride = feature_stride(width);
    const int squares = 4 * (tile + TILE_B) * stride, order = squares + 4 * TILE_B * THREADS_PER_ROW;
    return {dynamic_shared<float>(0, (tile + TILE_B) * stride),
            dynamic_shared<float>(squares, TILE_B * THREADS_PER_ROW),
            dynamic_shared<int>(order, tokens),
            dynamic_shared<unsigned>(order + 4 * tokens, tokens),
            tile,
            stride};
}

// How many of the `count` keys come before number `own` when the highest comes first and ties go to the lower index.
ZT_DEVICE int rank_of(Shared<unsigned> keys, int own, int count) {
    const unsigned key = keys[own];
    int rank = 0;
    for (int i = 0; i < own; ++i) rank += keys[i] >= key;
    for (int i = own + 1; i < count; ++i) rank += keys[i] > key;
    return rank;
}

// Orders tokens by score, the prefix first, by counting: no sort, and one tie rule.
ZT_DEVICE void order_tokens(const SimilarityBlock& block, Input<float> scores, int tokens, int prefix_tokens) {
    for (int token = threadIdx.x; token < tokens; token += blockDim.x) block.keys[token] = order_key(scores[token]);
    __syncthreads();
    // Prefix tokens hold the first places, in any order: all of them belong to group B.
    for (int token = threadIdx.x; token < tokens; token += blockDim.x) {
        const int rank = token < prefix_tokens
                             ? token
                             : prefix_tokens + rank_of(block.keys + prefix_tokens, token - prefix_tokens,
                                                       tokens - prefix_tokens);
        block.order[rank] = token;
    }
    __syncthreads();
}

// One image's keys: [H, N, d].
template <typename T>
struct Keys {
    Input<T> values;
    int heads, tokens, width;
};

// 4 neighbouring entries of a token's keys, averaged over heads; 0 beyond the head's width.
template <typename T>
ZT_DEVICE float4 mean_quad(const Keys<T>& keys, int token, int dim) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const long long head_step = (long long)keys.tokens * keys.width;
    long long at = (long long)token * keys.width + dim;
    const bool aligned = keys.width % 4 == 0;
#pragma unroll 4
    for (int head = 0; head < keys.heads; ++head, at += head_step) {
        float4 quad = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (aligned) {
            quad = load_quad<T>(keys.values, at);
        } else {
            quad.x = to_float(keys.values[at]);
            if (dim + 1 < keys.width) quad.y = to_float(keys.values[at + 1]);
            if (dim + 2 < keys.width) quad.z = to_float(keys.values[at + 2]);
            if (dim + 3 < keys.width) quad.w = to_float(keys.values[at + 3]);
        }
        sum.x += quad.x, sum.y += quad.y, sum.z += quad.z, sum.w += quad.w;
    }
    const float heads = float(keys.heads);
    return make_float4(sum.x / heads, sum.y / heads, sum.z / heads, sum.w / heads);
}

// Adds a dot product to a sum.
ZT_DEVICE float dot(float4 a, float4 b, float sum) {
    sum = multiply_add(a.x, b.x, sum);
    sum = multiply_add(a.y, b.y, sum);
    sum = multiply_add(a.z, b.z, sum);
    return multiply_add(a.w, b.w, sum);
}

// Puts the features of up to TILE_B tokens, places `from` to `to` of the order, into rows `row` and up of the tiles.
// Rows without a token are filled with 0.
template <typename T>
ZT_DEVICE void load_features(const SimilarityBlock& block, const Keys<T>& keys, int row, int from, int to) {
    const int part = threadIdx.x % THREADS_PER_ROW, rows_at_once = blockDim.x / THREADS_PER_ROW;
    for (int i = threadIdx.x / THREADS_PER_ROW; i < TILE_B; i += rows_at_once) {
        float squares = 0.0f;
        for (int dim = 4 * part; dim < keys.width; dim += 4 * THREADS_PER_ROW) {
            const float4 quad = from + i < to ? mean_quad(keys, block.order[from + i], dim) : make_float4(0, 0, 0, 0);
            squares = dot(quad, quad, squares);
            store_as(block.features, (row + i) * block.stride + dim, quad);
        }
        block.squares[i * THREADS_PER_ROW + part] = squares;
    }
    __syncthreads();
    for (int i = threadIdx.x / THREADS_PER_ROW; i < TILE_B; i += rows_at_once) {
        float squares = 0.0f;
        for (int k = 0; k < THREADS_PER_ROW; ++k) squares += block.squares[i * THREADS_PER_ROW + k];
        const float length = fmaxf(sqrtf(squares), 1e-12f);
        for (int dim = 4 * part; dim < keys.width; dim += 4 * THREADS_PER_ROW) {
            const int at = (row + i) * block.stride + dim;
            const float4 quad = load_as<float4>(block.features, at);
            store_as(block.features, at,
                     make_float4(quad.x / length, quad.y / length, quad.z / length, quad.w / length));
        }
    }
    __syncthreads();
}

// Raises best[k], the highest similarity so far of this thread's k-th token of A, by those of its 4 tokens of B.
//
// A thread's tokens are PATCHES_B (in B) or tile / 4 (in A) rows apart, so that neighbouring threads read neighbouring
// rows, which lie on different banks.
ZT_DEVICE void compare_patch(const SimilarityBlock& block, int width, int tokens_b, float (&best)[PATCH]) {
    const int row_a = threadIdx.x / PATCHES_B, row_b = threadIdx.x % PATCHES_B, step_a = block.tile / PATCH;
    float dots[PATCH][PATCH] = {};
    for (int dim = 0; dim < width; dim += 4) {
        float4 a[PATCH];
#pragma unroll
        for (int i = 0; i < PATCH; ++i)
            a[i] = load_as<float4>(block.features, (row_a + i * step_a) * block.stride + dim);
#pragma unroll
        for (int j = 0; j < PATCH; ++j) {
            const float4 b = load_as<float4>(block.features, (block.tile + row_b + j * PATCHES_B) * block.stride + dim);
#pragma unroll
            for (int i = 0; i < PATCH; ++i)
                dots[i][j] = dot(a[i], b, dots[i][j]);
        }
    }
#pragma unroll
    for (int j = 0; j < PATCH; ++j)
#pragma unroll
        for (int i = 0; i < PATCH; ++i)
            if (row_b + j * PATCHES_B < tokens_b) best[i] = fmaxf(best[i], dots[i][j]);
}

// For one tile of A, places `from` to `to` of the order: block.keys of each, from place 0 of group A on.
template <typename T>
ZT_DEVICE void match_tile(const SimilarityBlock& block, const Keys<T>& keys, int from, int to, int group_b) {
    for (int row = 0; row < block.tile; row += TILE_B) load_features(block, keys, row, from + row, to);
    float best[PATCH] = {NO_MATCH, NO_MATCH, NO_MATCH, NO_MATCH};
    for (int b = 0; b < group_b; b += TILE_B) {
        load_features(block, keys, block.tile, b, smaller(b + TILE_B, group_b));
        compare_patch(block, keys.width, group_b - b, best);
        __syncthreads();
    }
    // The features have served: their place holds the threads' results, PATCHES_B for each token.
    const int row_a = threadIdx.x / PATCHES_B, row_b = threadIdx.x % PATCHES_B, step_a = block.tile / PATCH;
    for (int i = 0; i < PATCH; ++i) block.features[(row_a + i * step_a) * PATCHES_B + row_b] = best[i];
    __syncthreads();
    for (int i = threadIdx.x; i < to - from; i += blockDim.x) {
        float highest = NO_MATCH;
        for (int k = 0; k < PATCHES_B; ++k) highest = fmaxf(highest, block.features[i * PATCHES_B + k]);
        block.keys[from - group_b + i] = order_key(highest);
    }
    __syncthreads();
}

// One block per image: grid (B).
template <typename T>
ZT_DEVICE void similarity_prune(const float* __restrict__ scores_, const T* __restrict__ keys_, int heads, int tokens,
                                int width, int drop, int prefix_tokens, int tile, float* __restrict__ survivors_) {
    const long long image = blockIdx.x, image_keys = (long long)heads * tokens * width;
    const Input<float> scores = input(scores_ + image * tokens, tokens);
    const Keys<T> keys = {input(keys_ + image * image_keys, image_keys), heads, tokens, width};
    const Output<float> survivors = output(survivors_ + image * tokens, tokens);
    const SimilarityBlock block = similarity_block(tokens, width, tile);
    const int group_a = group_a_size(tokens, prefix_tokens), group_b = tokens - group_a;
    order_tokens(block, scores, tokens, smaller(prefix_tokens, tokens));
    for (int from = group_b; from < tokens; from += tile)
        match_tile(block, keys, from, smaller(from + tile, tokens), group_b);
    for (int place = threadIdx.x; place < tokens; place += blockDim.x) {
        const bool gone = place >= group_b && rank_of(block.keys, place - group_b, group_a) < drop;
        survivors[block.order[place]] = gone ? 0.0f : 1.0f;
    }
}

}  // namespace zt
