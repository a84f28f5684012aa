// From the JSON of a manifest to records; ztdeploy/core/manifest.py says what its fields mean. Only what a runner needs
// is read, and each value that is read is checked.
#include "bundle.h"
#include "json.h"
#include "text.h"

#include <algorithm>
#include <limits>

namespace ztdeploy {
namespace {

constexpr std::int64_t most_tokens = 1 << 24, most_bytes = std::int64_t { 1 } << 31;

// Relative, POSIX, the shortest form, without "..".
std::string path_inside(const std::string& path, const Node& where)
{
    bool inside = !path.empty() && path.size() <= 1024 && path.find_first_of("\\:") == std::string::npos
        && path.find('\0') == std::string::npos && printable(path) == path;
    for (std::size_t begin = 0; inside && begin <= path.size();) {
        const std::size_t end = std::min(path.find('/', begin), path.size());
        const std::string part = path.substr(begin, end - begin);
        inside = !part.empty() && part != "." && part != ".." && part.size() <= 255;
        begin = end + 1;
    }
    if (!inside) {
        where.refuse("the path leaves the bundle, or is none that a bundle has");
    }
    return path;
}

std::string path_of(const Node& node)
{
    return path_inside(node.text(), node);
}

std::optional<std::string> path_or_none(const Node& node, const char* key)
{
    const std::optional<Node> found = node.find_or_null(key);
    return found ? std::optional(path_of(*found)) : std::nullopt;
}

std::string name_of(const std::string& text, const Node& where)
{
    const std::string first = "abcdefghijklmnopqrstuvwxyz0123456789";
    const bool right = !text.empty() && text.size() <= 64 && first.find(text[0]) != std::string::npos;
    if (!right || text.find_first_not_of(first + "._-") != std::string::npos) {
        where.refuse("it is no name of a variant or a profile");
    }
    return text;
}

std::string sha256_of(const Node& node)
{
    const std::string text = node.text();
    if (text.size() != 64 || text.find_first_not_of("0123456789abcdef") != std::string::npos) {
        node.refuse("it is no sha256");
    }
    return text;
}

// A side, or "HEIGHTxWIDTH".
Size size_of(const Node& node, int largest)
{
    if (!node.is_text()) {
        const int side = static_cast<int>(node.whole(1, largest));
        return { side, side };
    }
    const std::string text = node.text();
    const auto side = [&](const std::string& digits) {
        const bool right = !digits.empty() && digits.size() <= 5 && digits.find_first_not_of("0123456789") == std::string::npos;
        const int length = right ? std::stoi(digits) : 0;
        if (length < 1 || length > largest) {
            node.refuse("it is no image size up to " + std::to_string(largest));
        }
        return length;
    };
    const std::size_t cross = text.find('x');
    const int height = side(text.substr(0, cross));
    return { height, cross == std::string::npos ? height : side(text.substr(cross + 1)) };
}

std::vector<float> per_channel(const Node& node, bool positive)
{
    std::vector<float> values;
    for (const Node& one : node.list()) {
        const double value = one.number();
        if (positive && !(value > 0)) {
            one.refuse("it is not above 0");
        }
        values.push_back(static_cast<float>(value));
    }
    if (values.empty() || values.size() > 64) {
        node.refuse("it holds no 1 to 64 channels");
    }
    return values;
}

Preprocess preprocess_of(const Node& node)
{
    Preprocess spec;
    spec.image = size_of(node.at("image_size"), 4096);
    spec.resize = size_of(node.at("resize"), 8192);
    if (const auto found = node.find("interpolation")) {
        spec.interpolation = static_cast<Interpolation>(found->one_of({ "nearest", "bilinear", "bicubic", "lanczos" }));
    }
    if (const auto found = node.find("crop_mode")) {
        spec.squash = found->one_of({ "center", "squash" }) == 1;
    }
    if (const auto found = node.find("crop_rounding")) {
        spec.round_crop_down = found->one_of({ "even", "down" }) == 1;
    }
    spec.mean = per_channel(node.at("mean"), false);
    spec.std = per_channel(node.at("std"), true);
    if (spec.mean.size() != spec.std.size()) {
        node.at("std").refuse("it has other channels than the mean");
    }
    return spec;
}

Model model_of(const Node& node)
{
    const Node sizes = node.at("architecture");
    Model model;
    model.classes = static_cast<int>(sizes.at("num_classes").whole(0, most_tokens));
    model.patches = static_cast<int>(sizes.at("patch_tokens").whole(1, most_tokens));
    model.prefix_tokens = static_cast<int>(sizes.at("prefix_tokens").whole(0, 1 << 16));
    model.depth = static_cast<int>(sizes.at("depth").whole(1, 1 << 10));
    if (const auto found = node.find("output")) {
        model.output = static_cast<Output>(found->one_of({ "logits", "embedding", "features", "maps" }));
    }
    if (model.output == Output::logits && model.classes == 0) {
        model.output = Output::embedding; // a model without classes, whatever an older version wrote down
    }
    if (const auto found = node.find("activation")) {
        model.activation = static_cast<Activation>(found->one_of({ "softmax", "sigmoid", "none" }));
    }
    if (const auto shape = node.find_or_null("map_shape")) {
        for (const Node& side : shape->list()) {
            model.map_shape.push_back(side.whole(1, 1 << 16));
        }
    }
    if (model.map_shape.size() != (model.output == Output::maps ? 3U : 0U)) {
        node.refuse("map_shape belongs to the output 'maps', as [C, h, w], and to no other");
    }
    if (model.output == Output::maps) {
        model.classes = static_cast<int>(model.map_shape[0]); // that have names
    }
    return model;
}

Layer layer_of(const Node& node)
{
    Layer layer;
    layer.block = static_cast<int>(node.at("block").whole(0, 1 << 10));
    layer.tokens_in = static_cast<int>(node.at("tokens_in").whole(1, 2 * most_tokens));
    layer.tokens_out = static_cast<int>(node.at("tokens_out").whole(1, 2 * most_tokens));
    layer.prefix_tokens = static_cast<int>(node.at("prefix_tokens").whole(0, 1 << 16));
    const auto merges = node.find("merges");
    layer.merges = merges && merges->flag();
    return layer;
}

Graph graph_of(const Node& node)
{
    Graph graph;
    graph.file = path_of(node.at("file"));
    graph.plugin_file = path_or_none(node, "plugin_file");
    graph.takes_bytes = node.at("image_input").one_of({ "float32", "uint8" }) == 1;
    if (const auto batch = node.find_or_null("batch")) {
        graph.batch = static_cast<int>(batch->whole(1, 65536));
    }
    return graph;
}

Engine engine_of(const Node& node)
{
    const Node bound = node.at("fingerprint");
    Engine engine;
    engine.backend = node.at("backend").text();
    engine.file = path_of(node.at("file"));
    engine.weights = path_or_none(node, "weights");
    engine.graph_sha256 = bound.at("graph_sha256").text();
    engine.runtime = bound.at("runtime").text();
    engine.runtime_version = bound.at("runtime_version").text();
    if (const auto plugins = bound.find_or_null("plugins")) {
        engine.plugins = plugins->text();
    }
    return engine;
}

Variant variant_of(const Node& node)
{
    Variant variant;
    variant.name = name_of(node.at("name").text(), node.at("name"));
    for (const Node& layer : node.at("plan").at("layers").list()) {
        variant.layers.push_back(layer_of(layer));
    }
    if (const auto ratio = node.at("schedule").find_or_null("keep_ratio")) {
        const double value = ratio->number();
        if (!(value > 0 && value <= 1)) {
            ratio->refuse("it is not above 0, and at most 1");
        }
        variant.keep_ratio = value;
    }
    if (variant.layers.empty()) {
        variant.keep_ratio = variant.keep_ratio.value_or(1.0);
    } else if (variant.keep_ratio == 1.0) {
        variant.keep_ratio.reset(); // the baseline's alone
    }
    for (const auto& [profile, graph] : node.at("graphs").table()) {
        variant.graphs.emplace(name_of(profile, graph), graph_of(graph));
    }
    for (const auto& [profile, engine] : node.at("engines").table()) {
        variant.engines.emplace(name_of(profile, engine), engine_of(engine));
    }
    return variant;
}

Profile profile_of(const std::string& name, const Node& node)
{
    Profile profile;
    profile.name = name_of(name, node);
    profile.backend = node.at("backend").text();
    profile.threads = static_cast<int>(node.whole("threads", 0, 1024, 0));
    if (const auto batch = node.find("batch")) {
        for (const Node& size : batch->at("sizes").list()) {
            profile.largest_batch = std::max(profile.largest_batch, static_cast<int>(size.whole(1, 65536)));
        }
    }
    return profile;
}

std::string contradiction_of_plan(const Variant& variant, const Model& model)
{
    int tokens = model.prefix_tokens + model.patches, block = -1;
    for (const Layer& layer : variant.layers) {
        const bool kept = layer.prefix_tokens == model.prefix_tokens && model.prefix_tokens <= layer.tokens_out;
        const bool follows = layer.tokens_in == tokens && tokens > layer.tokens_out && block < layer.block;
        if (!kept || !follows || layer.block >= model.depth) {
            return "has a plan of '" + variant.name + "' that cannot be at block " + std::to_string(layer.block + 1);
        }
        tokens = layer.tokens_out;
        block = layer.block;
    }
    return "";
}

} // namespace

Manifest manifest_of(const Node& root)
{
    Manifest manifest;
    manifest.model = model_of(root.at("model"));
    manifest.preprocess = preprocess_of(root.at("preprocess"));
    manifest.class_names = path_or_none(root, "class_names");
    for (const auto& [name, profile] : root.at("profiles").table()) {
        manifest.profiles.push_back(profile_of(name, profile));
    }
    manifest.default_variant = name_of(root.at("default_variant").text(), root.at("default_variant"));
    for (const Node& variant : root.at("variants").list()) {
        manifest.variants.push_back(variant_of(variant));
    }
    for (const auto& [name, record] : root.at("files").table()) {
        const auto bytes = record.at("bytes").whole(0, std::numeric_limits<std::int64_t>::max());
        manifest.files[path_inside(name, record)] = { sha256_of(record.at("sha256")), static_cast<std::uint64_t>(bytes) };
    }
    return manifest;
}

std::string contradiction(const Manifest& manifest)
{
    std::set<std::string> used, names;
    if (manifest.class_names) {
        used.insert(*manifest.class_names);
    }
    std::int64_t images = 1;
    bool baseline = false;
    for (const Profile& profile : manifest.profiles) {
        images = std::max<std::int64_t>(images, profile.largest_batch);
    }
    for (const Variant& variant : manifest.variants) {
        baseline = baseline || variant.layers.empty();
        if (!names.insert(variant.name).second) {
            return "has two variants '" + variant.name + "'";
        }
        const std::string wrong = contradiction_of_plan(variant, manifest.model);
        if (!wrong.empty()) {
            return wrong;
        }
        const auto has_graph = [&](const Profile& profile) { return variant.graphs.count(profile.name) == 1; };
        bool same = std::all_of(manifest.profiles.begin(), manifest.profiles.end(), has_graph)
            && variant.graphs.size() == manifest.profiles.size();
        for (const auto& [profile, engine] : variant.engines) {
            same = same && variant.graphs.count(profile) == 1;
            used.insert(engine.file);
            used.insert(engine.weights.value_or(engine.file));
        }
        if (!same) {
            return "has other profiles than the graphs and engines of '" + variant.name + "'";
        }
        for (const auto& [profile, graph] : variant.graphs) {
            used.insert(graph.file);
            used.insert(graph.plugin_file.value_or(graph.file));
            images = std::max<std::int64_t>(images, graph.batch.value_or(1));
        }
    }
    const auto unlisted = std::find_if(
        used.begin(), used.end(), [&](const std::string& name) { return manifest.files.count(name) == 0; });
    if (unlisted != used.end()) {
        return "refers to '" + *unlisted + "' without listing it";
    }
    if (names.count(manifest.default_variant) == 0) {
        return "lacks its default variant '" + manifest.default_variant + "'";
    }
    if (!baseline) {
        return "has no dense variant";
    }
    if (images * static_cast<std::int64_t>(manifest.preprocess.bytes()) > most_bytes) {
        return "asks for " + std::to_string(images) + " images of its size at a time";
    }
    return "";
}

} // namespace ztdeploy
