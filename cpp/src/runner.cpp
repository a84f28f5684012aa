// What a Runner does: open a variant's engine or a cascade, and run images through it.
#include "bundle.h"
#include "cascade.h"
#include "engine.h"
#include "golden.h"
#include "interface.h"
#include "machine.h"
#include "postprocess.h"
#include "text.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace ztdeploy {
namespace {

constexpr std::size_t most_threads = 1024, read_at_a_time = 64;
const std::string cascade_name = "cascade";

// The first three numbers of a version; TensorRT's has a fourth in some packages.
std::string three_of(const std::string& version)
{
    std::size_t end = std::string::npos;
    for (int dots = 0; dots < 3; ++dots) {
        end = version.find('.', dots == 0 ? 0 : end + 1);
        if (end == std::string::npos) {
            return version;
        }
    }
    return version.substr(0, end);
}

// Which of the images of a call one variant answers: all.
std::vector<std::size_t> all_places(std::size_t images)
{
    std::vector<std::size_t> places(images);
    std::iota(places.begin(), places.end(), std::size_t { 0 });
    return places;
}

} // namespace

struct Runner::State {
    State(const std::filesystem::path& folder, const Options& given)
        : bundle(folder, demanded_keys(given.signed_by))
        , options(given)
        , profile(bundle.profile(given.profile, backend))
        , threads(given.threads.value_or(0))
    {
        if (given.threads && (*given.threads < 1 || *given.threads > static_cast<int>(most_threads))) {
            throw Error(input_error, "threads = " + std::to_string(*given.threads), "a whole number from 1 to 1024",
                "give another number of threads");
        }
        if (!given.threads) {
            threads = usable_threads(profile.threads);
        }
        if (bundle.manifest().class_names && options.verify) {
            bundle.verify(*bundle.manifest().class_names);
        }
        names = bundle.class_names();
    }

    void use(const Variant& variant)
    {
        if (cascade) {
            throw Error(input_error, "variant '" + variant.name + "' beside a cascade, which chooses the variant",
                "one of them", "leave out the variant");
        }
        auto found = open.find(variant.name);
        if (found == open.end()) {
            const Graph& graph = variant.graphs.at(profile.name);
            OpenPart part(interface_of(bundle.manifest(), variant, graph), load(variant));
            if (options.memory == Memory::speed) {
                open.clear();
            }
            found = open.emplace(variant.name, std::move(part)).first;
        }
        active = &found->second;
        running = &variant;
    }

    void use_cascade()
    {
        cascade.emplace(bundle, profile, [this](const Part& part) { return load(part); });
    }

    // By variant, what some images get from it.
    std::vector<Answered> answers(const std::uint8_t* pixels, std::size_t images)
    {
        const Preprocess& spec = bundle.manifest().preprocess;
        const Part& first = cascade ? bundle.manifest().cascade->prefix : static_cast<const Part&>(*running);
        const Graph& graph = first.graphs.at(profile.name);
        std::vector<float> normalised(graph.takes_bytes ? 0 : images * spec.bytes());
        for (std::size_t at = 0; at < images && !normalised.empty(); ++at) {
            normalise(pixels + at * spec.bytes(), spec, &normalised[at * spec.bytes()]);
        }
        const auto* const inputs = graph.takes_bytes ? pixels : reinterpret_cast<const std::uint8_t*>(normalised.data());
        if (cascade) {
            return cascade->run(inputs, images);
        }
        const auto most = static_cast<std::size_t>(graph.batch.value_or(profile.largest_batch));
        Outputs all;
        for (std::size_t start = 0; start < images; start += most) {
            const std::uint8_t* const part = inputs + start * active->input_bytes();
            append(all, active->outputs(active->run(part, std::min(most, images - start))));
        }
        return { { std::move(all), all_places(images), running, {} } };
    }

    Bundle bundle;
    Options options;
    const Profile& profile;
    int threads;
    std::vector<std::string> names;
    std::map<std::string, OpenPart> open;
    const OpenPart* active = nullptr;
    const Variant* running = nullptr;
    std::optional<Cascade> cascade;

private:
    std::unique_ptr<OpenEngine> load(const Part& part)
    {
        const Engine& own = bundle.engine(part, profile.name);
        const std::string& source = bundle.source(part, profile.name);
        if (own.backend != backend) {
            throw Error(environment_error, "profile '" + profile.name + "' has engines of " + own.backend,
                "one of " + std::string(backend) + ", which this library was built with",
                "choose another profile, or build this library with the other runtime");
        }
        for (const std::string& name : bundle.files_of(part, profile.name)) {
            options.verify ? bundle.verify(name) : static_cast<void>(bundle.path(name));
        }
        check_bound(own, bundle.sha256(source));
        return open_engine({ bundle.path(own.file), bundle.path(source), bundle.path(weights_file), bundle.sha256(source),
            threads, options.memory, own.plugins.has_value() });
    }

    // An engine is bound to its graph and to the runtime's version.
    static void check_bound(const Engine& engine, const std::string& graph_sha256)
    {
        std::string built, expected;
        if (engine.graph_sha256 != graph_sha256) {
            built = "from another graph";
            expected = "an engine of this bundle's graph";
        } else if (engine.runtime != backend || three_of(engine.runtime_version) != three_of(runtime_version())) {
            built = "by " + engine.runtime + " " + engine.runtime_version;
            expected = runtime() + ", which this library runs with";
        } else {
            return;
        }
        throw Error(environment_error, "engine '" + engine.file + "' was built " + built, expected,
            "run 'ztdeploy finalize' on the bundle, or use the runtime of that version");
    }
};

Runner::Runner(const std::filesystem::path& bundle, const Options& options)
    : state_(std::make_unique<State>(bundle, options))
{
    if (options.variant && options.keep_ratio) {
        throw Error(input_error,
            "both keep ratio " + general(*options.keep_ratio) + " and variant '" + *options.variant + "'", "one of them",
            "leave one out");
    }
    if (options.cascade && (options.variant || options.keep_ratio)) {
        const std::string given = options.variant ? "variant '" + *options.variant + "'" : "keep ratio " + general(*options.keep_ratio);
        throw Error(input_error, given + " beside a cascade, which chooses the variant", "one of them", "leave one out");
    }
    if (options.cascade) {
        state_->use_cascade();
    } else if (options.keep_ratio) {
        switch_keep_ratio(*options.keep_ratio);
    } else {
        switch_variant(options.variant.value_or(state_->bundle.manifest().default_variant));
    }
}

Runner::~Runner() = default;
Runner::Runner(Runner&&) noexcept = default;
Runner& Runner::operator=(Runner&&) noexcept = default;

void Runner::switch_variant(const std::string& name)
{
    state_->use(state_->bundle.variant(name));
}

void Runner::switch_keep_ratio(double keep_ratio)
{
    state_->use(state_->bundle.variant(keep_ratio));
}

std::vector<std::uint8_t> Runner::pixels(const ImageView& image) const
{
    return resize_and_crop(image, state_->bundle.manifest().preprocess);
}

Outputs Runner::infer(const std::uint8_t* pixels, std::size_t images)
{
    if (pixels == nullptr || images == 0) {
        throw Error(input_error, "no pixels", "those of at least one image", "pass images to the runner itself");
    }
    std::vector<Answered> answers = state_->answers(pixels, images);
    if (!state_->cascade) {
        return std::move(answers.front().outputs);
    }
    Outputs all; // in the order of the images; what stages kept is each one's own
    all.shape = answers.front().outputs.shape;
    const std::size_t each = answers.front().outputs.output.size() / answers.front().places.size();
    all.output.resize(images * each);
    all.stage.resize(images);
    for (const Answered& one : answers) {
        for (std::size_t at = 0; at < one.places.size(); ++at) {
            std::copy_n(&one.outputs.output[at * each], each, &all.output[one.places[at] * each]);
            all.stage[one.places[at]] = *one.stage;
        }
    }
    return all;
}

Checked Runner::check()
{
    if (state_->cascade) {
        throw Error(input_error, "a check of a cascade", "one of its variants", "leave out the cascade");
    }
    const std::vector<std::uint8_t> pixels = golden_pixels(state_->bundle);
    const Outputs found = infer(pixels.data(), state_->bundle.manifest().golden.images);
    return check_golden(state_->bundle, *state_->running, state_->running->graphs.at(state_->profile.name), found);
}

Prediction Runner::operator()(const ImageView& image, std::size_t top, std::optional<double> threshold)
{
    return (*this)(std::vector<ImageView> { image }, top, threshold).front();
}

std::vector<Prediction> Runner::operator()(
    const std::vector<ImageView>& images, std::size_t top, std::optional<double> threshold)
{
    const Model& model = state_->bundle.manifest().model;
    const bool likely = model.output == Output::logits && model.activation != Activation::none;
    if (threshold && (!likely || !(*threshold >= 0 && *threshold <= 1))) {
        throw Error(input_error, "threshold = " + general(*threshold),
            likely ? "a probability from 0 to 1" : "none for a model whose outputs are no probabilities",
            likely ? "give another threshold" : "leave the threshold out");
    }
    std::vector<Prediction> all(images.size());
    for (std::size_t start = 0; start < images.size(); start += read_at_a_time) {
        const std::size_t count = std::min(read_at_a_time, images.size() - start);
        std::vector<std::uint8_t> pixels;
        for (std::size_t at = start; at < start + count; ++at) {
            const std::vector<std::uint8_t> one = this->pixels(images[at]);
            pixels.insert(pixels.end(), one.begin(), one.end());
        }
        for (const Answered& found : state_->answers(pixels.data(), count)) {
            const std::size_t each = found.outputs.output.size() / found.places.size();
            for (std::size_t at = 0; at < found.places.size(); ++at) {
                const float* const own = found.outputs.output.data() + at * each;
                Prediction& prediction = all[start + found.places[at]];
                prediction.output.assign(own, own + each);
                prediction.shape = found.outputs.shape;
                prediction.kept = kept_patches(found.outputs.kept, found.variant->layers, at, model.prefix_tokens);
                prediction.stage = found.stage;
                if (model.output == Output::logits) {
                    prediction.labels = top_labels(own, state_->names, top, model.activation, threshold);
                }
            }
        }
    }
    return all;
}

std::array<int, 3> Runner::input_shape() const
{
    const Preprocess& spec = state_->bundle.manifest().preprocess;
    return { spec.image.height, spec.image.width, spec.channels() };
}

int Runner::bit_depth() const
{
    return state_->bundle.manifest().preprocess.bit_depth;
}

Output Runner::gives() const
{
    return state_->bundle.manifest().model.output;
}

Activation Runner::activation() const
{
    return state_->bundle.manifest().model.activation;
}

const std::string& Runner::variant() const
{
    return state_->cascade ? cascade_name : state_->running->name;
}

std::vector<std::string> Runner::stages() const
{
    return state_->cascade ? state_->cascade->variants() : std::vector<std::string>();
}

std::vector<std::size_t> Runner::counts() const
{
    return state_->cascade ? state_->cascade->counts() : std::vector<std::size_t>();
}

std::optional<std::string> Runner::warning() const
{
    return state_->cascade ? state_->cascade->warning() : std::nullopt;
}

std::vector<std::string> Runner::variants() const
{
    std::vector<std::string> names;
    for (const Variant& variant : state_->bundle.manifest().variants) {
        names.push_back(variant.name);
    }
    return names;
}

const std::string& Runner::profile() const
{
    return state_->profile.name;
}

int Runner::threads() const
{
    return state_->threads;
}

std::string runtime()
{
    return std::string(backend) + " " + runtime_version();
}

} // namespace ztdeploy
