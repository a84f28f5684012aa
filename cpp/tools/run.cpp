// ztdeploy-run: what `ztdeploy run` does, without Python.
#include "images.h"

#include <ztdeploy/ztdeploy.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

namespace {

using ztdeploy::Error;
using ztdeploy::Prediction;

const char* const help = R"(usage: ztdeploy-run BUNDLE IMAGE... [options]

Run a bundle's engine on images or folders. Each line is an image and its labels
with their probabilities, or the shape and the norm of what the model gives.

  --variant NAME      the variant to run (default: the bundle's default variant)
  --keep-ratio RATIO  instead of a name; 1 is the baseline
  --cascade           run the bundle's cascade; lines name the variant that answered
  --profile NAME      run the engines of this profile
  --threads N         threads of the engine
  --top N             labels of an image (default: 5)
  --threshold P       least probability to show
  --memory MODE       speed, or shared: all variants read one copy of the weights
  --check             run the bundle's known inputs through all variants instead of
                      images, and hold the outputs against PyTorch's
  --no-verify         do not compare files with their hashes
  --signed-by KEY     public key that must have signed the bundle; may be repeated
                      (default: $ZTDEPLOY_SIGNED_BY)
  --version           the runtime that this command was built with

Examples:
  ztdeploy-run quickstart photo.jpg
  ztdeploy-run quickstart photos --variant dense --top 1
)";

struct Request {
    std::vector<std::string> paths;
    ztdeploy::Options options;
    std::size_t top = 5;
    std::optional<double> threshold;
    bool check = false;
};

// A mistake in the command line, which has an exit code of its own.
struct Malformed {
    std::string message;
};

double number_of(const std::string& option, const std::string& text)
{
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !std::isfinite(value)) {
        throw Error(3, option + " " + text.substr(0, 80), "a number", "give another value");
    }
    return value;
}

int whole_of(const std::string& option, const std::string& text)
{
    const double value = number_of(option, text);
    if (value != std::floor(value) || value < 0 || value > 1e9) {
        throw Error(3, option + " " + text.substr(0, 80), "a whole number", "give another value");
    }
    return static_cast<int>(value);
}

void read_option(Request& request, const std::string& option, const std::string& value)
{
    if (option == "--variant") {
        request.options.variant = value;
    } else if (option == "--profile") {
        request.options.profile = value;
    } else if (option == "--signed-by") {
        request.options.signed_by.push_back(value);
    } else if (option == "--keep-ratio") {
        request.options.keep_ratio = number_of(option, value);
    } else if (option == "--threads") {
        request.options.threads = whole_of(option, value);
    } else if (option == "--top") {
        request.top = static_cast<std::size_t>(whole_of(option, value));
    } else if (option == "--threshold") {
        request.threshold = number_of(option, value);
    } else if (option == "--memory" && (value == "speed" || value == "shared")) {
        request.options.memory = value == "speed" ? ztdeploy::Memory::speed : ztdeploy::Memory::shared;
    } else if (option == "--memory") {
        throw Error(3, option + " " + value.substr(0, 80), "speed or shared", "give one of them");
    } else {
        throw Malformed { "no such option: " + option };
    }
}

Request request_of(const std::vector<std::string>& arguments)
{
    Request request;
    for (std::size_t at = 0; at < arguments.size(); ++at) {
        const std::string& one = arguments[at];
        if (one == "--no-verify") {
            request.options.verify = false;
        } else if (one == "--check") {
            request.check = true;
        } else if (one == "--cascade") {
            request.options.cascade = true;
        } else if (one.rfind("--", 0) != 0) {
            request.paths.push_back(one);
        } else if (const std::size_t sign = one.find('='); sign != std::string::npos) {
            read_option(request, one.substr(0, sign), one.substr(sign + 1));
        } else if (at + 1 < arguments.size()) {
            read_option(request, one, arguments[++at]);
        } else {
            throw Malformed { one + " needs a value" };
        }
    }
    if (request.paths.size() < 2 && !(request.check && request.paths.size() == 1)) {
        throw Malformed { "a bundle and an image are needed; see ztdeploy-run --help" };
    }
    return request;
}

// The L2 norm of a vector; of features the mean over positions.
double norm_of(const Prediction& prediction)
{
    const std::size_t width = prediction.shape.back();
    double sum = 0;
    for (std::size_t begin = 0; begin < prediction.output.size(); begin += width) {
        double squares = 0;
        for (std::size_t at = begin; at < begin + width; ++at) {
            squares += static_cast<double>(prediction.output[at]) * prediction.output[at];
        }
        sum += std::sqrt(squares);
    }
    return sum * static_cast<double>(width) / static_cast<double>(prediction.output.size());
}

// One line, as `ztdeploy run` prints into a pipe.
void print(const std::string& image, const Prediction& prediction, const ztdeploy::Runner& runner)
{
    const ztdeploy::Output gives = runner.gives();
    std::printf("%s", image.c_str());
    if (prediction.stage) {
        std::printf("\t%s", runner.stages()[static_cast<std::size_t>(*prediction.stage)].c_str());
    }
    if (gives != ztdeploy::Output::logits) {
        for (std::size_t at = 0; at < prediction.shape.size(); ++at) {
            std::printf("%c%zu", at == 0 ? '\t' : 'x', prediction.shape[at]);
        }
        std::printf("\t%.4g", norm_of(prediction));
    } else if (prediction.labels.empty()) {
        std::printf("\t-\t-");
    }
    for (const ztdeploy::Label& label : prediction.labels) {
        std::printf("\t%s", label.name.c_str());
        label.probability ? std::printf("\t%.6f", *label.probability) : std::printf("\t%.6g", label.value);
    }
    std::printf("\n");
    std::fflush(stdout);
}

// A line for each variant.
void check(ztdeploy::Runner& runner)
{
    for (const std::string& name : runner.variants()) {
        runner.switch_variant(name);
        const ztdeploy::Checked found = runner.check();
        std::printf("%s\t%zu of %zu golden images with the same tokens\tdifference %.0e of %.0e\n", name.c_str(),
            found.identical, found.images, found.difference, found.tolerance);
    }
}

// How many images went on from the first stage, and whether they are unlike those that the cascade was calibrated on.
void say_counts(const ztdeploy::Runner& runner)
{
    const std::vector<std::size_t> counts = runner.counts();
    const std::size_t total = std::accumulate(counts.begin(), counts.end(), std::size_t { 0 });
    std::fprintf(stderr, "%zu of %zu images went on from %s\n", total - counts[0], total, runner.stages()[0].c_str());
    if (runner.warning()) {
        std::fprintf(stderr, "warning: %s\n", runner.warning()->c_str());
    }
}

void run(const Request& request)
{
    ztdeploy::Runner runner(request.paths[0], request.options);
    if (request.check) {
        check(runner);
    }
    const int channels = runner.input_shape()[2];
    for (std::size_t at = 1; at < request.paths.size(); ++at) {
        const std::filesystem::path path = request.paths[at];
        const bool is_folder = std::filesystem::is_directory(path);
        for (const auto& file : is_folder ? ztdeploy::pictures_in(path) : std::vector<std::filesystem::path> { path }) {
            const ztdeploy::Picture picture = ztdeploy::read_picture(file, channels, runner.bit_depth());
            print(file.string(), runner(picture.view(), request.top, request.threshold), runner);
        }
    }
    if (request.options.cascade) {
        say_counts(runner);
    }
}

int fail(const std::string& message, int code)
{
    std::fprintf(stderr, "error: %s\n", message.c_str());
    return code;
}

} // namespace

int main(int count, char** values)
{
    const std::vector<std::string> arguments(values + 1, values + count);
    for (const std::string& one : arguments) {
        if (one == "--help" || one == "-h") {
            std::fputs(help, stdout);
            return 0;
        }
        if (one == "--version") {
            std::printf("ztdeploy-run for bundles of schema version %d, with %s\n", ztdeploy::schema_version,
                ztdeploy::runtime().c_str());
            return 0;
        }
    }
    try {
        run(request_of(arguments));
        return 0;
    } catch (const Malformed& malformed) {
        return fail(malformed.message, 2);
    } catch (const Error& error) {
        return fail(error.what(), error.exit_code());
    } catch (const std::exception& error) {
        return fail(error.what(), 1);
    }
}
