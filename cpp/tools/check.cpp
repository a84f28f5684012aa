// What tests/cpp runs: many cases in one process, results as raw bytes that Python compares with its own.
#include "../src/preprocess.h"

#include <ztdeploy/ztdeploy.h>

#include <dlfcn.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
// OpenVINO's TBB loads a library with a flag that the address sanitizer ends the process for.
extern "C" void* dlopen(const char* file, int mode)
{
    return reinterpret_cast<void* (*)(const char*, int)>(dlsym(RTLD_NEXT, "dlopen"))(file, mode & ~RTLD_DEEPBIND);
}
#endif

namespace {

using Bytes = std::vector<char>;

Bytes bytes_of(const std::string& path)
{
    std::ifstream file(path, std::ios::binary);
    return { std::istreambuf_iterator<char>(file), {} };
}

template <class Number>
void write(std::ofstream& file, const std::vector<Number>& numbers)
{
    file.write(reinterpret_cast<const char*>(numbers.data()), static_cast<std::streamsize>(numbers.size() * sizeof(Number)));
}

// Cases of ten int32 numbers, the mean and std of each channel in fp64, and an image; of each the pixels, and those normalised.
void preprocess(const std::string& cases, const std::string& out)
{
    std::ifstream in(cases, std::ios::binary);
    std::ofstream results(out, std::ios::binary);
    std::int32_t header[10];
    while (in.read(reinterpret_cast<char*>(header), sizeof header)) {
        const auto channels = static_cast<std::size_t>(header[7]);
        ztdeploy::Preprocess spec;
        spec.interpolation = static_cast<ztdeploy::Interpolation>(header[0]);
        spec.squash = header[1] != 0;
        spec.round_crop_down = header[2] != 0;
        spec.image = { header[3], header[4] };
        spec.resize = { header[5], header[6] };
        std::vector<double> scales(2 * channels);
        in.read(reinterpret_cast<char*>(scales.data()), static_cast<std::streamsize>(scales.size() * sizeof(double)));
        spec.mean.assign(scales.begin(), scales.begin() + header[7]);
        spec.std.assign(scales.begin() + header[7], scales.end());
        std::vector<std::uint8_t> image(static_cast<std::size_t>(header[8]) * static_cast<std::size_t>(header[9]) * channels);
        in.read(reinterpret_cast<char*>(image.data()), static_cast<std::streamsize>(image.size()));
        const auto pixels = ztdeploy::resize_and_crop({ image.data(), header[8], header[9], header[7], 0 }, spec);
        std::vector<float> normalised(pixels.size());
        ztdeploy::normalise(pixels.data(), spec, normalised.data());
        write(results, pixels);
        write(results, normalised);
    }
}

// How a runner is asked for.
struct Asked {
    std::string bundle, profile, variant; // "cascade": no variant
    bool shared = false;

    ztdeploy::Runner runner() const
    {
        ztdeploy::Options options;
        options.profile = profile;
        options.cascade = variant == "cascade";
        if (!options.cascade) {
            options.variant = variant;
        }
        options.memory = shared ? ztdeploy::Memory::shared : ztdeploy::Memory::speed;
        options.threads = 1;
        return ztdeploy::Runner(bundle, options);
    }
};

void write(std::ofstream& results, ztdeploy::Runner& runner, const Bytes& pixels, std::size_t images)
{
    const ztdeploy::Outputs found = runner.infer(reinterpret_cast<const std::uint8_t*>(pixels.data()), images);
    write(results, found.output);
    for (const auto* const layers : { &found.kept, &found.into }) {
        for (const auto& layer : *layers) {
            write(results, layer);
        }
    }
    write(results, found.stage);
}

// One variant after the other, or the cascade, on the same pixels: together, then the first one alone.
void infer(const Asked& asked, const std::string& pixels, const std::string& out)
{
    ztdeploy::Runner runner = asked.runner();
    const auto shape = runner.input_shape();
    const Bytes images = bytes_of(pixels);
    const std::size_t each = static_cast<std::size_t>(shape[0]) * shape[1] * shape[2];
    std::ofstream results(out, std::ios::binary);
    const bool cascade = asked.variant == "cascade";
    for (const std::string& name : cascade ? std::vector<std::string> { "" } : runner.variants()) {
        if (!cascade) {
            runner.switch_variant(name);
        }
        write(results, runner, images, images.size() / each);
        write(results, runner, images, 1);
    }
}

// A line for each image of a file of [height, width, channels] and bytes: the stage, labels and kept patches.
void predict(const Asked& asked, const std::string& cases)
{
    ztdeploy::Runner runner = asked.runner();
    std::ifstream in(cases, std::ios::binary);
    std::int32_t size[3];
    while (in.read(reinterpret_cast<char*>(size), sizeof size)) {
        std::vector<std::uint8_t> image(static_cast<std::size_t>(size[0]) * size[1] * size[2]);
        in.read(reinterpret_cast<char*>(image.data()), static_cast<std::streamsize>(image.size()));
        const ztdeploy::Prediction found = runner({ image.data(), size[0], size[1], size[2], 0 }, 3);
        std::printf("%d", found.stage.value_or(-1));
        for (const ztdeploy::Label& label : found.labels) {
            std::printf("\t%s %.9f", label.name.c_str(), label.probability.value_or(label.value));
        }
        for (const auto& layer : found.kept) {
            std::printf("\t");
            for (const std::int32_t patch : layer) {
                std::printf("%d ", patch);
            }
        }
        std::printf("\n");
    }
    for (const std::size_t count : runner.counts()) {
        std::printf("%zu\n", count);
    }
    std::printf("%s\n", runner.warning().value_or("").c_str());
}

// What opening each bundle's default variant and its cascade, and running one image, says, as "CODE<tab>message".
void open(const std::vector<std::string>& bundles, const std::vector<std::string>& signed_by)
{
    for (const std::string& bundle : bundles) {
        try {
            for (const bool cascade : { false, true }) {
                ztdeploy::Options options;
                options.cascade = cascade;
                options.verify = signed_by.empty();
                options.signed_by = signed_by;
                ztdeploy::Runner runner(bundle, options);
                const auto shape = runner.input_shape();
                const std::vector<std::uint8_t> image(static_cast<std::size_t>(shape[0]) * shape[1] * shape[2]);
                runner({ image.data(), shape[0], shape[1], shape[2], 0 });
            }
            std::puts("0\topened");
        } catch (const ztdeploy::Error& error) {
            std::printf("%d\t%s\n", error.exit_code(), error.what());
        }
    }
}

} // namespace

int main(int count, char** values)
{
    const std::vector<std::string> given(values + 1, values + count);
    if (given.size() == 3 && given[0] == "preprocess") {
        preprocess(given[1], given[2]);
    } else if (given.size() == 7 && given[0] == "infer") {
        infer({ given[1], given[2], given[3], given[4] == "shared" }, given[5], given[6]);
    } else if (given.size() == 5 && given[0] == "predict") {
        predict({ given[1], given[2], given[3] }, given[4]);
    } else if (given.size() >= 2 && given[0] == "open") {
        std::ifstream list(given[1]);
        std::vector<std::string> bundles;
        for (std::string line; std::getline(list, line);) {
            bundles.push_back(line);
        }
        open(bundles, { given.begin() + 2, given.end() });
    } else {
        return 2;
    }
    return 0;
}
