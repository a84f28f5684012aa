// Run a bundle of ztdeploy without Python: open it, pre-process RGB bytes, infer, read labels and kept tokens.
//
//     ztdeploy::Runner runner("quickstart");
//     ztdeploy::Prediction answer = runner({rgb, height, width});
//     std::puts(answer.labels.front().name.c_str());
//
// On the same pixels, outputs are those of the Python runner where both use the same version of the same runtime.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace ztdeploy {

// The version of the manifest that this library reads, and no other.
inline constexpr int schema_version = 5;

// An error with a remedy, as one line: "given; expected ...; fix". No character of it can harm a terminal.
class Error : public std::runtime_error {
public:
    Error(int exit_code, const std::string& given, const std::string& expected, const std::string& fix);

    // What the command exits with. 3: a request or an image that cannot be used. 4: a bundle that is damaged, too new or
    // too old, or points outside itself. 5: an engine gives what cannot be right. 6: something outside is missing.
    int exit_code() const noexcept { return exit_code_; }

private:
    int exit_code_;
};

// An upright image with 8 bits per channel, row by row, channels interleaved; it is only looked at.
struct ImageView {
    const std::uint8_t* data = nullptr;
    int height = 0;
    int width = 0;
    int channels = 3;
    std::size_t stride = 0; // bytes from row to row; 0: rows follow one another
};

enum class Memory {
    speed, // one engine is open at a time, its weights packed for its kernels
    shared // every engine that was used stays open, and all read one copy of the weights
};

struct Options {
    std::optional<std::string> profile; // default: the first whose engines this library's runtime runs
    std::optional<std::string> variant; // default: the bundle's default variant
    std::optional<double> keep_ratio;   // instead of a variant; 1 is the baseline
    bool cascade = false; // run the bundle's cascade: each image goes through as many stages as it needs
    std::optional<int> threads;         // default: the profile's, no more than the process may use
    Memory memory = Memory::speed;
    bool verify = true; // compare the sha256 of every file that is read with the manifest's
    // Public keys of minisign, as paths or base64, one of which must have signed the bundle; files are then always compared.
    // Default: those that the environment variable ZTDEPLOY_SIGNED_BY names, if any.
    std::vector<std::string> signed_by;
};

enum class Output { logits, embedding, features, maps };
enum class Activation { softmax, sigmoid, none };

struct Label {
    int index = 0;
    std::string name;
    std::optional<double> probability; // by softmax or sigmoid; none where outputs are values
    float value = 0;                   // what the head gave
};

// What the model says about one image.
struct Prediction {
    std::vector<Label> labels;      // best first; empty where the model has no classes
    std::vector<float> output;      // row-major, of this shape
    std::vector<std::size_t> shape; // logits [classes], embedding [D], features [P, D], maps [C, h, w]
    // Per pruning layer, the kept patches as indices into the image's grid of patches, counted row by row.
    std::vector<std::vector<std::int32_t>> kept;
    std::optional<int> stage; // of a cascade: the one that answered, counted from 0
};

// Raw outputs of one call, row-major, for B images.
struct Outputs {
    std::vector<float> output;
    std::vector<std::size_t> shape; // of one image, as in Prediction
    // Per pruning layer [B, k]: indices into the tokens that entered that layer.
    std::vector<std::vector<std::int32_t>> kept;
    // Per merging layer [B, N - k]: the slots of the other tokens, ascending; -1: dropped.
    std::vector<std::vector<std::int32_t>> into;
    // Of a cascade [B]: the stage that answered. Its stages keep different tokens: see Prediction.
    std::vector<int> stage;
};

// What a variant gave to the bundle's known inputs, against PyTorch at build time.
struct Checked {
    std::string variant;
    std::size_t images = 0, identical = 0; // of all: those for which every layer chose the same tokens
    double difference = 0, tolerance = 0;  // of outputs
};

// One bundle's engines behind one call. Calls of one Runner must not overlap; give each thread its own.
class Runner {
public:
    // Throws Error.
    explicit Runner(const std::filesystem::path& bundle, const Options& options = {});
    ~Runner();
    Runner(Runner&&) noexcept;
    Runner& operator=(Runner&&) noexcept;

    // Run on one image or several. `threshold` is the least probability of a label. Throws Error.
    Prediction operator()(const ImageView& image, std::size_t top = 5, std::optional<double> threshold = {});
    std::vector<Prediction> operator()(
        const std::vector<ImageView>& images, std::size_t top = 5, std::optional<double> threshold = {});

    // Run another variant from now on, by name or by keep ratio. Throws Error; the runner then stays on the one before.
    void switch_variant(const std::string& name);
    void switch_keep_ratio(double keep_ratio);

    // What the model sees of an image, [H, W, C] of `input_shape`: resized and cropped, not yet normalised.
    std::vector<std::uint8_t> pixels(const ImageView& image) const;
    // Run the variant on the bundle's known inputs, and hold its outputs against PyTorch's. Throws Error where they differ by
    // more than rounding explains.
    Checked check();
    // Run on such pixels of several images, one after the other. Throws Error.
    Outputs infer(const std::uint8_t* pixels, std::size_t images);

    std::array<int, 3> input_shape() const; // [H, W, C]
    int bit_depth() const; // how many bits of its images' 16 the model was built for; whoever decodes files must know
    Output gives() const;
    Activation activation() const;
    const std::string& variant() const; // "cascade" of a cascade
    std::vector<std::string> variants() const;
    const std::string& profile() const;
    int threads() const;

    // Of a cascade: the variants of its stages, the cheapest first, and how many images each has answered so far.
    std::vector<std::string> stages() const;
    std::vector<std::size_t> counts() const;
    // None, or that images are unlike those that the cascade was calibrated on, and what that means.
    std::optional<std::string> warning() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

// The runtime that this library was built with, such as "onnxruntime 1.32.0".
std::string runtime();

} // namespace ztdeploy
