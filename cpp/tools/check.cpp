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

// All variants of a bundle on the same pixels: together, then the first one alone.
void infer(const std::string& bundle, const std::string& profile, bool shared, const std::string& pixels, const std::string& out)
{
    ztdeploy::Options options;
    options.profile = profile;
    options.memory = shared ? ztdeploy::Memory::shared : ztdeploy::Memory::speed;
    options.threads = 1;
    ztdeploy::Runner runner(bundle, options);
    const auto shape = runner.input_shape();
    const Bytes images = bytes_of(pixels);
    const std::size_t each = static_cast<std::size_t>(shape[0]) * shape[1] * shape[2];
    std::ofstream results(out, std::ios::binary);
    for (const std::string& name : runner.variants()) {
        runner.switch_variant(name);
        for (const std::size_t count : { images.size() / each, std::size_t { 1 } }) {
            const ztdeploy::Outputs found = runner.infer(reinterpret_cast<const std::uint8_t*>(images.data()), count);
            write(results, found.output);
            for (const auto* const layers : { &found.kept, &found.into }) {
                for (const auto& layer : *layers) {
                    write(results, layer);
                }
            }
        }
    }
}

// What opening each bundle and running one image says, as "CODE<tab>message".
void open(const std::vector<std::string>& bundles)
{
    for (const std::string& bundle : bundles) {
        try {
            ztdeploy::Runner runner(bundle);
            const auto shape = runner.input_shape();
            const std::vector<std::uint8_t> image(static_cast<std::size_t>(shape[0]) * shape[1] * shape[2]);
            runner({ image.data(), shape[0], shape[1], shape[2], 0 });
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
    } else if (given.size() == 6 && given[0] == "infer") {
        infer(given[1], given[2], given[3] == "shared", given[4], given[5]);
    } else if (given.size() == 2 && given[0] == "open") {
        std::ifstream list(given[1]);
        std::vector<std::string> bundles;
        for (std::string line; std::getline(list, line);) {
            bundles.push_back(line);
        }
        open(bundles);
    } else {
        return 2;
    }
    return 0;
}
