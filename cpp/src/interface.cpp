#include "interface.h"

#include "text.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace ztdeploy {
namespace {

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
    return { bundle_error, "the engine of '" + wanted.name + "' " + found, expected, "copy or build the bundle again" };
}

Error wrong_choice(const Interface& wanted, const Layer& layer, const std::string& expected)
{
    return { parity_error,
        "the choice of tokens of the engine of '" + wanted.name + "' at block " + std::to_string(layer.block + 1)
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

} // namespace

std::vector<const TensorFacts*> Interface::given() const
{
    std::vector<const TensorFacts*> all { &output };
    for (const auto* const some : { &kept, &into }) {
        for (const TensorFacts& one : *some) {
            all.push_back(&one);
        }
    }
    if (confidence) {
        all.push_back(&*confidence);
    }
    return all;
}

Interface interface_of(const Manifest& manifest, const Variant& variant, const Graph& graph)
{
    const std::int64_t batch = graph.batch.value_or(-1), channels = manifest.preprocess.channels();
    const std::int64_t height = manifest.preprocess.image.height, width = manifest.preprocess.image.width;
    const Model& model = manifest.model;
    Interface found;
    found.name = variant.name;
    found.layers = variant.layers;
    found.input = graph.takes_bytes ? TensorFacts { "image", Type::uint8, { batch, height, width, channels } }
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
    return found;
}

OpenPart::OpenPart(Interface interface, std::unique_ptr<OpenEngine> engine)
    : interface_(std::move(interface))
    , engine_(std::move(engine))
{
    check_declared();
}

void OpenPart::check_declared() const
{
    const std::vector<TensorFacts> inputs = engine_->inputs(), outputs = engine_->outputs();
    const std::vector<const TensorFacts*> given = interface_.given();
    const TensorFacts& input = interface_.input;
    if (inputs.size() != 1 || inputs[0].name != input.name || outputs.size() != given.size()) {
        throw wrong(interface_, "takes " + words(inputs) + " and gives " + words(outputs),
            words(input) + " and " + std::to_string(given.size()) + " outputs");
    }
    const bool any_batch = input.shape[0] < 0 && !inputs[0].shape.empty() && inputs[0].shape[0] >= 0;
    if (any_batch || !fits(input, inputs[0])) {
        throw wrong(interface_, "has " + words(inputs[0]), words(input));
    }
    for (const TensorFacts* const one : given) {
        const auto found = std::find_if(
            outputs.begin(), outputs.end(), [&](const TensorFacts& output) { return output.name == one->name; });
        if (found == outputs.end() || !fits(*one, *found)) {
            throw wrong(interface_, "gives " + words(outputs), words(*one));
        }
    }
}

std::size_t OpenPart::input_bytes() const
{
    std::size_t bytes = interface_.input.type == Type::uint8 ? 1 : sizeof(float);
    for (std::size_t axis = 1; axis < interface_.input.shape.size(); ++axis) {
        bytes *= static_cast<std::size_t>(interface_.input.shape[axis]);
    }
    return bytes;
}

OpenPart::Raw OpenPart::run(const std::uint8_t* inputs, std::size_t images) const
{
    TensorFacts facts = interface_.input;
    if (facts.shape[0] < 0) {
        facts.shape[0] = static_cast<std::int64_t>(images);
    }
    const auto batch = static_cast<std::size_t>(facts.shape[0]);
    const std::size_t each = input_bytes();
    std::vector<std::uint8_t> filled; // the results of copies are dropped
    if (batch > images) {
        filled.assign(inputs, inputs + images * each);
        for (std::size_t at = images; at < batch; ++at) {
            filled.insert(filled.end(), inputs + (images - 1) * each, inputs + images * each);
        }
        inputs = filled.data();
    }
    return { engine_->infer(inputs, facts), facts.shape[0], images };
}

const Value& OpenPart::value_of(const Raw& raw, const TensorFacts& wanted) const
{
    TensorFacts exact = wanted;
    exact.shape[0] = raw.batch;
    const auto found = std::find_if(
        raw.values.begin(), raw.values.end(), [&](const Value& value) { return value.facts.name == wanted.name; });
    if (found == raw.values.end() || !fits(exact, found->facts)) {
        const bool missing = found == raw.values.end();
        throw wrong(interface_, "gave " + (missing ? "nothing named '" + wanted.name + "'" : words(found->facts)), words(exact));
    }
    return *found;
}

std::vector<float> OpenPart::numbers(const Raw& raw, const TensorFacts& wanted) const
{
    std::vector<float> found = numbers_of<float>(value_of(raw, wanted), raw.images);
    if (!std::all_of(found.begin(), found.end(), [](float one) { return std::isfinite(one); })) {
        throw Error(parity_error, "the engine of '" + interface_.name + "' gives infinities or NaN", "finite numbers",
            "build with a profile of precision fp32, or run: ztdeploy verify");
    }
    return found;
}

std::vector<std::int32_t> OpenPart::indices(const Raw& raw, const TensorFacts& wanted) const
{
    return numbers_of<std::int32_t>(value_of(raw, wanted), raw.images);
}

Outputs OpenPart::outputs(const Raw& raw) const
{
    Outputs found;
    found.output = numbers(raw, interface_.output);
    const std::vector<std::int64_t>& shape = value_of(raw, interface_.output).facts.shape;
    found.shape.assign(shape.begin() + 1, shape.end());
    for (const Layer& layer : interface_.layers) {
        found.kept.push_back(indices(raw, interface_.kept[found.kept.size()]));
        check_kept(interface_, layer, found.kept.back());
    }
    for (const Layer& layer : interface_.layers) {
        if (!layer.merges) {
            continue;
        }
        found.into.push_back(indices(raw, interface_.into[found.into.size()]));
        const auto right = [&](std::int32_t slot) { return slot >= -1 && slot < layer.tokens_out; };
        if (!std::all_of(found.into.back().begin(), found.into.back().end(), right)) {
            throw wrong_choice(
                interface_, layer, "slots from 0 to " + std::to_string(layer.tokens_out - 1) + ", or -1 for none");
        }
    }
    return found;
}

void append(Outputs& all, const Outputs& more)
{
    all.output.insert(all.output.end(), more.output.begin(), more.output.end());
    all.shape = more.shape;
    for (auto side : { &Outputs::kept, &Outputs::into }) {
        (all.*side).resize((more.*side).size());
        for (std::size_t layer = 0; layer < (more.*side).size(); ++layer) {
            const std::vector<std::int32_t>& own = (more.*side)[layer];
            (all.*side)[layer].insert((all.*side)[layer].end(), own.begin(), own.end());
        }
    }
}

Outputs some_of(const Outputs& all, std::size_t images, const std::vector<std::size_t>& places)
{
    Outputs some;
    some.output = rows_of(all.output, images, places);
    some.shape = all.shape;
    for (auto side : { &Outputs::kept, &Outputs::into }) {
        for (const std::vector<std::int32_t>& layer : all.*side) {
            (some.*side).push_back(rows_of(layer, images, places));
        }
    }
    return some;
}

} // namespace ztdeploy
