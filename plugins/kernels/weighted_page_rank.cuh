// Weighted page rank over the attention graph: s <- m * (A^T s) per head, then the head filter and the join.
// Zero-TPrune, arXiv 2305.17328; the contract is in plugins/README.md.
#pragma once

#include "common.cuh"

namespace zt {

struct HeadFilter {
    bool on;
    float variance_min, variance_max;
};

// A variance that is not a number (no token is live) does not pass.
ZT_DEVICE bool passes(const HeadFilter& filter, float variance) {
    return !filter.on || (variance >= filter.variance_min && variance <= filter.variance_max);
}

// 1 for a token that takes part, 0 for one that is gone.
ZT_DEVICE float alive(Input<float> survivors, int token) { return survivors ? survivors[token] : 1.0f; }

// A block's shared memory for one head, and how its threads divide the matrix: `groups` rows at a time, each read by
// `lanes` neighbouring threads.
struct PageRankBlock {
    Shared<float> vector;   // [N]
    Shared<float> joined;   // [N], over heads; single-launch form only
    Shared<float> partial;  // [groups, N]: votes from each group's rows; also the scratch of reductions
    Shared<float> mass;     // [groups]: the sum of the vector over each group's rows
    int tokens, lanes, groups;
};

ZT_DEVICE PageRankBlock page_rank_block(int byte_offset, int tokens, int lanes, int groups) {
    const int partial = larger(groups * tokens, blockDim.x);
    const int floats = byte_offset + 4 * 2 * tokens;
    return {dynamic_shared<float>(byte_offset, tokens), dynamic_shared<float>(byte_offset + 4 * tokens, tokens),
            dynamic_shared<float>(floats, partial), dynamic_shared<float>(floats + 4 * partial, groups),
            tokens, lanes, groups};
}

// How many tokens are live: sum(m).
ZT_DEVICE float live_tokens(const PageRankBlock& block, Input<float> survivors) {
    if (!survivors) return float(block.tokens);
    float live = 0.0f;
    for (int token = threadIdx.x; token < block.tokens; token += blockDim.x) live += survivors[token];
    return block_sum(block.partial, live);
}

// How many rows of a matrix can be read in quads: one may reach up to 3 elements beyond its row, which the last rows of a
// tensor do not have behind them. `behind`: how many elements the tensor has behind the matrix.
ZT_DEVICE int whole_rows(int tokens, long long behind) {
    const int slack = behind < QUAD - 1 ? int(behind) : QUAD - 1;
    return larger(tokens * tokens + slack - (QUAD - 1), 0) / tokens;
}

ZT_DEVICE void add_votes(float4& votes, float4 quad, float weight) {
    votes.x = multiply_add(quad.x, weight, votes.x);
    votes.y = multiply_add(quad.y, weight, votes.y);
    votes.z = multiply_add(quad.z, weight, votes.z);
    votes.w = multiply_add(quad.w, weight, votes.w);
}

// Rows that a thread reads before it adds up the first one's votes: the loads do not wait for one another.
constexpr int AT_ONCE = 4;

// Fills block.partial and block.mass: the votes of each group's rows, and how many votes these rows hold.
//
// Rows of an odd N start at changing places within a quad. A group steps by a multiple of 4 rows, which keeps the place,
// so that a thread's quads stay aligned. What a quad holds beyond its row's ends is read and left aside: a branch for
// each load would make them wait for one another.
//
// `misaligned`: how many elements behind a quad's start the matrix begins. `whole`: how many rows can be read in quads.
template <typename T, typename Matrix>
ZT_DEVICE void gather_votes(const PageRankBlock& block, Matrix matrix, int misaligned, int whole) {
    const int tokens = block.tokens;
    const int group = threadIdx.x / block.lanes, lane = threadIdx.x - group * block.lanes;
    if (group >= block.groups) return;
    const int shift = (misaligned + group * tokens) % QUAD;
    for (int column = lane * QUAD - shift; column < tokens; column += block.lanes * QUAD) {
        float4 votes = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float mass = 0.0f;
        int row = group;
        for (; row + (AT_ONCE - 1) * block.groups < whole; row += AT_ONCE * block.groups) {
            float weights[AT_ONCE];
            float4 quads[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                weights[i] = block.vector[row + i * block.groups];
                quads[i] = load_quad<T>(matrix, (row + i * block.groups) * tokens + column);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                add_votes(votes, quads[i], weights[i]);
                mass += weights[i];
            }
        }
        for (; row < whole; row += block.groups) {
            const float weight = block.vector[row];
            add_votes(votes, load_quad<T>(matrix, row * tokens + column), weight);
            mass += weight;
        }
        float out[QUAD] = {votes.x, votes.y, votes.z, votes.w};
        for (; row < tokens; row += block.groups) {
            const float weight = block.vector[row];
            for (int k = 0; k < QUAD; ++k)
                if (column + k >= 0 && column + k < tokens)
                    out[k] = multiply_add(to_float(matrix[row * tokens + column + k]), weight, out[k]);
            mass += weight;
        }
        for (int k = 0; k < QUAD; ++k)
            if (column + k >= 0 && column + k < tokens) block.partial[group * tokens + column + k] = out[k];
        if (column <= 0) block.mass[group] = mass;  // the first quad of a row: one thread of each group
    }
}

// vector <- m * (sum of partial votes), scaled.
//
// Votes for tokens that are gone are lost in each iteration, and fp32 would run out of range. Dividing by the mean of
// the vector that voted, whose sum fell off while it was read, keeps the mean near 1 and costs no barrier.
ZT_DEVICE void finish_iteration(const PageRankBlock& block, Input<float> survivors, float live) {
    if (int(threadIdx.x) >= block.tokens) return;
    float mass = 0.0f;
    for (int group = 0; group < block.groups; ++group) mass += block.mass[group];
    const float scale = 1.0f / fmaxf(mass / live, TINY);
    for (int token = threadIdx.x; token < block.tokens; token += blockDim.x) {
        float votes = 0.0f;
        for (int group = 0; group < block.groups; ++group) votes += block.partial[group * block.tokens + token];
        block.vector[token] = alive(survivors, token) * (votes * scale);
    }
}

// Scales the vector to mean 1 over the live tokens; returns its variance over them.
ZT_DEVICE float scale_to_mean_one(const PageRankBlock& block, float live) {
    float own = 0.0f;
    for (int token = threadIdx.x; token < block.tokens; token += blockDim.x) own += block.vector[token];
    const float mean = fmaxf(block_sum(block.partial, own) / live, TINY);
    own = 0.0f;
    for (int token = threadIdx.x; token < block.tokens; token += blockDim.x) {
        const float scaled = block.vector[token] / mean;
        block.vector[token] = scaled;
        own = multiply_add(scaled, scaled, own);
    }
    return block_sum(block.partial, own) / live - 1.0f;
}

// Leaves a head's scores in block.vector, where each thread reads back only what it wrote; returns their variance.
template <typename T, typename Matrix>
ZT_DEVICE float rank_head(const PageRankBlock& block, Matrix matrix, int misaligned, int whole,
                          Input<float> survivors, float live, int iterations, int boost) {
    const float first = boost == 0 ? 1.0f : boost == 1 ? sqrtf(float(block.tokens)) : float(block.tokens);
    for (int token = threadIdx.x; token < block.tokens; token += blockDim.x)
        block.vector[token] = alive(survivors, token) * (token == 0 ? first : 1.0f);
    __syncthreads();
    for (int iteration = 0; iteration < iterations; ++iteration) {
        gather_votes<T>(block, matrix, misaligned, whole);
        __syncthreads();
        finish_iteration(block, survivors, live);
        __syncthreads();
    }
    return scale_to_mean_one(block, live);
}

// Copies a matrix to shared memory at the same place within 16 bytes, which it returns in elements. The elements before
// that place come along: they belong to the head before. The last 16 bytes are filled up with 0.
template <typename T>
ZT_DEVICE int copy_matrix(Shared<T> copy, Input<T> attention, long long first, int elements) {
    constexpr int chunk = 16 / sizeof(T);
    const int place = int(first % chunk), end = place + elements;
#pragma unroll 4
    for (int i = threadIdx.x * chunk; i < end; i += blockDim.x * chunk) {
        if (i + chunk <= end) {
            copy_16_bytes(copy, i, attention, first + (i - place));
        } else {
            for (int k = i; k < i + chunk; ++k) copy[k] = k < end ? attention[first + (k - place)] : T{};
        }
    }
    return place;
}

// One block per (head, image): grid (H, B).
template <typename T, PageRankPath path>
ZT_DEVICE void page_rank_of_head(const T* __restrict__ attention_, const float* __restrict__ survivors_, int heads,
                                 int tokens, int iterations, int boost, int lanes, int groups,
                                 float* __restrict__ head_scores_, float* __restrict__ variances_) {
    const int image = blockIdx.y, batch = gridDim.y;
    const long long head = (long long)image * heads + blockIdx.x, size = (long long)tokens * tokens;
    const Input<T> attention = input(attention_, batch * heads * size);
    const Input<float> survivors = input(survivors_ ? survivors_ + (long long)image * tokens : nullptr, tokens);
    const Output<float> head_scores = output(head_scores_ + head * tokens, tokens);
    const Output<float> variances = output(variances_, batch * heads);

    constexpr bool copies = path == PageRankPath::shared;
    const PageRankBlock block = page_rank_block(copies ? matrix_bytes(tokens, sizeof(T)) : 0, tokens, lanes, groups);
    float live, variance;
    if constexpr (copies) {
        const Shared<T> copy = dynamic_shared<T>(0, matrix_bytes(tokens, sizeof(T)) / sizeof(T));
        const int place = copy_matrix(copy, attention, head * size, tokens * tokens);
        live = live_tokens(block, survivors);  // its barriers, or the one before the iterations, also end the copy
        variance = rank_head<T>(block, copy + place, place % QUAD, tokens, survivors, live, iterations, boost);
    } else {
        live = live_tokens(block, survivors);
        const int whole = whole_rows(tokens, (batch * heads - head - 1) * size);
        variance = rank_head<T>(block, attention + head * size, int(head * size % QUAD), whole, survivors, live,
                                iterations, boost);
    }
    for (int token = threadIdx.x; token < tokens; token += blockDim.x) head_scores[token] = block.vector[token];
    if (threadIdx.x == 0) variances[head] = variance;
}

// The head filter and the join of scaled scores: grid (B).
ZT_DEVICE void join_heads(const float* __restrict__ head_scores_, const float* __restrict__ variances_, int heads,
                          int tokens, HeadFilter filter, bool root_mean_square, float* __restrict__ scores_) {
    const long long image = blockIdx.x;
    const Input<float> head_scores = input(head_scores_ + image * heads * tokens, (long long)heads * tokens);
    const Input<float> variances = input(variances_ + image * heads, heads);
    const Output<float> scores = output(scores_ + image * tokens, tokens);
    int counting = 0;
    for (int head = 0; head < heads; ++head) counting += passes(filter, variances[head]);
    const bool all = counting == 0;
    if (all) counting = heads;
    for (int token = threadIdx.x; token < tokens; token += blockDim.x) {
        float joined = 0.0f;
        for (int head = 0; head < heads; ++head) {
            if (!all && !passes(filter, variances[head])) continue;
            const float score = head_scores[head * tokens + token];
            joined += root_mean_square ? score * score : score;
        }
        joined /= float(counting);
        scores[token] = root_mean_square ? sqrtf(joined) : joined;
    }
}

// One block per image, heads one after another: grid (B).
template <typename T>
ZT_DEVICE void page_rank_of_image(const T* __restrict__ attention_, const float* __restrict__ survivors_, int heads,
                                  int tokens, int iterations, int boost, HeadFilter filter, bool root_mean_square,
                                  int lanes, int groups, float* __restrict__ scores_) {
    const int image = blockIdx.x;
    const long long size = (long long)tokens * tokens, first = (long long)image * heads * size;
    const Input<T> attention = input(attention_, gridDim.x * heads * size);
    const Input<float> survivors = input(survivors_ ? survivors_ + (long long)image * tokens : nullptr, tokens);
    const Output<float> scores = output(scores_ + (long long)image * tokens, tokens);
    const PageRankBlock block = page_rank_block(0, tokens, lanes, groups);
    const float live = live_tokens(block, survivors);
    int counting = 0;
    bool passed = false;  // all heads are joined until the first one passes; then only those that pass
    for (int head = 0; head < heads; ++head) {
        const long long start = first + head * size;
        const float variance = rank_head<T>(block, attention + start, int(start % QUAD),
                                            whole_rows(tokens, gridDim.x * heads * size - start - size), survivors,
                                            live, iterations, boost);
        const bool pass = passes(filter, variance);
        if (passed && !pass) continue;
        const bool restart = head == 0 || (pass && !passed);
        passed = pass;
        counting = restart ? 1 : counting + 1;
        for (int token = threadIdx.x; token < tokens; token += blockDim.x) {
            const float score = block.vector[token], value = root_mean_square ? score * score : score;
            block.joined[token] = restart ? value : block.joined[token] + value;
        }
    }
    for (int token = threadIdx.x; token < tokens; token += blockDim.x) {
        const float joined = block.joined[token] / float(counting);
        scores[token] = root_mean_square ? sqrtf(joined) : joined;
    }
}

}  // namespace zt
