#include "cascade.h"

#include "text.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <utility>

namespace ztdeploy {
namespace {

// Confidence is compared with the calibration images' after so many images, and each time that there are twice as many;
// after the last number counting starts again. One look takes like images for unlike ones so often at first.
constexpr std::size_t first_look = 32, last_look = 1024;
constexpr double level = 0.005;

// The one-sided test of Kolmogorov and Smirnov, as in ztdeploy/target/adaptive/guarantee.py.
bool unlike(std::vector<float> confidence, const CascadeSetting& setting, double chance)
{
    std::sort(confidence.begin(), confidence.end());
    const auto seen = static_cast<double>(confidence.size()), count = static_cast<double>(setting.quantiles.size());
    double apart = -1;
    for (std::size_t at = 0; at < setting.quantiles.size(); ++at) {
        const auto above = std::upper_bound(confidence.begin(), confidence.end(), setting.quantiles[at]);
        const auto below = static_cast<double>(above - confidence.begin());
        apart = std::max(apart, below / seen - (static_cast<double>(at) + 0.5) / count);
    }
    return apart - 0.5 / count > std::sqrt(-std::log(chance) / 2 * (1 / seen + 1.0 / setting.images));
}

std::string percent(double share)
{
    char text[32];
    std::snprintf(text, sizeof text, "%.0f %%", 100 * share);
    return text;
}

// The interfaces of all pieces: images go into the first, and tokens into the others.
std::vector<Interface> interfaces_of(const Bundle& bundle, const std::string& profile)
{
    const Manifest& manifest = bundle.manifest();
    const CascadeRecord& cascade = *manifest.cascade;
    const Graph& graph = cascade.prefix.graphs.at(profile);
    const std::int64_t batch = graph.batch.value_or(-1);
    const TensorFacts tokens { "tokens", Type::float32,
        { batch, manifest.model.prefix_tokens + manifest.model.patches, manifest.model.width } };
    std::vector<Interface> all { interface_of(manifest, {}, graph) };
    all[0].name = cascade.prefix.name;
    all[0].output = tokens;
    for (const Stage& stage : cascade.stages) {
        Interface tail = interface_of(manifest, bundle.variant(stage.variant), graph);
        tail.input = tokens;
        if (&stage != &cascade.stages.back()) {
            tail.confidence = TensorFacts { "confidence", Type::float32, { batch } };
        }
        all.push_back(std::move(tail));
    }
    return all;
}

} // namespace

Cascade::Cascade(const Bundle& bundle, const Profile& profile, const Opener& open)
    : setting_(bundle.cascade_setting(profile.name))
{
    const CascadeRecord& cascade = *bundle.manifest().cascade;
    std::vector<Interface> interfaces = interfaces_of(bundle, profile.name);
    for (const Part* const piece : cascade.pieces()) {
        parts_.emplace_back(std::move(interfaces[parts_.size()]), open(*piece));
    }
    for (const Stage& stage : cascade.stages) {
        variants_.push_back(&bundle.variant(stage.variant));
    }
    most_ = static_cast<std::size_t>(cascade.prefix.graphs.at(profile.name).batch.value_or(profile.largest_batch));
    counts_.resize(cascade.stages.size());
}

std::vector<std::string> Cascade::variants() const
{
    std::vector<std::string> names;
    for (const Variant* const variant : variants_) {
        names.push_back(variant->name);
    }
    return names;
}

std::vector<float> Cascade::prefix(const std::uint8_t* inputs, std::size_t images) const
{
    std::vector<float> tokens;
    for (std::size_t start = 0; start < images; start += most_) {
        const auto raw = parts_[0].run(inputs + start * parts_[0].input_bytes(), std::min(most_, images - start));
        const std::vector<float> part = parts_[0].numbers(raw, parts_[0].interface().output);
        tokens.insert(tokens.end(), part.begin(), part.end());
    }
    return tokens;
}

Cascade::Sure Cascade::tail(std::size_t stage, const std::vector<float>& tokens, std::size_t images) const
{
    const OpenPart& part = parts_[stage + 1];
    const auto* const inputs = reinterpret_cast<const std::uint8_t*>(tokens.data());
    Sure all;
    for (std::size_t start = 0; start < images; start += most_) {
        const auto raw = part.run(inputs + start * part.input_bytes(), std::min(most_, images - start));
        append(all.outputs, part.outputs(raw));
        if (part.interface().confidence) {
            const std::vector<float> sure = part.numbers(raw, *part.interface().confidence);
            all.confidence.insert(all.confidence.end(), sure.begin(), sure.end());
        }
    }
    return all;
}

std::vector<Answered> Cascade::run(const std::uint8_t* inputs, std::size_t images)
{
    std::vector<float> tokens = prefix(inputs, images), first;
    std::vector<std::size_t> left(images);
    std::iota(left.begin(), left.end(), std::size_t { 0 });
    std::vector<Answered> all;
    for (std::size_t stage = 0; stage < variants_.size() && !left.empty(); ++stage) {
        const Sure found = tail(stage, tokens, left.size());
        const bool last = stage + 1 == variants_.size();
        std::vector<std::size_t> stays, goes_on, places, others;
        for (std::size_t at = 0; at < left.size(); ++at) { // thresholds are compared in fp32, as NumPy does
            const bool sure = last || found.confidence[at] >= static_cast<float>(setting_.thresholds[stage]);
            (sure ? stays : goes_on).push_back(at);
            (sure ? places : others).push_back(left[at]);
        }
        if (!stays.empty()) {
            all.push_back({ some_of(found.outputs, left.size(), stays), places, variants_[stage], static_cast<int>(stage) });
        }
        if (stage == 0) {
            first = found.confidence;
        }
        tokens = rows_of(tokens, left.size(), goes_on);
        left = others;
    }
    for (const Answered& one : all) {
        counts_[static_cast<std::size_t>(*one.stage)] += one.places.size();
    }
    look_at(first);
    return all;
}

void Cascade::look_at(const std::vector<float>& confidence)
{
    const std::size_t before = seen_.size();
    seen_.insert(seen_.end(), confidence.begin(), confidence.end());
    bool now = false;
    for (std::size_t look = first_look; look <= last_look; look *= 2) {
        now = now || (before < look && look <= seen_.size());
    }
    if (now && !warning_ && unlike(seen_, setting_, level / (rounds_ * rounds_))) {
        const std::size_t total = std::accumulate(counts_.begin(), counts_.end(), std::size_t { 0 });
        warning_ = "these images are unlike '" + printable(setting_.data) + "', on which the cascade was calibrated: "
            + std::to_string(total - counts_[0]) + " of " + std::to_string(total) + " went on from the first stage, where "
            + percent(setting_.shares[1])
            + " were expected; its bound on agreement is not promised for them; build again with --calib and images like these";
    }
    if (seen_.size() >= last_look) {
        seen_.clear();
        rounds_ += 1;
    }
}

} // namespace ztdeploy
