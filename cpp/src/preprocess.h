// Resize, centre crop, normalise: bit for bit what ztdeploy/target/runtime/preprocess.py does with Pillow.
#pragma once

#include <ztdeploy/ztdeploy.h>

#include <cstdint>
#include <vector>

namespace ztdeploy {

enum class Interpolation { nearest, bilinear, bicubic, lanczos };

struct Size {
    int height = 0;
    int width = 0;
};

struct Preprocess {
    Size image; // of the model's input
    Size resize;
    Interpolation interpolation = Interpolation::bicubic;
    bool squash = false;
    bool round_crop_down = false;
    int bit_depth = 16; // that 16-bit image files use
    std::vector<float> mean, std; // per channel, of values from 0 to 1

    int channels() const { return static_cast<int>(mean.size()); }
    std::size_t bytes() const
    {
        return static_cast<std::size_t>(image.height) * static_cast<std::size_t>(image.width) * mean.size();
    }
};

// [H, W, C]. Throws Error for an image that is none, or too large.
std::vector<std::uint8_t> resize_and_crop(const ImageView& image, const Preprocess& spec);

// (pixels / 255 - mean) / std of one image, [H, W, C] to [C, H, W]. Each operation is rounded to fp32.
void normalise(const std::uint8_t* pixels, const Preprocess& spec, float* into);

} // namespace ztdeploy
