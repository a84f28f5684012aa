// The kernels behind plain C functions: arrays in, arrays out, 0 or an error code back.
#define ZT_CPU_SHIM
#include "shim.h"

#include <mutex>
#include <string>

namespace {
// On a GPU these are compiled in; tests want to choose.
float variance_min_now, variance_max_now;
}  // namespace
#define ZT_VARIANCE_MIN variance_min_now
#define ZT_VARIANCE_MAX variance_max_now

#include "../kernels/kernels.cuh"

namespace {

std::mutex one_at_a_time;
std::string skipped_file;

void start(int order, unsigned seed) {
    zt_cpu::state.error = zt_cpu::NONE;
    zt_cpu::state.message[0] = 0;
    zt_cpu::state.order = static_cast<zt_cpu::Order>(order);
    zt_cpu::state.random = seed;
}

int refuse(const char* what) {
    std::snprintf(zt_cpu::state.message, sizeof(zt_cpu::state.message), "%s", what);
    return zt_cpu::BAD_ARGUMENT;
}

struct PageRank {
    const void* attention;
    const float* survivors;
    int batch, heads, tokens, iterations, boost, filter_heads, root_mean_square;
    float variance_min, variance_max;
    float* scores;
};

template <typename T>
using WithSurvivors = void (*)(const T*, const float*, int, int, int, int, int, int, int, int, float*);
template <typename T>
using WithoutSurvivors = void (*)(const T*, int, int, int, int, int, int, int, int, float*);

template <typename T>
void single_launch(const PageRank& job, const zt::PageRankPlan& plan, WithSurvivors<T> some, WithoutSurvivors<T> all) {
    const auto* attention = static_cast<const T*>(job.attention);
    variance_min_now = job.variance_min;
    variance_max_now = job.variance_max;
    zt_cpu::launch({unsigned(job.batch), 1, 1}, plan.threads, plan.shared_bytes, [&] {
        if (job.survivors)
            some(attention, job.survivors, job.heads, job.tokens, job.iterations, job.boost, job.filter_heads,
                 job.root_mean_square, plan.lanes, plan.groups, job.scores);
        else
            all(attention, job.heads, job.tokens, job.iterations, job.boost, job.filter_heads, job.root_mean_square,
                plan.lanes, plan.groups, job.scores);
    });
}

template <typename T>
void two_launches(const PageRank& job, const zt::PageRankPlan& plan,
                  void (*heads_kernel)(const T*, const float*, int, int, int, int, int, int, float*, float*)) {
    const auto* attention = static_cast<const T*>(job.attention);
    std::vector<float> workspace(zt::page_rank_workspace(job.batch, job.heads, job.tokens) / 4, NAN);
    float* head_scores = workspace.data();
    float* variances = head_scores + std::size_t(job.batch) * job.heads * job.tokens;
    zt_cpu::launch({unsigned(job.heads), unsigned(job.batch), 1}, plan.threads, plan.shared_bytes, [&] {
        heads_kernel(attention, job.survivors, job.heads, job.tokens, job.iterations, job.boost, plan.lanes,
                     plan.groups, head_scores, variances);
    });
    if (zt_cpu::state.error) return;
    zt_cpu::launch({unsigned(job.batch), 1, 1}, zt::join_threads(job.tokens), 0, [&] {
        zt_join_heads(head_scores, variances, job.heads, job.tokens, job.filter_heads, job.root_mean_square,
                      job.variance_min, job.variance_max, job.scores);
    });
}

zt::PageRankPlan plan_page_rank(int path, int tokens, int element_bytes, int iterations, int shared_limit) {
    switch (path) {
        case 0: return zt::page_rank_plan(tokens, element_bytes, iterations, shared_limit);
        case 1: return zt::page_rank_plan_for(zt::PageRankPath::shared, tokens, element_bytes, shared_limit);
        case 2: return zt::page_rank_plan_for(zt::PageRankPath::l2, tokens, element_bytes, shared_limit);
        default: return zt::single_page_rank_plan(tokens, element_bytes);
    }
}

}  // namespace

extern "C" {

const char* zt_last_error() { return zt_cpu::state.message; }

// Lets all threads (thread < 0) or one miss a barrier, named by its source line; an empty file name undoes it.
void zt_skip_barrier(const char* file, int line, int thread) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    skipped_file = file;
    zt_cpu::state.skip_file = skipped_file.empty() ? nullptr : skipped_file.c_str();
    zt_cpu::state.skip_line = line;
    zt_cpu::state.skip_thread = thread;
}

// `path`: 0 the plan's choice, 1 shared, 2 l2, 3 single. Writes path (0: none fits), threads, lanes, groups, bytes.
void zt_page_rank_plan(int path, int tokens, int element_bytes, int iterations, int shared_limit, int* plan) {
    const zt::PageRankPlan made = plan_page_rank(path, tokens, element_bytes, iterations, shared_limit);
    const int values[] = {static_cast<int>(made.path), made.threads, made.lanes, made.groups, made.shared_bytes};
    for (int i = 0; i < 5; ++i) plan[i] = values[i];
}

// Writes threads (0: none fits), tile, bytes.
void zt_similarity_plan(int tokens, int prefix_tokens, int width, int shared_limit, int* plan) {
    const zt::SimilarityPlan made = zt::similarity_plan(tokens, prefix_tokens, width, shared_limit);
    const int values[] = {made.threads, made.tile, made.shared_bytes};
    for (int i = 0; i < 3; ++i) plan[i] = values[i];
}

// `attention`: fp32, or fp16 where half is 1. `survivors` may be null. `order`: 0 forward, 1 reverse, 2 shuffle.
int zt_weighted_page_rank(const void* attention, const float* survivors, int half, int batch, int heads, int tokens,
                          int iterations, int boost, int filter_heads, int root_mean_square, float variance_min,
                          float variance_max, int path, int shared_limit, int order, unsigned seed, float* scores) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    start(order, seed);
    const zt::PageRankPlan plan = plan_page_rank(path, tokens, half ? 2 : 4, iterations, shared_limit);
    if (plan.path == zt::PageRankPath::none) return refuse("no launch plan fits the shared memory");
    const PageRank job = {attention,    survivors,        batch,        heads,        tokens, iterations, boost,
                          filter_heads, root_mean_square, variance_min, variance_max, scores};
    if (plan.path == zt::PageRankPath::single && half)
        single_launch<__half>(job, plan, zt_weighted_page_rank_f16, zt_weighted_page_rank_all_f16);
    else if (plan.path == zt::PageRankPath::single)
        single_launch<float>(job, plan, zt_weighted_page_rank_f32, zt_weighted_page_rank_all_f32);
    else if (plan.path == zt::PageRankPath::shared && half)
        two_launches<__half>(job, plan, zt_page_rank_heads_f16_shared);
    else if (plan.path == zt::PageRankPath::shared)
        two_launches<float>(job, plan, zt_page_rank_heads_f32_shared);
    else if (half)
        two_launches<__half>(job, plan, zt_page_rank_heads_f16_l2);
    else
        two_launches<float>(job, plan, zt_page_rank_heads_f32_l2);
    return zt_cpu::state.error;
}

int zt_similarity_prune(const float* scores, const void* keys, int half, int batch, int heads, int tokens, int width,
                        int drop, int prefix_tokens, int shared_limit, int order, unsigned seed, float* survivors) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    start(order, seed);
    const zt::SimilarityPlan plan = zt::similarity_plan(tokens, prefix_tokens, width, shared_limit);
    if (plan.threads == 0) return refuse("no launch plan: a head wider than 128, or too many tokens for the memory");
    zt_cpu::launch({unsigned(batch), 1, 1}, plan.threads, plan.shared_bytes, [&] {
        if (half)
            zt_similarity_prune_f16(scores, static_cast<const __half*>(keys), heads, tokens, width, drop, prefix_tokens,
                                    plan.tile, survivors);
        else
            zt_similarity_prune_f32(scores, static_cast<const float*>(keys), heads, tokens, width, drop, prefix_tokens,
                                    plan.tile, survivors);
    });
    return zt_cpu::state.error;
}

}  // extern "C"
