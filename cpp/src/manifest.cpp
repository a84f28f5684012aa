// From the JSON of a manifest to records; ztdeploy/core/manifest.py says what its fields mean. Only what a runner needs
// is read, and each value that is read is checked.
#include "bundle.h"
#include "json.h"
#include "text.h"

#include <algorithm>
#include <limits>
#include <utility>

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
    if (const auto found = node.find_or_null("bit_depth")) {
        spec.bit_depth = static_cast<int>(found->whole(9, 16));
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
    model.width = static_cast<int>(sizes.at("embed_dim").whole(1, 1 << 20));
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
    if (const auto precision = node.find("precision")) {
        constexpr double tolerances[] = { 1e-4, 3e-2, 2e-1, 2e-1 };
        graph.tolerance = tolerances[precision->one_of({ "fp32", "fp16", "bf16", "int8" })];
    }
    if (const auto drift = node.find_or_null("drift")) {
        graph.drift = drift->at("median_logit_difference").number();
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

void read_part(const Node& node, Part& part)
{
    for (const auto& [profile, graph] : node.at("graphs").table()) {
        part.graphs.emplace(name_of(profile, graph), graph_of(graph));
    }
    for (const auto& [profile, engine] : node.at("engines").table()) {
        part.engines.emplace(name_of(profile, engine), engine_of(engine));
    }
}

Variant variant_of(const Node& node)
{
    Variant variant;
    variant.name = name_of(node.at("name").text(), node.at("name"));
    read_part(node, variant);
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
    return variant;
}

// A piece of a variant has a name that no variant can have.
void read_piece(const Node& node, Part& piece)
{
    piece.name = node.at("name").text();
    const std::string own = piece.name.substr(std::min<std::size_t>(1, piece.name.size()));
    if (piece.name[0] != '_' || own.find('_') == 0 || own.size() > 80
        || own.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789._-") != std::string::npos || own.empty()) {
        node.at("name").refuse("it is no name of a piece");
    }
    read_part(node, piece);
}

std::vector<double> numbers_of(const Node& node, double least, double most, std::size_t count)
{
    std::vector<double> numbers;
    for (const Node& one : node.list()) {
        numbers.push_back(one.number());
        if (!(numbers.back() >= least && numbers.back() <= most)) {
            one.refuse("it is no number from " + general(least) + " to " + general(most));
        }
    }
    if (count == 0 ? numbers.empty() : numbers.size() != count) {
        node.refuse("it holds another number of values than there are stages");
    }
    return numbers;
}

CascadeSetting setting_of(const Node& node, std::size_t stages)
{
    constexpr double all_go_on = 2; // a threshold above every confidence
    CascadeSetting setting;
    setting.thresholds = numbers_of(node.at("thresholds"), 0, all_go_on, stages - 1);
    setting.shares = numbers_of(node.at("shares"), 0, 1, stages);
    setting.quantiles = numbers_of(node.at("quantiles"), 0, all_go_on, 0);
    if (setting.shares[0] != 1 || !std::is_sorted(setting.shares.rbegin(), setting.shares.rend())) {
        node.at("shares").refuse("they do not fall from 1");
    }
    if (!std::is_sorted(setting.quantiles.begin(), setting.quantiles.end())) {
        node.at("quantiles").refuse("they do not rise");
    }
    setting.data = node.at("guarantee").at("data").text();
    setting.images = static_cast<int>(node.at("guarantee").at("images").whole(1, std::numeric_limits<int>::max()));
    return setting;
}

Golden golden_of(const Node& node)
{
    Golden golden;
    golden.images = node.at("images").list().size();
    golden.pixels = path_of(node.at("pixels"));
    for (const auto& [variant, file] : node.at("outputs").table()) {
        golden.outputs[variant] = path_of(file);
    }
    if (golden.images == 0) {
        node.at("images").refuse("it holds none");
    }
    return golden;
}

CascadeRecord cascade_of(const Node& node)
{
    CascadeRecord cascade;
    cascade.block = static_cast<int>(node.at("block").whole(0, 1 << 10));
    cascade.margins = node.at("signal").one_of({ "margin", "closeness" }) == 0;
    read_piece(node.at("prefix"), cascade.prefix);
    for (const Node& one : node.at("stages").list()) {
        Stage stage;
        read_piece(one, stage);
        stage.variant = one.at("variant").text();
        cascade.stages.push_back(std::move(stage));
    }
    if (cascade.stages.size() < 2) {
        node.at("stages").refuse("it holds no two stages");
    }
    if (const auto settings = node.find("settings")) {
        for (const auto& [profile, setting] : settings->table()) {
            cascade.settings.emplace(name_of(profile, setting), setting_of(setting, cascade.stages.size()));
        }
    }
    return cascade;
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

// Everything that has graphs and engines.
std::vector<const Part*> parts_of(const Manifest& manifest)
{
    std::vector<const Part*> parts;
    for (const Variant& variant : manifest.variants) {
        parts.push_back(&variant);
    }
    for (const Part* const piece : manifest.cascade ? manifest.cascade->pieces() : std::vector<const Part*>()) {
        parts.push_back(piece);
    }
    return parts;
}

// Stages are different variants, the baseline last, cut in front of the first layer of any; the signal is of the model's
// kind of output.
std::string contradiction_of_cascade(const Manifest& manifest)
{
    const CascadeRecord& cascade = *manifest.cascade;
    std::set<std::string> pieces { cascade.prefix.name }, stages;
    int block = std::numeric_limits<int>::max();
    bool right = true, baseline = false;
    for (const Stage& stage : cascade.stages) {
        const auto variant = std::find_if(manifest.variants.begin(), manifest.variants.end(),
            [&](const Variant& one) { return one.name == stage.variant; });
        right = right && variant != manifest.variants.end() && pieces.insert(stage.name).second
            && stages.insert(stage.variant).second;
        baseline = right && variant->layers.empty();
        block = right && !baseline ? std::min(block, variant->layers[0].block) : block;
    }
    if (!right || !baseline) {
        return "has a cascade of other stages than its variants, the baseline last";
    }
    if (cascade.block != block) {
        return "has a cascade that is not cut in front of its first pruning layer";
    }
    if (cascade.margins != (manifest.model.output == Output::logits)) {
        return "has a cascade of another kind of confidence than its model's output";
    }
    const auto known = [&](const auto& setting) {
        return std::any_of(manifest.profiles.begin(), manifest.profiles.end(),
            [&](const Profile& profile) { return profile.name == setting.first; });
    };
    const bool all = std::all_of(cascade.settings.begin(), cascade.settings.end(), known);
    return all ? "" : "has a cascade that decides for a profile that it lacks";
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

std::vector<const Part*> CascadeRecord::pieces() const
{
    std::vector<const Part*> all { &prefix };
    for (const Stage& stage : stages) {
        all.push_back(&stage);
    }
    return all;
}

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
    manifest.golden = golden_of(root.at("golden"));
    if (const auto cascade = root.find_or_null("cascade")) {
        manifest.cascade = cascade_of(*cascade);
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
    used.insert(manifest.golden.pixels);
    for (const auto& [variant, file] : manifest.golden.outputs) {
        used.insert(file);
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
        if (manifest.golden.outputs.count(variant.name) == 0) {
            return "has no golden outputs of '" + variant.name + "'";
        }
        const std::string wrong = contradiction_of_plan(variant, manifest.model);
        if (!wrong.empty()) {
            return wrong;
        }
    }
    for (const Part* const part : parts_of(manifest)) {
        const auto has_graph = [&](const Profile& profile) { return part->graphs.count(profile.name) == 1; };
        bool same = std::all_of(manifest.profiles.begin(), manifest.profiles.end(), has_graph)
            && part->graphs.size() == manifest.profiles.size();
        for (const auto& [profile, engine] : part->engines) {
            same = same && part->graphs.count(profile) == 1;
            used.insert(engine.file);
            used.insert(engine.weights.value_or(engine.file));
        }
        if (!same) {
            return "has other profiles than the graphs and engines of '" + part->name + "'";
        }
        for (const auto& [profile, graph] : part->graphs) {
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
    return manifest.cascade ? contradiction_of_cascade(manifest) : "";
}

} // namespace ztdeploy
