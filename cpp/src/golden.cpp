#include "golden.h"

#include "arrays.h"
#include "text.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>

namespace ztdeploy {
namespace {

// Of scores in a gap that rounding may close, and of logits by precision; as ztdeploy/target/runtime/parity.py has them.
constexpr float gap_tolerance = 1e-5F;
constexpr double exact_tolerance = 1e-4, drift_factor = 3;

std::string brief(double value)
{
    char text[32];
    std::snprintf(text, sizeof text, "%.0e", value);
    return text;
}

std::map<std::string, Array> arrays_of(Bundle& bundle, const std::string& name)
{
    bundle.verify(name);
    return read_arrays(bundle.path(name));
}

// The numbers of a golden array, of so many values for each image.
template <class Number>
std::vector<Number> numbers_of(
    const std::map<std::string, Array>& arrays, const std::string& name, const char* type, std::size_t images, std::size_t each)
{
    const auto found = arrays.find(name);
    const bool right = found != arrays.end() && found->second.type == type && !found->second.shape.empty()
        && found->second.shape[0] == images && found->second.bytes.size() == images * each * sizeof(Number);
    if (!right) {
        throw Error(bundle_error, "golden outputs without '" + name + "' of " + std::to_string(images) + " images",
            std::to_string(each) + " values for each", "build the bundle again");
    }
    std::vector<Number> numbers(images * each);
    std::memcpy(numbers.data(), found->second.bytes.data(), found->second.bytes.size());
    return numbers;
}

// By image: whether a layer chose as PyTorch did.
std::vector<bool> same_rows(const std::vector<std::int32_t>& one, const std::vector<std::int32_t>& other, std::size_t images)
{
    const std::size_t each = one.size() / images;
    std::vector<bool> same(images);
    for (std::size_t at = 0; at < images; ++at) {
        same[at] = std::equal(&one[at * each], &one[at * each] + each, &other[at * each]);
    }
    return same;
}

Error differs(const Variant& variant, const std::string& what, const std::string& expected)
{
    return { parity_error, "'" + variant.name + "': " + what, expected, "run: ztdeploy verify, which says more" };
}

// Which images are still alike behind all layers; in fp32 others must have been as good as ties.
std::vector<bool> alike(const Variant& variant, const std::map<std::string, Array>& arrays, const Outputs& found,
    std::size_t images, bool exact)
{
    std::vector<bool> all(images, true);
    std::size_t merging = 0;
    for (std::size_t at = 0; at < variant.layers.size(); ++at) {
        const Layer& layer = variant.layers[at];
        const std::string block = "." + std::to_string(layer.block);
        const auto wanted = numbers_of<std::int32_t>(arrays, "kept" + block, "<i4", images, found.kept[at].size() / images);
        const auto gaps = numbers_of<float>(arrays, "gap" + block, "<f4", images, 1);
        std::vector<bool> same = same_rows(found.kept[at], wanted, images);
        if (layer.merges) {
            const auto& own = found.into[merging++];
            const auto slots = numbers_of<std::int32_t>(arrays, "into" + block, "<i4", images, own.size() / images);
            const std::vector<bool> also = same_rows(own, slots, images);
            std::transform(same.begin(), same.end(), also.begin(), same.begin(), std::logical_and<>());
        }
        for (std::size_t image = 0; image < images; ++image) {
            if (exact && all[image] && !same[image] && !(gaps[image] <= gap_tolerance)) {
                throw differs(variant,
                    "the pruning layer at block " + std::to_string(layer.block + 1) + " keeps other tokens of golden image "
                        + std::to_string(image + 1),
                    "those that PyTorch keeps");
            }
            all[image] = all[image] && same[image];
        }
    }
    return all;
}

} // namespace

std::vector<std::uint8_t> golden_pixels(Bundle& bundle)
{
    const Golden& golden = bundle.manifest().golden;
    const auto arrays = arrays_of(bundle, golden.pixels);
    return numbers_of<std::uint8_t>(arrays, "", "|u1", golden.images, bundle.manifest().preprocess.bytes());
}

Checked check_golden(Bundle& bundle, const Variant& variant, const Graph& graph, const Outputs& found)
{
    const Golden& golden = bundle.manifest().golden;
    const auto arrays = arrays_of(bundle, golden.outputs.at(variant.name));
    const std::size_t images = golden.images, each = found.output.size() / images;
    const auto wanted = numbers_of<float>(arrays, "logits", "<f4", images, each);
    const bool exact = graph.tolerance <= exact_tolerance;
    const std::vector<bool> same = alike(variant, arrays, found, images, exact);
    double scale = bundle.manifest().model.output == Output::maps ? 1e-6 : 1.0;
    std::vector<double> differences;
    for (std::size_t image = 0; image < images; ++image) {
        double largest = 0;
        for (std::size_t at = image * each; at < (image + 1) * each; ++at) {
            scale = std::max(scale, std::fabs(static_cast<double>(wanted[at])));
            largest = std::max(largest, std::fabs(static_cast<double>(found.output[at]) - wanted[at]));
        }
        if (same[image] || !exact) {
            differences.push_back(largest);
        }
    }
    if (differences.empty()) {
        throw differs(variant, "every golden image is a tie", "one with a clear-cut choice");
    }
    std::sort(differences.begin(), differences.end());
    const double judged = exact ? differences.back() : differences[differences.size() / 2];
    const double tolerance = std::max(graph.tolerance * scale, drift_factor * graph.drift);
    if (!(judged <= tolerance)) {
        throw differs(variant, "outputs differ by " + brief(judged), "at most " + brief(tolerance));
    }
    const auto identical = static_cast<std::size_t>(std::count(same.begin(), same.end(), true));
    return { variant.name, images, identical, judged, tolerance };
}

} // namespace ztdeploy
