#include "bundle.h"

#include "json.h"
#include "onnx_file.h"
#include "text.h"

#include <algorithm>
#include <cmath>
#include <system_error>

namespace ztdeploy {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t manifest_limit = std::uint64_t { 64 } << 20, names_limit = std::uint64_t { 64 } << 20;
constexpr std::int64_t any = std::int64_t { 1 } << 31;

std::string joined(const std::vector<std::string>& texts, const char* between)
{
    std::string all;
    for (const std::string& text : texts) {
        all += (all.empty() ? "" : between) + text;
    }
    return all;
}

std::string quoted(const fs::path& path)
{
    return "'" + path.string() + "'";
}

Error damaged(const std::string& given, const std::string& expected, const char* fix = "build the bundle again")
{
    return { bundle_error, given, expected, fix };
}

// The folder itself, or the one that a link leads to now: 'ztdeploy install' exchanges links.
fs::path resolved(const fs::path& folder)
{
    std::error_code code;
    const bool link = fs::symlink_status(folder, code).type() == fs::file_type::symlink;
    const fs::path found = link ? fs::canonical(folder, code) : folder;
    return code ? folder : found;
}

Manifest read_manifest(const fs::path& folder, const std::vector<PublicKey>& signed_by)
{
    const fs::path path = folder / "manifest.json";
    std::error_code code;
    if (fs::symlink_status(path, code).type() == fs::file_type::not_found || code) {
        throw Error(input_error, quoted(folder) + " has no manifest.json", "a folder that 'ztdeploy build' wrote",
            "check the path");
    }
    try {
        const std::string text = read_regular(path, manifest_limit);
        if (!signed_by.empty()) {
            check_signature(folder, text, signed_by);
        }
        const Document data(text);
        const auto version = data.root().at("schema_version").whole(-any, any);
        if (version != schema_version) {
            throw damaged(quoted(folder) + " has schema version " + std::to_string(version),
                "version " + std::to_string(schema_version),
                version > schema_version ? "upgrade this ztdeploy library" : "build the bundle again");
        }
        const Manifest manifest = manifest_of(data.root());
        const std::string wrong = contradiction(manifest);
        if (!wrong.empty()) {
            throw damaged(quoted(path) + " " + wrong, "a consistent manifest");
        }
        return manifest;
    } catch (const Damage& damage) {
        throw damaged(quoted(path) + " is damaged at " + damage.what(), "a manifest as built");
    } catch (const std::length_error& error) {
        throw damaged(quoted(path) + " is too large: " + error.what(), "a manifest as built");
    } catch (const std::system_error& error) {
        throw damaged("the manifest " + quoted(path) + " cannot be read (" + error.code().message() + ")",
            "a folder that 'ztdeploy build' wrote", "check the path");
    }
}

} // namespace

const char* const weights_file = "graphs/weights.safetensors";

Bundle::Bundle(const fs::path& folder, const std::vector<PublicKey>& signed_by)
    : folder_(resolved(folder))
    , demanded_(!signed_by.empty())
    , manifest_(read_manifest(folder_, signed_by))
{
}

const std::string& Bundle::sha256(const std::string& name) const
{
    return manifest_.files.at(name).sha256;
}

bool Bundle::is_as_built(const std::string& name) const
{
    const Digest found = digest_of(folder_ / name), &wanted = manifest_.files.at(name);
    return found.bytes == wanted.bytes && found.sha256 == wanted.sha256;
}

fs::path Bundle::path(const std::string& name) const
{
    if (demanded_) {
        verify(name);
    }
    return place(name);
}

fs::path Bundle::place(const std::string& name) const
{
    const fs::path path = folder_ / name;
    if (manifest_.files.count(name) == 0) {
        throw damaged("'" + name + "' of " + folder_.string(), "a file listed in the manifest");
    }
    try {
        check_regular(path);
    } catch (const std::system_error& error) {
        const bool missing = error.code() == std::errc::no_such_file_or_directory;
        const std::string what = missing ? " is missing" : " cannot be read: " + error.code().message();
        throw damaged(quoted(path) + what, "every file of the manifest", "copy the whole folder again");
    }
    const fs::path home = fs::canonical(folder_), real = fs::canonical(path);
    const auto [end, rest] = std::mismatch(home.begin(), home.end(), real.begin(), real.end());
    if (end != home.end() && !is_as_built(name)) { // hubs' clients lay folders out as links to the very files
        throw damaged(quoted(path) + " leads outside the bundle, to another file than the manifest's",
            "the bundle's own files", "do not use this bundle");
    }
    return path;
}

void Bundle::verify(const std::string& name) const
{
    if (verified_.count(name) == 1) {
        return;
    }
    const fs::path found = place(name);
    if (!is_as_built(name)) {
        throw damaged(quoted(found) + " has changed since the build", "sha256 " + sha256(name).substr(0, 12) + "...",
            "copy or build the bundle again");
    }
    verified_.insert(name);
}

const Variant& Bundle::variant(const std::string& name) const
{
    std::vector<std::string> names;
    for (const Variant& variant : manifest_.variants) {
        if (variant.name == name) {
            return variant;
        }
        names.push_back(variant.name);
    }
    throw Error(input_error, folder_.string() + " has no variant '" + name + "'", "one of: " + joined(names, ", "),
        "choose one of these, or build again with it");
}

const Variant& Bundle::variant(double keep_ratio) const
{
    std::vector<const Variant*> found;
    std::vector<std::string> names, have;
    for (const Variant& variant : manifest_.variants) {
        const double own = variant.keep_ratio.value_or(0);
        have.push_back(variant.keep_ratio ? general(own) : variant.name);
        if (variant.keep_ratio && std::fabs(keep_ratio - own) <= 1e-6 * std::max(std::fabs(keep_ratio), own)) {
            found.push_back(&variant);
            names.push_back(variant.name);
        }
    }
    if (found.empty()) {
        throw Error(input_error, folder_.string() + " has no keep ratio " + general(keep_ratio),
            "one of: " + joined(have, ", "), "choose one of these, or build again with it");
    }
    if (found.size() > 1 && !found[0]->layers.empty()) {
        throw Error(input_error,
            "keep ratio " + general(keep_ratio) + " of " + folder_.string() + ", which several variants have",
            "the name of one of them: " + joined(names, ", "), "choose by name, such as --variant " + names[0]);
    }
    return *found[0];
}

const Profile& Bundle::profile(const std::optional<std::string>& wanted, const std::string& backend) const
{
    std::vector<std::string> reasons, names;
    bool any_engine = false;
    for (const Profile& profile : manifest_.profiles) {
        names.push_back(profile.name);
        if (wanted && profile.name != *wanted) {
            continue;
        }
        const auto has_engine = [&](const Variant& variant) { return variant.engines.count(profile.name) == 1; };
        const bool built = std::any_of(manifest_.variants.begin(), manifest_.variants.end(), has_engine);
        if (wanted || (built && profile.backend == backend)) {
            return profile;
        }
        any_engine = any_engine || built;
        reasons.push_back(profile.name + (built ? ": it is for " + profile.backend : ": it has no engines"));
    }
    if (wanted) {
        throw Error(input_error, "profile '" + *wanted + "' of " + folder_.string(), "a profile in the bundle",
            "choose from: " + joined(names, ", "));
    }
    if (!any_engine) {
        throw Error(input_error, folder_.string() + " holds no engine", "at least one engine that this machine can run",
            "run on the device: ztdeploy finalize " + folder_.string());
    }
    throw Error(environment_error, "no engine of " + folder_.string() + " runs here: " + joined(reasons, "; "),
        "an engine of " + backend + ", which this library was built with",
        "build the bundle with such a profile, or this library with the other runtime");
}

const Engine& Bundle::engine(const Part& part, const std::string& profile) const
{
    const auto found = part.engines.find(profile);
    if (found == part.engines.end()) {
        throw Error(input_error,
            folder_.string() + " holds no engine for profile '" + profile + "' (it is built on the device)",
            "a profile with an engine", "run on the device: ztdeploy finalize " + folder_.string());
    }
    return found->second;
}

const std::string& Bundle::source(const Part& part, const std::string& profile) const
{
    const Graph& graph = part.graphs.at(profile);
    if (!engine(part, profile).plugins) {
        return graph.file;
    }
    if (!graph.plugin_file) {
        throw damaged("an engine with plugins for '" + part.name + "', whose graph has none",
            "the graph that it was built from", "run 'ztdeploy finalize' on the bundle");
    }
    return *graph.plugin_file;
}

std::vector<std::string> Bundle::files_of(const Part& part, const std::string& profile) const
{
    const Engine& own = engine(part, profile);
    const std::string& graph = source(part, profile);
    std::vector<std::string> files { own.file, graph, weights_file };
    if (own.weights) {
        files.push_back(*own.weights);
    }
    const bool is_graph = fs::path(own.file).extension() == ".onnx";
    const std::string opened = is_graph ? own.file : graph; // an engine may name its graph
    for (const auto& [location, least] : read_graph(path(opened))) {
        const std::string file = (fs::path(opened).parent_path() / location).string();
        const auto listed = manifest_.files.find(file);
        if (listed == manifest_.files.end() || listed->second.bytes < least) {
            throw damaged(quoted(folder_ / opened) + " reads " + std::to_string(least) + " bytes of '" + file + "'",
                "weights that the manifest lists, and no more than there are", "do not use this bundle");
        }
        files.push_back(file);
    }
    std::sort(files.begin(), files.end());
    files.erase(std::unique(files.begin(), files.end()), files.end());
    return files;
}

const CascadeSetting& Bundle::cascade_setting(const std::string& profile) const
{
    if (!manifest_.cascade) {
        throw Error(input_error, folder_.string() + " has no cascade", "a bundle that was built with one",
            "build with --cascade 0.99 --calib DIR");
    }
    const auto& settings = manifest_.cascade->settings;
    const auto found = settings.find(profile);
    if (found == settings.end()) {
        std::vector<std::string> names;
        for (const auto& [name, setting] : settings) {
            names.push_back(name);
        }
        throw Error(input_error, "the cascade of " + folder_.string() + " has no thresholds for profile '" + profile + "'",
            "one of: " + (names.empty() ? "none" : joined(names, ", ")), "build again where the engines of that profile run");
    }
    return found->second;
}

std::vector<std::string> Bundle::class_names()
{
    std::vector<std::string> names;
    if (!manifest_.class_names) {
        for (int index = 0; index < manifest_.model.classes; ++index) {
            names.push_back("class " + std::to_string(index));
        }
        return names;
    }
    const std::string text = read_regular(path(*manifest_.class_names), names_limit);
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = std::min(text.find('\n', begin), text.size());
        names.push_back(text.substr(begin, end - begin));
        if (!names.back().empty() && names.back().back() == '\r') {
            names.back().pop_back();
        }
        begin = end + 1;
    }
    const int classes = manifest_.model.classes;
    if (names.size() != static_cast<std::size_t>(classes)) {
        throw damaged("'" + *manifest_.class_names + "' names " + std::to_string(names.size()) + " classes",
            std::to_string(classes) + ", as the model has");
    }
    return names;
}

} // namespace ztdeploy
