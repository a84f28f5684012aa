// The attributes of the two operators; plugins/README.md says what they mean.
//
// `visit` names each attribute once. Reading, listing and serialising all go through it, so that they cannot differ.
#pragma once

#include <cstdint>
#include <limits>

namespace ztdeploy {

inline constexpr std::int32_t kNoLimit = std::numeric_limits<std::int32_t>::max();

struct PageRankSettings {
    std::int32_t iterations = 1;
    std::int32_t boost = 0;
    std::int32_t filter_heads = 0;
    float variance_min = 0.0F;
    float variance_max = 0.0F;
    std::int32_t root_mean_square = 0;

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor& visitor)
    {
        visitor("iterations", self.iterations, 1, kNoLimit);
        visitor("boost", self.boost, 0, 2);
        visitor("filter_heads", self.filter_heads, 0, 1);
        visitor("variance_min", self.variance_min);
        visitor("variance_max", self.variance_max);
        visitor("root_mean_square", self.root_mean_square, 0, 1);
    }

    // What no single attribute shows; a null pointer where all is well.
    const char* contradiction() const
    {
        const bool empty = filter_heads == 1 && variance_min > variance_max;
        return empty ? "variance_min is above variance_max, so no head could ever count" : nullptr;
    }
};

struct PruneSettings {
    std::int32_t drop = 1;
    std::int32_t prefix_tokens = 0;

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor& visitor)
    {
        visitor("drop", self.drop, 1, kNoLimit);
        visitor("prefix_tokens", self.prefix_tokens, 0, kNoLimit);
    }

    const char* contradiction() const { return nullptr; }
};

} // namespace ztdeploy
