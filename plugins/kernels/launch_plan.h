// How a kernel is launched, as pure functions of shapes and of the device's shared memory: for the TensorRT adapter,
// and for the tests on a CPU. Plain C++11: no CUDA, no standard headers.
#pragma once

#ifdef __CUDACC__
#define ZT_HOST_DEVICE __host__ __device__
#else
#define ZT_HOST_DEVICE
#endif

namespace zt {

// What every CUDA device gives a block without being asked.
constexpr int DEFAULT_SHARED_BYTES = 48 * 1024;
constexpr int MAX_THREADS = 1024;
constexpr int WARP = 32;
constexpr int MAX_TOKENS = 16384;  // within a matrix, 32-bit indices do; more fits no device's shared memory anyway

ZT_HOST_DEVICE constexpr int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }
ZT_HOST_DEVICE constexpr int round_up(int value, int multiple) { return ceil_div(value, multiple) * multiple; }
ZT_HOST_DEVICE constexpr int larger(int a, int b) { return a > b ? a : b; }
ZT_HOST_DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

// ---------------------------------------------------------------------------------------------- weighted page rank

enum class PageRankPath {
    none,    // the vectors alone don't fit: more than about 2000 tokens in 48 KB
    shared,  // the attention matrix is copied to shared memory once
    l2,      // the attention matrix is read again in each iteration, from the L2 cache
    single,  // as l2, but one block per image loops over the heads: one launch, no workspace
};

struct PageRankPlan {
    PageRankPath path;
    int threads;       // per block
    int lanes;         // neighbouring threads that share a row of A
    int groups;        // how many rows are read at a time; lanes * groups <= threads
    int shared_bytes;  // dynamic shared memory
};

// The quads that a row spans, wherever in a quad it starts: a thread reads 4 elements at once.
ZT_HOST_DEVICE constexpr int row_quads(int tokens) { return (tokens + 6) / 4; }

// Groups beyond these cost more where their partial votes are added up than they save.
constexpr int MAX_GROUPS = 32;

// Bytes that hold a copy of one head's matrix. It keeps the original's position within 16 bytes, hence the slack.
ZT_HOST_DEVICE constexpr int matrix_bytes(int tokens, int element_bytes) {
    return round_up(tokens * tokens * element_bytes + 16, 16);
}

// Floats: the vector, the joined heads, a partial sum per group (also the scratch of reductions), a mass per group.
ZT_HOST_DEVICE constexpr int page_rank_floats(int tokens, int threads, int groups) {
    return 2 * tokens + larger(groups * tokens, threads) + groups;
}

ZT_HOST_DEVICE inline int page_rank_threads(int tokens) {
    const int quads = row_quads(tokens) * tokens;
    return quads >= 4096 ? 1024 : quads >= 1024 ? 512 : quads >= 256 ? 256 : 128;
}

// Chooses how threads share the matrix, within `floats` of shared memory; `path` is none where nothing fits.
ZT_HOST_DEVICE inline PageRankPlan split_rows(int tokens, int threads, int floats) {
    PageRankPlan best = {PageRankPath::none, threads, 0, 0, 0};
    int best_cost = 0;
    for (int lanes = WARP; lanes <= threads; lanes += WARP) {
        // Groups step over rows by their number; a multiple of 4 keeps each group's rows in step with quads.
        int groups = smaller(threads / lanes, MAX_GROUPS) / 4 * 4;
        while (groups > 0 && page_rank_floats(tokens, threads, groups) > floats) groups -= 4;
        if (groups < 1) continue;
        // Quads per thread, by all warps; then partial votes, by the few warps that have a token each.
        const int cost = ceil_div(row_quads(tokens), lanes) * ceil_div(tokens, groups) + groups / 2;
        if (best_cost == 0 || cost < best_cost) {
            best_cost = cost;
            best.path = PageRankPath::l2;
            best.lanes = lanes;
            best.groups = groups;
            best.shared_bytes = page_rank_floats(tokens, threads, groups) * 4;
        }
    }
    return best;
}

// `shared_limit`: bytes of dynamic shared memory that a block may have (with the opt-in, where that is used).
ZT_HOST_DEVICE inline PageRankPlan page_rank_plan_for(PageRankPath path, int tokens, int element_bytes,
                                                      int shared_limit) {
    const bool copies = path == PageRankPath::shared;
    const bool fits = tokens >= 1 && tokens <= MAX_TOKENS;
    const int matrix = fits && copies ? matrix_bytes(tokens, element_bytes) : 0;
    const int left = fits && shared_limit > matrix ? (shared_limit - matrix) / 4 : 0;
    const int rows = fits ? tokens : 1;
    PageRankPlan plan = split_rows(rows, page_rank_threads(rows), left);
    if (plan.path == PageRankPath::none) return plan;
    plan.path = path;
    plan.shared_bytes += matrix;
    return plan;
}

// The fast form. A matrix that is read only once gains nothing from a copy.
ZT_HOST_DEVICE inline PageRankPlan page_rank_plan(int tokens, int element_bytes, int iterations, int shared_limit) {
    if (iterations > 1) {
        const PageRankPlan plan = page_rank_plan_for(PageRankPath::shared, tokens, element_bytes, shared_limit);
        if (plan.path != PageRankPath::none) return plan;
    }
    return page_rank_plan_for(PageRankPath::l2, tokens, element_bytes, shared_limit);
}

// The single-launch form, which takes no workspace.
ZT_HOST_DEVICE inline PageRankPlan single_page_rank_plan(int tokens, int element_bytes) {
    return page_rank_plan_for(PageRankPath::single, tokens, element_bytes, DEFAULT_SHARED_BYTES);
}

// Bytes of the fast form's workspace: fp32 scores [B, H, N], then variances [B, H].
ZT_HOST_DEVICE inline unsigned long long page_rank_workspace(int batch, int heads, int tokens) {
    return 4ULL * batch * heads * (tokens + 1ULL);
}

ZT_HOST_DEVICE inline int join_threads(int tokens) { return smaller(round_up(tokens, WARP), MAX_THREADS); }

// ------------------------------------------------------------------------------------------------ similarity prune

constexpr int MAX_WIDTH = 128;       // of a head
constexpr int TILE_B = 32;           // tokens of group B at a time
constexpr int MAX_TILE_A = 256;      // tokens of group A at a time
constexpr int THREADS_PER_ROW = 16;  // that read one token's keys

struct SimilarityPlan {
    int threads;       // per block; 0 where the kernel can't: a head wider than 128, or too many tokens for the memory
    int tile;          // tokens of group A that are held at a time
    int shared_bytes;  // dynamic shared memory
};

// Floats from one token's feature to the next: 4 more than the width, so that 8 rows fall on different banks.
ZT_HOST_DEVICE constexpr int feature_stride(int width) { return round_up(width, 4) + 4; }

ZT_HOST_DEVICE constexpr int group_a_size(int tokens, int prefix_tokens) {
    return larger(tokens - prefix_tokens, 0) / 2;
}

// Features of both tiles (16-byte aligned, hence first), partial lengths of one slice, the order, group A's values.
ZT_HOST_DEVICE constexpr int similarity_bytes(int tokens, int width, int tile) {
    return 4 * ((tile + TILE_B) * feature_stride(width) + TILE_B * THREADS_PER_ROW + 2 * tokens);
}

// Larger tiles of A mean fewer passes over B; group A held whole is the "shared" path.
ZT_HOST_DEVICE inline SimilarityPlan similarity_plan(int tokens, int prefix_tokens, int width, int shared_limit) {
    SimilarityPlan plan = {0, 0, 0};
    if (tokens < 1 || tokens > MAX_TOKENS || width < 1 || width > MAX_WIDTH) return plan;
    int tile = smaller(round_up(larger(group_a_size(tokens, prefix_tokens), 1), TILE_B), MAX_TILE_A);
    while (tile > 0 && similarity_bytes(tokens, width, tile) > shared_limit) tile -= TILE_B;
    if (tile < TILE_B) return plan;
    // A thread holds a 4 x 4 patch of tile x TILE_B similarities.
    plan.threads = tile * TILE_B / 16;
    plan.tile = tile;
    plan.shared_bytes = similarity_bytes(tokens, width, tile);
    return plan;
}

}  // namespace zt
