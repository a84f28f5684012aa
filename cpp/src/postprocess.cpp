#include "postprocess.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ztdeploy {
namespace {

// The probability of each output, in fp64; the values themselves where they are no probabilities.
std::vector<double> likeliness(const float* logits, std::size_t count, Activation activation)
{
    std::vector<double> values(logits, logits + count);
    if (activation == Activation::sigmoid) {
        for (double& value : values) { // exp of the logarithm, as in Python: finite for all finite logits
            value = std::exp(-(std::max(0.0, -value) + std::log1p(std::exp(-std::fabs(value)))));
        }
    } else if (activation == Activation::softmax) {
        const double largest = *std::max_element(values.begin(), values.end());
        double sum = 0;
        for (const double value : values) {
            sum += std::exp(value - largest);
        }
        for (double& value : values) {
            value = std::exp(value - largest - std::log(sum));
        }
    }
    return values;
}

} // namespace

std::vector<Label> top_labels(const float* logits, const std::vector<std::string>& names, std::size_t top,
    Activation activation, std::optional<double> threshold)
{
    const std::size_t count = names.size(), shown = std::min(top, count);
    if (shown == 0) {
        return {};
    }
    const std::vector<double> likely = likeliness(logits, count, activation);
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(shown), order.end(),
        [&](int one, int other) { return likely[one] != likely[other] ? likely[one] > likely[other] : one < other; });
    std::vector<Label> labels;
    for (std::size_t rank = 0; rank < shown; ++rank) {
        const int index = order[rank];
        Label label { index, names[index], {}, logits[index] };
        if (activation != Activation::none) {
            label.probability = likely[index];
        }
        if (!threshold || !label.probability || *label.probability >= *threshold) {
            labels.push_back(label);
        }
    }
    return labels;
}

std::vector<std::vector<std::int32_t>> kept_patches(
    const std::vector<std::vector<std::int32_t>>& kept, const std::vector<Layer>& layers, std::size_t image, int prefix_tokens)
{
    std::vector<std::vector<std::int32_t>> patches;
    std::vector<std::int32_t> tokens; // in terms of those that entered the first layer
    for (std::size_t layer = 0; layer < kept.size(); ++layer) {
        const auto length = static_cast<std::size_t>(layers[layer].tokens_out);
        std::vector<std::int32_t> left(kept[layer].begin() + static_cast<std::ptrdiff_t>(image * length),
            kept[layer].begin() + static_cast<std::ptrdiff_t>((image + 1) * length));
        if (layer > 0) {
            for (std::int32_t& token : left) {
                token = tokens[static_cast<std::size_t>(token)]; // it was checked to be one of these
            }
        }
        tokens = std::move(left);
        patches.emplace_back();
        for (std::size_t at = static_cast<std::size_t>(prefix_tokens); at < length; ++at) {
            patches.back().push_back(tokens[at] - prefix_tokens);
        }
    }
    return patches;
}

} // namespace ztdeploy
