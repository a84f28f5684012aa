// What a camera sees, frame by frame, from raw RGB bytes on standard input:
//
//     ffmpeg -loglevel error -f v4l2 -i /dev/video0 -vf scale=640:480 -f rawvideo -pix_fmt rgb24 - |
//         ztdeploy-camera quickstart 640 480
#include <ztdeploy/ztdeploy.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int count, char** values)
{
    const int width = count == 4 ? std::atoi(values[2]) : 0, height = count == 4 ? std::atoi(values[3]) : 0;
    if (width < 1 || height < 1 || width > 8192 || height > 8192) {
        std::fputs("usage: ztdeploy-camera BUNDLE WIDTH HEIGHT < frames of RGB bytes\n", stderr);
        return 2;
    }
    try {
        ztdeploy::Runner runner(values[1]);
        std::vector<std::uint8_t> frame(3 * static_cast<std::size_t>(width) * static_cast<std::size_t>(height));
        while (std::fread(frame.data(), 1, frame.size(), stdin) == frame.size()) {
            const auto start = std::chrono::steady_clock::now();
            const ztdeploy::Prediction answer = runner({ frame.data(), height, width }, 1);
            const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
            const ztdeploy::Label best = answer.labels.empty() ? ztdeploy::Label {} : answer.labels.front();
            std::printf("%s %.3f (%.1f ms)\n", best.name.c_str(), best.probability.value_or(best.value), took.count());
            std::fflush(stdout);
        }
        return 0;
    } catch (const ztdeploy::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return error.exit_code();
    }
}
