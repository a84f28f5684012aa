// What a Runner does: open an engine, hold what it takes and gives against the manifest, and run images through it.
#include "bundle.h"
#include "engine.h"
#include "machine.h"
#include "postprocess.h"
#include "text.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace ztdeploy {
namespace {

constexpr std::size_t most_threads = 1024, read_at_a_time = 64;

// What an engine must take and give.
struct Interface {
    TensorFacts image, output; // the batch comes first, -1: any
    std::vector<TensorFacts> kept, into;
    std::vector<Layer> layers;
    std::string variant;

    std::vector<const TensorFacts*> given() const
    {
        std::vector<const TensorFacts*> all { &output };
        for (const auto* const some : { &kept, &into }) {
            for (const TensorFacts& one : *some) {
                all.push_back(&one);
            }
        }
        return all;
    }
};

Interface interface_of(const Manifest& manifest, const Variant& variant, const Graph& graph)
{
    const std::int64_t batch = graph.batch.value_or(-1), channels = manifest.preprocess.channels();
    const std::int64_t height = manifest.preprocess.image.height, width = manifest.preprocess.image.width;
    const Model& model = manifest.model;
    Interface found;
    found.image = graph.takes_bytes ? TensorFacts { "image", Type::uint8, { batch, height, width, channels } }
                                    : TensorFacts { "image", Type::float32, { batch, channels, height, width } };
    found.output = { "logits", Type::float32, { batch, model.classes } };
    if (model.output == Output::embedding) {
        found.output.shape = { batch, -1 };
    } else if (model.output == Output::features) {
        found.output.shape = { batch, model.patches, -1 };
    } else if (model.output == Output::maps) {
        found.output.shape = { batch, model.map_shape[0], model.map_shape[1], model.map_shape[2] };
    }
    for (const Layer& layer : variant.layers) {
        const std::string scope = "blocks." + std::to_string(layer.block) + "/prune/";
        found.kept.push_back({ scope + "kept", Type::int32, { batch, layer.tokens_out } });
        if (layer.merges) {
            found.into.push_back({ scope + "into", Type::int32, { batch, layer.tokens_in - layer.tokens_out } });
        }
    }
    found.layers = variant.layers;
    found.variant = variant.name;
    return found;
}

std::string words(const TensorFacts& facts)
{
    static const char* const names[] = { "float32", "uint8", "int32", "another type" };
    std::string shape;
    for (const std::int64_t length : facts.shape) {
        shape += (shape.empty() ? "" : ", ") + (length < 0 ? std::string("any") : std::to_string(length));
    }
    return "'" + facts.name.substr(0, 80) + "' " + names[static_cast<int>(facts.type)] + " [" + shape + "]";
}

std::string words(const std::vector<TensorFacts>& all)
{
    std::string text;
    for (std::size_t at = 0; at < all.size() && at < 5; ++at) {
        text += (at == 0 ? "" : ", ") + words(all[at]);
    }
    return text.empty() ? "nothing" : text + (all.size() > 5 ? ", ..." : "");
}

bool fits(const TensorFacts& wanted, const TensorFacts& found)
{
    const auto same = [](std::int64_t one, std::int64_t other) { return one < 0 || other < 0 || one == other; };
    return wanted.type == found.type
        && std::equal(wanted.shape.begin(), wanted.shape.end(), found.shape.begin(), found.shape.end(), same);
}

Error wrong(const Interface& wanted, const std::string& found, const std::string& expected)
{
    return { bundle_error, "the engine of '" + wanted.variant + "' " + found, expected, "copy or build the bundle again" };
}

void check_declared(const Interface& wanted, const OpenEngine& engine)
{
    const std::vector<TensorFacts> inputs = engine.inputs(), outputs = engine.outputs();
    const std::vector<const TensorFacts*> given = wanted.given();
    if (inputs.size() != 1 || inputs[0].name != wanted.image.name || outputs.size() != given.size()) {
        throw wrong(wanted, "takes " + words(inputs) + " and gives " + words(outputs),
            words(wanted.image) + " and " + std::to_string(given.size()) + " outputs");
    }
    const bool any_batch = wanted.image.shape[0] < 0 && !inputs[0].shape.empty() && inputs[0].shape[0] >= 0;
    if (any_batch || !fits(wanted.image, inputs[0])) {
        throw wrong(wanted, "has " + words(inputs[0]), words(wanted.image));
    }
    for (const TensorFacts* const one : given) {
        const auto found = std::find_if(
            outputs.begin(), outputs.end(), [&](const TensorFacts& output) { return output.name == one->name; });
        if (found == outputs.end() || !fits(*one, *found)) {
            throw wrong(wanted, "gives " + words(outputs), words(*one));
        }
    }
}

// The output of that name for so many images; refused if it is another one than promised.
const Value& value_of(const Interface& wanted, const TensorFacts& one, const std::vector<Value>& values, std::int64_t images)
{
    TensorFacts exact = one;
    exact.shape[0] = images;
    const auto found = std::find_if(
        values.begin(), values.end(), [&](const Value& value) { return value.facts.name == one.name; });
    if (found == values.end() || !fits(exact, found->facts)) {
        throw wrong(wanted, "gave " + (found == values.end() ? "nothing named '" + one.name + "'" : words(found->facts)),
            words(exact));
    }
    return *found;
}

template <class Number>
std::vector<Number> numbers_of(const Value& value, std::size_t images)
{
    const std::size_t all = value.bytes.size() / sizeof(Number);
    std::vector<Number> numbers(all / static_cast<std::size_t>(value.facts.shape[0]) * images);
    if (!numbers.empty()) {
        std::memcpy(numbers.data(), value.bytes.data(), numbers.size() * sizeof(Number));
    }
    return numbers;
}

Error wrong_choice(const Interface& wanted, const Layer& layer, const std::string& expected)
{
    return { parity_error,
        "the choice of tokens of the engine of '" + wanted.variant + "' at block " + std::to_string(layer.block + 1)
            + " cannot be right",
        expected, "run: ztdeploy verify" };
}

// Tokens that stay are in their order, each once, the prefix tokens first.
void check_kept(const Interface& wanted, const Layer& layer, const std::vector<std::int32_t>& kept)
{
    bool right = true;
    for (std::size_t at = 0; at < kept.size(); ++at) {
        const int place = static_cast<int>(at % static_cast<std::size_t>(layer.tokens_out));
        const std::int32_t before = place == 0 ? -1 : kept[at - 1];
        right = right && kept[at] > before && kept[at] < layer.tokens_in;
        right = right && (place >= layer.prefix_tokens || kept[at] == place);
    }
    if (!right) {
        throw wrong_choice(wanted, layer,
            std::to_string(layer.tokens_out) + " different ones of " + std::to_string(layer.tokens_in) + ", in their order");
    }
}

Outputs checked(const Interface& wanted, const std::vector<Value>& values, std::int64_t batch, std::size_t images)
{
    Outputs found;
    const Value& output = value_of(wanted, wanted.output, values, batch);
    found.output = numbers_of<float>(output, images);
    found.shape.assign(output.facts.shape.begin() + 1, output.facts.shape.end());
    if (!std::all_of(found.output.begin(), found.output.end(), [](float one) { return std::isfinite(one); })) {
        throw Error(parity_error, "the engine of '" + wanted.variant + "' gives infinities or NaN", "finite numbers",
            "build with a profile of precision fp32, or run: ztdeploy verify");
    }
    for (const TensorFacts& one : wanted.kept) {
        found.kept.push_back(numbers_of<std::int32_t>(value_of(wanted, one, values, batch), images));
        check_kept(wanted, wanted.layers[found.kept.size() - 1], found.kept.back());
    }
    for (const Layer& layer : wanted.layers) {
        if (!layer.merges) {
            continue;
        }
        found.into.push_back(numbers_of<std::int32_t>(value_of(wanted, wanted.into[found.into.size()], values, batch), images));
        const auto right = [&](std::int32_t slot) { return slot >= -1 && slot < layer.tokens_out; };
        if (!std::all_of(found.into.back().begin(), found.into.back().end(), right)) {
            throw wrong_choice(wanted, layer, "slots from 0 to " + std::to_string(layer.tokens_out - 1) + ", or -1 for none");
        }
    }
    return found;
}

void append(std::vector<std::vector<std::int32_t>>& all, const std::vector<std::vector<std::int32_t>>& more)
{
    all.resize(more.size());
    for (std::size_t layer = 0; layer < more.size(); ++layer) {
        all[layer].insert(all[layer].end(), more[layer].begin(), more[layer].end());
    }
}

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

// An engine in memory and what a call must know of it.
struct Loaded {
    const Variant* variant = nullptr;
    const Graph* graph = nullptr;
    Interface interface;
    std::unique_ptr<OpenEngine> engine;
};

} // namespace

struct Runner::State {
    State(const std::filesystem::path& folder, const Options& given)
        : bundle(folder)
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
        auto found = open.find(variant.name);
        if (found == open.end()) {
            Loaded loaded = load(variant);
            if (options.memory == Memory::speed) {
                open.clear();
            }
            found = open.emplace(variant.name, std::move(loaded)).first;
        }
        active = &found->second;
    }

    Outputs infer_part(const std::uint8_t* pixels, std::size_t images)
    {
        const Preprocess& spec = bundle.manifest().preprocess;
        const auto batch = static_cast<std::size_t>(active->graph->batch.value_or(static_cast<int>(images)));
        const std::size_t each = spec.bytes();
        std::vector<std::uint8_t> filled; // a fixed batch is filled up with copies, whose results are dropped
        if (batch > images) {
            filled.assign(pixels, pixels + images * each);
            for (std::size_t at = images; at < batch; ++at) {
                filled.insert(filled.end(), pixels + (images - 1) * each, pixels + images * each);
            }
            pixels = filled.data();
        }
        TensorFacts facts = active->interface.image;
        facts.shape[0] = static_cast<std::int64_t>(batch);
        std::vector<float> normalised(active->graph->takes_bytes ? 0 : batch * each);
        for (std::size_t at = 0; at < batch && !normalised.empty(); ++at) {
            normalise(pixels + at * each, spec, &normalised[at * each]);
        }
        const void* const feed = normalised.empty() ? static_cast<const void*>(pixels) : normalised.data();
        return checked(active->interface, active->engine->infer(feed, facts), facts.shape[0], images);
    }

    Bundle bundle;
    Options options;
    const Profile& profile;
    int threads;
    std::vector<std::string> names;
    std::map<std::string, Loaded> open;
    Loaded* active = nullptr;

private:
    Loaded load(const Variant& variant)
    {
        const Engine& own = bundle.engine(variant, profile.name);
        const std::string& source = bundle.source(variant, profile.name);
        if (own.backend != backend) {
            throw Error(environment_error, "profile '" + profile.name + "' has engines of " + own.backend,
                "one of " + std::string(backend) + ", which this library was built with",
                "choose another profile, or build this library with the other runtime");
        }
        for (const std::string& name : bundle.files_of(variant, profile.name)) {
            options.verify ? bundle.verify(name) : static_cast<void>(bundle.path(name));
        }
        check_bound(own, bundle.sha256(source));
        StoredEngine stored { bundle.path(own.file), bundle.path(source), bundle.path(weights_file), bundle.sha256(source),
            threads, options.memory, own.plugins.has_value() };
        Loaded loaded { &variant, &variant.graphs.at(profile.name), {}, open_engine(stored) };
        loaded.interface = interface_of(bundle.manifest(), variant, *loaded.graph);
        check_declared(loaded.interface, *loaded.engine);
        return loaded;
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
    options.keep_ratio ? switch_keep_ratio(*options.keep_ratio)
                       : switch_variant(options.variant.value_or(state_->bundle.manifest().default_variant));
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
    const auto size = static_cast<std::size_t>(state_->active->graph->batch.value_or(state_->profile.largest_batch));
    const std::size_t each = state_->bundle.manifest().preprocess.bytes();
    Outputs all;
    for (std::size_t start = 0; start < images; start += size) {
        const Outputs part = state_->infer_part(pixels + start * each, std::min(size, images - start));
        all.output.insert(all.output.end(), part.output.begin(), part.output.end());
        all.shape = part.shape;
        append(all.kept, part.kept);
        append(all.into, part.into);
    }
    return all;
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
    std::vector<int> lengths;
    for (const Layer& layer : state_->active->variant->layers) {
        lengths.push_back(layer.tokens_out);
    }
    std::vector<Prediction> all;
    for (std::size_t start = 0; start < images.size(); start += read_at_a_time) {
        const std::size_t count = std::min(read_at_a_time, images.size() - start);
        std::vector<std::uint8_t> pixels;
        for (std::size_t at = start; at < start + count; ++at) {
            const std::vector<std::uint8_t> one = this->pixels(images[at]);
            pixels.insert(pixels.end(), one.begin(), one.end());
        }
        const Outputs found = infer(pixels.data(), count);
        const std::size_t each = found.output.size() / count;
        for (std::size_t at = 0; at < count; ++at) {
            const float* const own = found.output.data() + at * each;
            Prediction prediction { {}, std::vector<float>(own, own + each), found.shape,
                kept_patches(found.kept, lengths, at, model.prefix_tokens) };
            if (model.output == Output::logits) {
                prediction.labels = top_labels(own, state_->names, top, model.activation, threshold);
            }
            all.push_back(std::move(prediction));
        }
    }
    return all;
}

std::array<int, 3> Runner::input_shape() const
{
    const Preprocess& spec = state_->bundle.manifest().preprocess;
    return { spec.image.height, spec.image.width, spec.channels() };
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
    return state_->active->variant->name;
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
