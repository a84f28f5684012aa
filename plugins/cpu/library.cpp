// The kernels behind plain C functions: launch plans, and launches by a kernel's name as a GPU's driver takes them.
#define ZT_CPU_SHIM
#include "shim.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>

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

// Calls a kernel with arguments behind pointers, as cuLaunchKernel takes them.
template <typename... Arguments, std::size_t... index>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<index...>) {
    kernel(*static_cast<Arguments*>(arguments[index])...);
}
template <typename... Arguments>
void call(void (*kernel)(Arguments...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<Arguments...>());
}

#define ZT_ENTRY(name) {#name, [](void** arguments) { call(name, arguments); }}
const std::map<std::string, void (*)(void**)> KERNELS = {
    ZT_ENTRY(zt_join_heads),
    ZT_ENTRY(zt_page_rank_heads_f16_l2),
    ZT_ENTRY(zt_page_rank_heads_f16_shared),
    ZT_ENTRY(zt_page_rank_heads_f32_l2),
    ZT_ENTRY(zt_page_rank_heads_f32_shared),
    ZT_ENTRY(zt_similarity_prune_f16),
    ZT_ENTRY(zt_similarity_prune_f32),
    ZT_ENTRY(zt_weighted_page_rank_all_f16),
    ZT_ENTRY(zt_weighted_page_rank_all_f32),
    ZT_ENTRY(zt_weighted_page_rank_f16),
    ZT_ENTRY(zt_weighted_page_rank_f32),
};

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

// Launches one kernel by its name. `order`: 0 forward, 1 reverse, 2 shuffle. The limits of the head filter are those of
// the single-launch kernels, where a GPU has them compiled in.
int zt_launch(const char* name, unsigned grid_x, unsigned grid_y, int threads, int shared_bytes, void** arguments,
              int order, unsigned seed, float variance_min, float variance_max) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    zt_cpu::state.error = zt_cpu::NONE;
    zt_cpu::state.message[0] = 0;
    zt_cpu::state.order = static_cast<zt_cpu::Order>(order);
    zt_cpu::state.random = seed;
    variance_min_now = variance_min;
    variance_max_now = variance_max;
    const auto kernel = KERNELS.find(name);
    if (kernel == KERNELS.end()) {
        std::snprintf(zt_cpu::state.message, sizeof(zt_cpu::state.message), "there is no kernel '%s'", name);
        return zt_cpu::BAD_ARGUMENT;
    }
    zt_cpu::launch({grid_x, grid_y, 1}, threads, shared_bytes, [&] { kernel->second(arguments); });
    return zt_cpu::state.error;
}

}  // extern "C"
