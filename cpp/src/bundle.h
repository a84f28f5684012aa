// A bundle on disk: its manifest, read as untrusted input, and its files, held against their hashes.
#pragma once

#include "files.h"
#include "preprocess.h"
#include "signature.h"

#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace ztdeploy {

struct Layer {
    int block = 0; // counted from 0
    int tokens_in = 0, tokens_out = 0, prefix_tokens = 0;
    bool merges = false;
};

struct Graph {
    std::string file;
    std::optional<std::string> plugin_file;
    bool takes_bytes = true; // uint8 pixels; else they are normalised first
    std::optional<int> batch; // none: any
    double tolerance = 1e-4; // of outputs, by its precision
    double drift = 0;        // of the outputs of the median golden image, as found at build time
};

struct Engine {
    std::string backend, file;
    std::optional<std::string> weights; // its own
    std::string graph_sha256, runtime, runtime_version;
    std::optional<std::string> plugins;
};

// What has a graph and an engine of each profile: a variant, or a piece of one.
struct Part {
    std::string name;
    std::map<std::string, Graph> graphs;   // by profile
    std::map<std::string, Engine> engines; // by profile
};

struct Variant : Part {
    std::optional<double> keep_ratio; // 1 is the baseline
    std::vector<Layer> layers;
};

// The rest of a variant behind the blocks that all stages of a cascade share.
struct Stage : Part {
    std::string variant;
};

// How a cascade decides with the engines of a profile; ztdeploy/core/cascade.py says what these numbers mean.
struct CascadeSetting {
    std::vector<double> thresholds, shares, quantiles;
    std::string data; // the calibration images
    int images = 0;
};

struct CascadeRecord {
    int block = 0; // it is cut in front of this block
    bool margins = true; // the signal of classes; else that of vectors
    Part prefix;
    std::vector<Stage> stages;
    std::map<std::string, CascadeSetting> settings; // by profile

    std::vector<const Part*> pieces() const;
};

struct Profile {
    std::string name, backend;
    int threads = 0; // 0: as many as the process may use
    int largest_batch = 1;
};

struct Model {
    Output output = Output::logits;
    Activation activation = Activation::softmax;
    int classes = 0; // outputs that have names: those of a classifier, or the channels of a map
    int patches = 0, prefix_tokens = 0, depth = 0, width = 0;
    std::vector<std::int64_t> map_shape; // [C, h, w] of maps
};

// Known inputs, and the outputs of PyTorch by variant.
struct Golden {
    std::size_t images = 0;
    std::string pixels;
    std::map<std::string, std::string> outputs;
};

struct Manifest {
    Model model;
    Preprocess preprocess;
    std::optional<std::string> class_names;
    std::vector<Profile> profiles;
    std::string default_variant;
    std::vector<Variant> variants;
    std::optional<CascadeRecord> cascade;
    Golden golden;
    std::map<std::string, Digest> files;
};

extern const char* const weights_file;

class Bundle {
public:
    // Of a link, the folder that it leads to now. A signature by one of the keys is demanded, if there are keys, and
    // checked ahead of everything else. Throws Error.
    Bundle(const std::filesystem::path& folder, const std::vector<PublicKey>& signed_by);

    const Manifest& manifest() const { return manifest_; }
    const std::filesystem::path& folder() const { return folder_; }
    // Of a listed, regular file; where a signature is demanded, one that has changed is refused.
    std::filesystem::path path(const std::string& name) const;
    void verify(const std::string& name) const; // once; a file that has changed is refused
    const std::string& sha256(const std::string& name) const;

    const Variant& variant(const std::string& name) const;
    const Variant& variant(double keep_ratio) const;
    // The profile asked for, or the first with engines of this backend.
    const Profile& profile(const std::optional<std::string>& wanted, const std::string& backend) const;
    // The engine's own file, its graph and all weights: whatever is read to open it.
    std::vector<std::string> files_of(const Part& part, const std::string& profile) const;
    const Engine& engine(const Part& part, const std::string& profile) const;
    const std::string& source(const Part& part, const std::string& profile) const; // of the engine
    std::vector<std::string> class_names();
    // Throws Error where it has none that decides for this profile.
    const CascadeSetting& cascade_setting(const std::string& profile) const;

private:
    bool is_as_built(const std::string& name) const;
    std::filesystem::path place(const std::string& name) const;

    std::filesystem::path folder_;
    bool demanded_;
    Manifest manifest_;
    mutable std::set<std::string> verified_;
};

// The pieces of reading a manifest. They throw Damage.
class Node;
Manifest manifest_of(const Node& root);
// What it contradicts itself in, in words that follow its path; "": nothing.
std::string contradiction(const Manifest& manifest);

} // namespace ztdeploy
