// Engines of OpenVINO, compiled with the options of ztdeploy/target/backends/openvino.py. That file also rewrites int8 and
// bf16 graphs into faster ones that compute the same, and computes parts of a batch side by side; this one computes them
// one after the other.
#include "engine.h"
#include "files.h"
#include "json.h"
#include "machine.h"
#include "text.h"

#include <openvino/core/graph_util.hpp>
#include <openvino/core/model.hpp>
#include <openvino/core/version.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/convert.hpp>
#include <openvino/runtime/core.hpp>

#include <algorithm>
#include <cstring>
#include <optional>
#include <system_error>

namespace ztdeploy {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t engine_limit = 4096;

// The content of an engine's file: it names a graph beside the weights.
struct Content {
    std::string graph;
    bool bf16 = false;
    int row_group = 0; // values of a token that share a scale; 0: activations are as the graph says
    int weight_bits = 8;
};

Content content_of(const fs::path& path)
{
    try {
        const Document data(read_regular(path, engine_limit));
        const Node root = data.root();
        Content content;
        content.graph = root.at("graph").text();
        content.bf16 = root.at("precision").one_of({ "fp32", "fp16", "bf16", "int8" }) == 2;
        content.row_group = static_cast<int>(root.whole("row_group", 0, 1 << 20, 0));
        content.weight_bits = static_cast<int>(root.whole("weight_bits", 2, 8, 8));
        return content;
    } catch (const std::exception&) {
        throw Error(bundle_error, "'" + path.string() + "' is not an OpenVINO engine", "a file as built",
            "run 'ztdeploy finalize' on the bundle");
    }
}

ov::AnyMap options_of(const Content& content, int threads)
{
    ov::AnyMap options { { "PERFORMANCE_HINT", "LATENCY" }, { "NUM_STREAMS", 1 }, { "INFERENCE_NUM_THREADS", threads },
        { "INFERENCE_PRECISION_HINT", "f32" }, { "DYNAMIC_QUANTIZATION_GROUP_SIZE", content.row_group } };
    const Processor here = onednn_processor();
    if (content.row_group > 0 && !here.dot_products) { // exact products where integer kernels would lose sums
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0;
    } else if (content.row_group == 0 && here.loses_sums && content.weight_bits > 7) {
        options["LP_TRANSFORMS_MODE"] = "NO";
    }
    return options;
}

// Computes in fp32 what a graph computes in bf16: for processors without it, where OpenVINO emulates it slowly.
void in_fp32(ov::Model& model)
{
    for (const auto& node : model.get_ordered_ops()) {
        if (const auto convert = ov::as_type_ptr<ov::op::v0::Convert>(node)) {
            if (convert->get_destination_type() == ov::element::bf16) {
                convert->set_destination_type(ov::element::f32);
            }
        } else if (const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(node)) {
            if (constant->get_element_type() == ov::element::bf16) {
                ov::replace_node(constant,
                    ov::op::v0::Constant::create(
                        ov::element::f32, constant->get_shape(), constant->cast_vector<float>()));
            }
        }
    }
    model.validate_nodes_and_infer_types();
}

std::shared_ptr<ov::Model> read_model(ov::Core& core, const fs::path& graph)
{
    std::shared_ptr<ov::Model> model = core.read_model(graph.string());
    if (!onednn_processor().bf16) {
        in_fp32(*model);
    }
    return model;
}

Type type_of(const ov::element::Type& type)
{
    return type == ov::element::f32 ? Type::float32
        : type == ov::element::u8   ? Type::uint8
        : type == ov::element::i32  ? Type::int32
                                    : Type::other;
}

TensorFacts facts_of(const ov::Output<ov::Node>& port)
{
    TensorFacts facts { port.get_any_name(), type_of(port.get_element_type()), {} };
    const ov::PartialShape& shape = port.get_partial_shape();
    for (std::int64_t at = 0; shape.rank().is_static() && at < shape.rank().get_length(); ++at) {
        facts.shape.push_back(shape[static_cast<std::size_t>(at)].is_static()
                ? shape[static_cast<std::size_t>(at)].get_length()
                : -1);
    }
    return facts;
}

// Images of a batch that are computed together: they use weights twice, and their values still fit a core's cache.
constexpr std::int64_t part = 2;

// Compiled for one image, and for two once a batch comes: with all shapes known, OpenVINO fuses more.
class OpenVinoEngine : public OpenEngine {
public:
    OpenVinoEngine(const fs::path& graph, const ov::AnyMap& options)
        : graph_(graph)
        , options_(options)
    {
        const std::shared_ptr<ov::Model> model = read_model(core(), graph);
        for (const auto& port : model->inputs()) {
            inputs_.push_back(facts_of(port));
        }
        for (const auto& port : model->outputs()) {
            outputs_.push_back(facts_of(port));
        }
        takes_any_ = fix_batch(*model, 1);
        alone_ = core().compile_model(model, "CPU", options_).create_infer_request();
    }

    std::vector<TensorFacts> inputs() const override { return inputs_; }
    std::vector<TensorFacts> outputs() const override { return outputs_; }

    std::vector<Value> infer(const void* input, const TensorFacts& facts) override
    {
        try {
            const std::int64_t images = facts.shape.front();
            const std::int64_t most = takes_any_ && images > 1 ? part : images;
            const auto* const bytes = static_cast<const std::uint8_t*>(input);
            const auto type = facts.type == Type::uint8 ? ov::element::u8 : ov::element::f32;
            std::vector<Value> values;
            for (std::int64_t at = 0; at < images; at += most) {
                ov::Shape shape(facts.shape.begin(), facts.shape.end());
                shape.front() = static_cast<std::size_t>(std::min(most, images - at));
                const std::size_t image = ov::shape_size(shape) / shape.front() * type.size();
                const auto* const from = bytes + static_cast<std::size_t>(at) * image;
                // It is only read from.
                const ov::Tensor given(type, shape, const_cast<std::uint8_t*>(from));
                ov::InferRequest& request = request_for(static_cast<std::int64_t>(shape.front()));
                request.set_input_tensor(given);
                request.infer();
                for (std::size_t output = 0; output < outputs_.size(); ++output) {
                    add(values, output, value_of(request.get_output_tensor(output), outputs_[output].name));
                }
            }
            return values;
        } catch (const ov::Exception& error) {
            throw Error(bundle_error, "OpenVINO cannot run the engine: " + first_line(error.what()),
                "an engine as built, and memory for so many images",
                "give fewer images at a time, or run: ztdeploy verify");
        }
    }

    static ov::Core& core()
    {
        static ov::Core shared;
        return shared;
    }

private:
    // Gives a graph that takes any number of images this one, and says whether it was such a graph.
    static bool fix_batch(ov::Model& model, std::int64_t images)
    {
        bool any = false;
        for (const auto& port : model.inputs()) {
            ov::PartialShape shape = port.get_partial_shape();
            if (shape.rank().is_static() && shape.rank().get_length() > 0 && shape[0].is_dynamic()) {
                shape[0] = images;
                model.reshape({ { port.get_any_name(), shape } });
                any = true;
            }
        }
        return any;
    }

    ov::InferRequest& request_for(std::int64_t images)
    {
        if (!takes_any_ || images == 1) {
            return alone_;
        }
        if (!parts_) {
            const std::shared_ptr<ov::Model> model = read_model(core(), graph_);
            fix_batch(*model, part);
            parts_ = core().compile_model(model, "CPU", options_).create_infer_request();
        }
        return *parts_;
    }

    // Appends the images of a part to those before.
    static void add(std::vector<Value>& values, std::size_t output, Value found)
    {
        if (output == values.size()) {
            values.push_back(std::move(found));
            return;
        }
        Value& whole = values[output];
        whole.facts.shape.front() += found.facts.shape.front();
        whole.bytes.insert(whole.bytes.end(), found.bytes.begin(), found.bytes.end());
    }

    static Value value_of(const ov::Tensor& tensor, const std::string& name)
    {
        Value value { { name, type_of(tensor.get_element_type()), {} }, {} };
        for (const std::size_t length : tensor.get_shape()) {
            value.facts.shape.push_back(static_cast<std::int64_t>(length));
        }
        value.bytes.resize(tensor.get_byte_size());
        if (!value.bytes.empty()) {
            std::memcpy(value.bytes.data(), tensor.data(), value.bytes.size());
        }
        return value;
    }

    fs::path graph_;
    ov::AnyMap options_;
    std::vector<TensorFacts> inputs_, outputs_;
    bool takes_any_ = false;
    ov::InferRequest alone_;
    std::optional<ov::InferRequest> parts_;
};

} // namespace

const char* const backend = "openvino";

std::string runtime_version()
{
    const std::string build = ov::get_openvino_version().buildNumber;
    return build.substr(0, build.find('-'));
}

std::unique_ptr<OpenEngine> open_engine(const StoredEngine& stored)
{
    const Content content = content_of(stored.file);
    if (content.bf16 && !onednn_processor().bf16) {
        throw Error(environment_error, "this processor does not compute in bf16", "one with avx512_bf16 or amx_bf16",
            "use a profile of precision fp32, such as cpu-openvino");
    }
    const fs::path graph = stored.weights.parent_path() / content.graph;
    if (content.graph != stored.graph.filename() || digest_of(stored.graph).sha256 != stored.graph_sha256) {
        throw Error(environment_error,
            "engine '" + stored.file.filename().string() + "' names '" + content.graph
                + "', which is not the graph that it was built from",
            "an engine of this bundle's graph", "run 'ztdeploy finalize' on the bundle");
    }
    try {
        return std::make_unique<OpenVinoEngine>(graph, options_of(content, stored.threads));
    } catch (const std::exception& error) { // of ov::Exception and the runtime's own
        throw Error(bundle_error,
            "OpenVINO " + runtime_version() + " refuses '" + graph.string() + "': " + first_line(error.what()),
            "a graph that it can load", "run 'ztdeploy verify' on the bundle, or build it again");
    }
}

} // namespace ztdeploy
