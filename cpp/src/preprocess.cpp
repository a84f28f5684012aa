// The arithmetic is Pillow's (its filters, coefficients of 22 bits, 8-bit results between the two axes) and that of
// torchvision and timm for sizes. Only the pixels inside the crop are computed.
#include "preprocess.h"

#include "text.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

namespace ztdeploy {
namespace {

constexpr std::int64_t most_pixels = 100'000'000;
constexpr int precision_bits = 32 - 8 - 2;
constexpr double pi = 3.14159265358979323846;

// How many old values lie in a new one. Pillow takes the old length in fp32.
double scale_of(int old_length, int new_length)
{
    return static_cast<double>(static_cast<float>(old_length)) / new_length;
}

double weight(Interpolation interpolation, double x)
{
    const double a = std::fabs(x);
    switch (interpolation) {
    case Interpolation::bilinear:
        return a < 1.0 ? 1.0 - a : 0.0;
    case Interpolation::bicubic:
        if (a < 1.0) {
            return ((-0.5 + 2.0) * a - (-0.5 + 3.0)) * a * a + 1;
        }
        return a < 2.0 ? (((a - 5) * a + 8) * a - 4) * -0.5 : 0.0;
    default: {
        const auto sinc = [](double value) {
            const double angle = value * pi;
            return value == 0.0 ? 1.0 : std::sin(angle) / angle;
        };
        return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
    }
    }
}

// Some neighbouring results along one axis: which values each comes from, and with which weights.
struct Taps {
    std::vector<int> first, count;
    std::vector<std::int32_t> weights; // `width` for each result
    int width = 0;

    const std::int32_t* of(int result) const { return &weights[static_cast<std::size_t>(result) * width]; }
};

Taps taps_of(Interpolation interpolation, int old_length, int new_length, int begin, int results)
{
    const double scale = scale_of(old_length, new_length), wide = std::max(scale, 1.0);
    const double reach = interpolation == Interpolation::bilinear ? 1.0 : interpolation == Interpolation::bicubic ? 2.0 : 3.0;
    const double support = reach * wide, step = 1.0 / wide;
    Taps taps;
    taps.width = static_cast<int>(std::ceil(support)) * 2 + 1;
    taps.weights.resize(static_cast<std::size_t>(results) * taps.width);
    std::vector<double> exact(static_cast<std::size_t>(taps.width));
    for (int result = 0; result < results; ++result) {
        const double center = (begin + result + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(center - support + 0.5));
        const int count = std::min(old_length, static_cast<int>(center + support + 0.5)) - first;
        double sum = 0.0;
        for (int tap = 0; tap < count; ++tap) {
            exact[tap] = weight(interpolation, (tap + first - center + 0.5) * step);
            sum += exact[tap];
        }
        std::int32_t* const rounded = &taps.weights[static_cast<std::size_t>(result) * taps.width];
        for (int tap = 0; tap < count; ++tap) {
            const double share = sum != 0.0 ? exact[tap] / sum : exact[tap];
            rounded[tap] = static_cast<std::int32_t>((share < 0 ? -0.5 : 0.5) + share * (1 << precision_bits));
        }
        taps.first.push_back(first);
        taps.count.push_back(count);
    }
    return taps;
}

std::uint8_t clipped(std::int32_t sum)
{
    return static_cast<std::uint8_t>(std::clamp(sum >> precision_bits, 0, 255));
}

// Rows of bytes, channels interleaved.
struct Plane {
    const std::uint8_t* data;
    std::size_t stride;

    const std::uint8_t* row(int y) const { return data + static_cast<std::size_t>(y) * stride; }
};

// A row of `results` pixels from an old one.
void resize_row(const std::uint8_t* row, const Taps& taps, int results, int channels, std::uint8_t* into)
{
    for (int x = 0; x < results; ++x) {
        const std::int32_t* const weights = taps.of(x);
        const std::uint8_t* const from = row + static_cast<std::size_t>(taps.first[x]) * channels;
        for (int channel = 0; channel < channels; ++channel) {
            std::int32_t sum = 1 << (precision_bits - 1);
            for (int tap = 0; tap < taps.count[x]; ++tap) {
                sum += from[tap * channels + channel] * weights[tap];
            }
            *into++ = clipped(sum);
        }
    }
}

// A row of `values` bytes from several old rows.
void resize_column(Plane rows, const std::int32_t* weights, int count, std::size_t values, std::vector<std::int32_t>& sums,
    std::uint8_t* into)
{
    sums.assign(values, 1 << (precision_bits - 1));
    for (int tap = 0; tap < count; ++tap) {
        const std::uint8_t* const row = rows.row(tap);
        for (std::size_t at = 0; at < values; ++at) {
            sums[at] += row[at] * weights[tap];
        }
    }
    std::transform(sums.begin(), sums.end(), into, clipped);
}

// A part of a resized image.
struct Box {
    int left, top, width, height;
};

// Whether Pillow resizes columns ahead of rows, which rounds differently: since Pillow 13 where they lose more than twice as
// many values as rows do; Pillow 12 never does.
bool columns_first(const ImageView& image, Size size)
{
    return image.height > size.height && image.height - size.height > 2 * (image.width - size.width);
}

void resample(const ImageView& image, Plane source, Size size, Interpolation interpolation, Box box, std::uint8_t* into,
    std::size_t stride)
{
    const bool across = size.width != image.width, down = size.height != image.height;
    const std::size_t values = static_cast<std::size_t>(box.width) * image.channels;
    Taps columns, rows;
    if (across) {
        columns = taps_of(interpolation, image.width, size.width, box.left, box.width);
    }
    int first = box.top, last = box.top + box.height;
    if (down) {
        rows = taps_of(interpolation, image.height, size.height, box.top, box.height);
        first = rows.first.front();
        last = rows.first.back() + rows.count.back();
    }
    std::vector<std::int32_t> sums;
    if (across && down && columns_first(image, size)) {
        std::vector<std::uint8_t> line(static_cast<std::size_t>(image.width) * image.channels);
        for (int y = 0; y < box.height; ++y, into += stride) {
            const Plane from { source.row(rows.first[y]), source.stride };
            resize_column(from, rows.of(y), rows.count[y], line.size(), sums, line.data());
            resize_row(line.data(), columns, box.width, image.channels, into);
        }
        return;
    }
    std::vector<std::uint8_t> between(across ? static_cast<std::size_t>(last - first) * values : 0);
    for (int y = first; across && y < last; ++y) {
        resize_row(source.row(y), columns, box.width, image.channels, &between[static_cast<std::size_t>(y - first) * values]);
    }
    const std::uint8_t* const narrow
        = across ? between.data() : source.row(first) + static_cast<std::size_t>(box.left) * image.channels;
    const Plane made { narrow, across ? values : source.stride };
    for (int y = 0; y < box.height; ++y, into += stride) {
        if (down) {
            const Plane from { made.row(rows.first[y] - first), made.stride };
            resize_column(from, rows.of(y), rows.count[y], values, sums, into);
        } else {
            std::memcpy(into, made.row(y), values);
        }
    }
}

// The old place of each result along one axis, -1 for none. Places are summed up one by one, as Pillow does.
std::vector<int> nearest(int old_length, int new_length)
{
    const double step = scale_of(old_length, new_length);
    std::vector<int> places;
    double place = step * 0.5;
    for (int result = 0; result < new_length; ++result, place += step) {
        places.push_back(place < old_length ? static_cast<int>(place) : -1);
    }
    return places;
}

void pick(const ImageView& image, Plane source, Size size, Box box, std::uint8_t* into, std::size_t stride)
{
    const std::vector<int> columns = nearest(image.width, size.width), rows = nearest(image.height, size.height);
    const auto channels = static_cast<std::size_t>(image.channels);
    for (int y = 0; y < box.height; ++y, into += stride) {
        for (int x = 0; x < box.width; ++x) {
            const int column = columns[box.left + x], row = rows[box.top + y];
            if (column >= 0 && row >= 0) { // else it stays black
                std::memcpy(into + x * channels, source.row(row) + column * channels, channels);
            }
        }
    }
}

struct LongSize {
    std::int64_t height, width;
};

LongSize resized(int height, int width, const Preprocess& spec)
{
    const Size goal = spec.resize;
    if (spec.squash) {
        return { goal.height, goal.width };
    }
    if (goal.height != goal.width) {
        const double ratio
            = std::min(static_cast<double>(height) / goal.height, static_cast<double>(width) / goal.width);
        const auto side = [ratio](int length) {
            return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::nearbyint(length / ratio)));
        };
        return { side(height), side(width) };
    }
    const auto product = static_cast<double>(std::int64_t { goal.height } * std::max(width, height));
    const auto longer = static_cast<std::int64_t>(product / std::min(width, height));
    return width <= height ? LongSize { longer, goal.width } : LongSize { goal.height, longer };
}

// Where a crop starts along one axis; negative where the image has to be padded.
int crop_start(int length, int side, bool down)
{
    if (down) {
        return (length - side) >> 1; // rounds down below zero as well
    }
    return length >= side ? static_cast<int>(std::nearbyint((length - side) / 2.0)) : -((side - length) / 2);
}

std::string sides(std::int64_t width, std::int64_t height)
{
    return std::to_string(width) + " x " + std::to_string(height);
}

void check(const ImageView& image, const Preprocess& spec)
{
    const std::string found = "an image of " + sides(image.width, image.height) + " pixels";
    const std::size_t row = static_cast<std::size_t>(std::max(0, image.width)) * std::max(0, image.channels);
    if (image.data == nullptr || image.width < 1 || image.height < 1) {
        throw Error(input_error, found, "at least 1 x 1", "check how it was made");
    }
    if (image.channels != spec.channels() || (image.stride != 0 && image.stride < row)) {
        throw Error(input_error, found + " with " + std::to_string(image.channels) + " channels",
            "the model's " + std::to_string(spec.channels()) + " channels, row by row", "convert the image first");
    }
    if (std::int64_t { image.width } * image.height > most_pixels) {
        throw Error(input_error, found, "at most 100,000,000 pixels", "scale the image down first");
    }
    const LongSize size = resized(image.height, image.width, spec);
    if (std::max<std::int64_t>(image.width, size.width) * std::max<std::int64_t>(image.height, size.height) > most_pixels) {
        throw Error(input_error, found + " would be resized to " + sides(size.width, size.height),
            "at most 100,000,000 pixels on the way", "crop it to a less extreme aspect ratio first");
    }
}

} // namespace

std::vector<std::uint8_t> resize_and_crop(const ImageView& image, const Preprocess& spec)
{
    check(image, spec);
    const LongSize found = resized(image.height, image.width, spec);
    const Size size { static_cast<int>(found.height), static_cast<int>(found.width) };
    const int left = crop_start(size.width, spec.image.width, spec.round_crop_down);
    const int top = crop_start(size.height, spec.image.height, spec.round_crop_down);
    const auto channels = static_cast<std::size_t>(image.channels);
    const std::size_t stride = static_cast<std::size_t>(spec.image.width) * channels;
    std::vector<std::uint8_t> pixels(spec.bytes()); // black where the crop reaches beyond the image
    const Box box { std::max(0, left), std::max(0, top),
        std::min(size.width, left + spec.image.width) - std::max(0, left),
        std::min(size.height, top + spec.image.height) - std::max(0, top) };
    std::uint8_t* const into = &pixels[std::max(0, -top) * stride + std::max(0, -left) * channels];
    const Plane source { image.data, image.stride != 0 ? image.stride : static_cast<std::size_t>(image.width) * channels };
    const bool same = size.width == image.width && size.height == image.height;
    if (spec.interpolation == Interpolation::nearest && !same) {
        pick(image, source, size, box, into, stride);
    } else {
        resample(image, source, size, spec.interpolation, box, into, stride);
    }
    return pixels;
}

void normalise(const std::uint8_t* pixels, const Preprocess& spec, float* into)
{
    const std::size_t channels = spec.mean.size(), positions = spec.bytes() / channels;
    for (std::size_t channel = 0; channel < channels; ++channel) {
        float table[256];
        for (int value = 0; value < 256; ++value) {
            table[value] = (static_cast<float>(value) / 255.0F - spec.mean[channel]) / spec.std[channel];
        }
        for (std::size_t at = 0; at < positions; ++at) {
            *into++ = table[pixels[at * channels + channel]];
        }
    }
}

} // namespace ztdeploy
