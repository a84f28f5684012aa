// Image files as upright RGB, the same bytes that Pillow makes of them: PNG, JPEG and binary PPM.
#pragma once

#include <ztdeploy/ztdeploy.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace ztdeploy {

struct Picture {
    int height = 0;
    int width = 0;
    int channels = 3; // 3: RGB; 1: grey
    std::vector<std::uint8_t> pixels;

    ImageView view() const { return { pixels.data(), height, width, channels, 0 }; }
};

// Throws Error with exit code 3. `channels`: 3, or 1 for models of grey images. Files of 16 bits are refused where the
// model uses fewer of these than 16.
Picture read_picture(const std::filesystem::path& path, int channels, int bit_depth);

// The image files in a folder and below it, in the order of names; hidden ones are left out. Throws Error.
std::vector<std::filesystem::path> pictures_in(const std::filesystem::path& folder);

} // namespace ztdeploy
