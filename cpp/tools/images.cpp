#include "images.h"

#include <jpeglib.h>
#include <png.h>

#include <algorithm>
#include <cctype>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>

namespace ztdeploy {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t most_pixels = 100'000'000, most_bytes = std::uint64_t { 1 } << 30;

Error refused(const fs::path& path, const std::string& why, const char* expected, const char* fix)
{
    return { 3, "'" + path.string() + "' " + why, expected, fix };
}

// What a decoder says is wrong; thrown on our side of its long jump.
struct Wrong {
    std::string why;
};

void check_size(std::uint64_t width, std::uint64_t height)
{
    if (width < 1 || height < 1 || width > most_pixels || width * height > most_pixels) {
        throw Wrong { "it has " + std::to_string(width) + " x " + std::to_string(height) + " pixels" };
    }
}

// -------------------- PNG

struct PngInput {
    const std::vector<std::uint8_t>* bytes;
    std::size_t at = 0;
    int bit_depth = 16;
    std::jmp_buf jump {};
    char why[128] = "";
};

void png_read(png_structp png, png_bytep into, png_size_t count)
{
    auto* const input = static_cast<PngInput*>(png_get_io_ptr(png));
    if (count > input->bytes->size() - input->at) {
        png_error(png, "it is cut off");
    }
    std::memcpy(into, input->bytes->data() + input->at, count);
    input->at += count;
}

[[noreturn]] void png_failed(png_structp png, png_const_charp message)
{
    auto* const input = static_cast<PngInput*>(png_get_error_ptr(png));
    std::snprintf(input->why, sizeof input->why, "%s", message);
    std::longjmp(input->jump, 1);
}

void png_warned(png_structp, png_const_charp) {}

// Everything that a long jump may leave lies in `png`, `info` and `picture`.
bool decode_png(png_structp png, png_infop info, PngInput& input, Picture& picture, std::vector<png_bytep>& rows)
{
    if (setjmp(input.jump) != 0) {
        return false;
    }
    png_set_read_fn(png, &input, png_read);
    png_set_user_limits(png, most_pixels, most_pixels);
    png_read_info(png, info);
    picture.width = static_cast<int>(png_get_image_width(png, info));
    picture.height = static_cast<int>(png_get_image_height(png, info));
    if (static_cast<std::uint64_t>(picture.width) * static_cast<std::uint64_t>(picture.height) > most_pixels) {
        png_error(png, "it has more than 100,000,000 pixels");
    }
    if (png_get_bit_depth(png, info) == 16 && input.bit_depth != 16) {
        png_error(png, "it has 16 bits per channel, of which the model uses fewer: scale it to 8 bits");
    }
    png_set_strip_16(png);
    png_set_palette_to_rgb(png);
    png_set_expand_gray_1_2_4_to_8(png);
    png_set_gray_to_rgb(png);
    png_set_strip_alpha(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    const std::size_t stride = static_cast<std::size_t>(picture.width) * 3;
    if (png_get_rowbytes(png, info) != stride) {
        png_error(png, "it has another number of channels");
    }
    picture.pixels.resize(stride * static_cast<std::size_t>(picture.height));
    for (int y = 0; y < picture.height; ++y) {
        rows.push_back(&picture.pixels[stride * static_cast<std::size_t>(y)]);
    }
    png_read_image(png, rows.data());
    png_read_end(png, info);
    return true;
}

int orientation_of(const std::uint8_t* exif, std::size_t size);

int png_orientation(png_structp png, png_infop info)
{
    png_bytep exif = nullptr;
    png_uint_32 size = 0;
    return png_get_eXIf_1(png, info, &size, &exif) != 0 ? orientation_of(exif, size) : 1;
}

Picture png_of(const std::vector<std::uint8_t>& bytes, int& orientation, int bit_depth)
{
    PngInput input { &bytes };
    input.bit_depth = bit_depth;
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &input, png_failed, png_warned);
    png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
    Picture picture;
    std::vector<png_bytep> rows;
    const bool good = info != nullptr && decode_png(png, info, input, picture, rows);
    orientation = good ? png_orientation(png, info) : 1;
    png_destroy_read_struct(&png, &info, nullptr);
    if (!good) {
        throw Wrong { input.why };
    }
    return picture;
}

// -------------------- JPEG

struct JpegErrors {
    jpeg_error_mgr base {};
    std::jmp_buf jump {};
    char why[JMSG_LENGTH_MAX] = "";
};

[[noreturn]] void jpeg_failed(j_common_ptr common)
{
    auto* const errors = reinterpret_cast<JpegErrors*>(common->err);
    common->err->format_message(common, errors->why);
    std::longjmp(errors->jump, 1);
}

// A warning means data that is missing or damaged: a decoder would fill in grey.
void jpeg_said(j_common_ptr common, int level)
{
    if (level < 0) {
        jpeg_failed(common);
    }
}

bool decode_jpeg(jpeg_decompress_struct& jpeg, JpegErrors& errors, const std::vector<std::uint8_t>& bytes, Picture& picture,
    int& orientation)
{
    if (setjmp(errors.jump) != 0) {
        return false;
    }
    jpeg_create_decompress(&jpeg);
    jpeg_mem_src(&jpeg, bytes.data(), static_cast<unsigned long>(bytes.size()));
    jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&jpeg, TRUE);
    for (jpeg_saved_marker_ptr marker = jpeg.marker_list; marker != nullptr; marker = marker->next) {
        if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0) {
            orientation = orientation_of(marker->data + 6, marker->data_length - 6);
        }
    }
    jpeg.out_color_space = JCS_RGB; // libjpeg itself refuses CMYK
    picture.width = static_cast<int>(jpeg.image_width);
    picture.height = static_cast<int>(jpeg.image_height);
    const std::size_t stride = static_cast<std::size_t>(picture.width) * 3;
    if (std::uint64_t { jpeg.image_width } * jpeg.image_height <= most_pixels) {
        picture.pixels.resize(stride * static_cast<std::size_t>(picture.height));
        jpeg_start_decompress(&jpeg);
        while (jpeg.output_scanline < jpeg.output_height) {
            JSAMPROW row = &picture.pixels[stride * jpeg.output_scanline];
            jpeg_read_scanlines(&jpeg, &row, 1);
        }
        jpeg_finish_decompress(&jpeg);
    }
    return true;
}

Picture jpeg_of(const std::vector<std::uint8_t>& bytes, int& orientation)
{
    jpeg_decompress_struct jpeg {};
    JpegErrors errors;
    jpeg.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = jpeg_failed;
    errors.base.emit_message = jpeg_said;
    Picture picture;
    const bool good = decode_jpeg(jpeg, errors, bytes, picture, orientation);
    jpeg_destroy_decompress(&jpeg);
    if (!good) {
        throw Wrong { errors.why };
    }
    check_size(static_cast<std::uint64_t>(picture.width), static_cast<std::uint64_t>(picture.height));
    return picture;
}

// -------------------- PPM

Picture ppm_of(const std::vector<std::uint8_t>& bytes)
{
    std::size_t at = 2;
    const auto number = [&] {
        while (at < bytes.size() && (std::isspace(bytes[at]) != 0 || bytes[at] == '#')) {
            const bool comment = bytes[at] == '#';
            while (comment && at + 1 < bytes.size() && bytes[at] != '\n') {
                ++at;
            }
            ++at;
        }
        std::uint64_t value = 0;
        for (; at < bytes.size() && std::isdigit(bytes[at]) != 0 && value < most_pixels; ++at) {
            value = 10 * value + (bytes[at] - std::uint64_t { '0' });
        }
        return value;
    };
    const std::uint64_t width = number(), height = number(), white = number();
    check_size(width, height);
    const std::size_t size = static_cast<std::size_t>(width * height * 3);
    if (white != 255 || at >= bytes.size() || bytes.size() - at - 1 < size) {
        throw Wrong { white == 255 ? "it is cut off" : "it has no 8 bits per channel" };
    }
    const std::uint8_t* const begin = bytes.data() + at + 1;
    return { static_cast<int>(height), static_cast<int>(width), 3, std::vector<std::uint8_t>(begin, begin + size) };
}

// -------------------- what all have in common

// The orientation in an EXIF block; 1, which is upright, where there is none or the block is malformed.
int orientation_of(const std::uint8_t* exif, std::size_t size)
{
    if (size < 8 || (std::memcmp(exif, "II*\0", 4) != 0 && std::memcmp(exif, "MM\0*", 4) != 0)) {
        return 1;
    }
    const bool little = exif[0] == 'I';
    const auto number = [&](std::size_t at, std::size_t bytes) {
        std::size_t value = 0;
        for (std::size_t byte = 0; byte < bytes; ++byte) {
            value |= std::size_t { exif[at + byte] } << 8 * (little ? byte : bytes - 1 - byte);
        }
        return value;
    };
    const std::size_t folder = number(4, 4);
    if (folder > size - 2) {
        return 1;
    }
    for (std::size_t entry = 0; entry < number(folder, 2); ++entry) {
        const std::size_t at = folder + 2 + 12 * entry;
        if (at + 12 > size) {
            return 1;
        }
        if (number(at, 2) == 0x0112 && number(at + 2, 2) == 3) {
            const std::size_t value = number(at + 8, 2);
            return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
        }
    }
    return 1;
}

Picture upright(const Picture& picture, int orientation)
{
    if (orientation == 1) {
        return picture;
    }
    const bool turned = orientation >= 5;
    Picture result { turned ? picture.width : picture.height, turned ? picture.height : picture.width, 3, {} };
    result.pixels.resize(picture.pixels.size());
    const int right = picture.width - 1, bottom = picture.height - 1;
    std::uint8_t* into = result.pixels.data();
    for (int y = 0; y < result.height; ++y) {
        for (int x = 0; x < result.width; ++x, into += 3) {
            const int column = turned ? y : x, row = turned ? x : y;
            const bool mirror_column = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
            const bool mirror_row = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
            const int from_x = mirror_column ? right - column : column, from_y = mirror_row ? bottom - row : row;
            std::memcpy(into, &picture.pixels[3 * (static_cast<std::size_t>(from_y) * picture.width + from_x)], 3);
        }
    }
    return result;
}

// Pillow's mode L of RGB.
Picture grey(const Picture& picture)
{
    Picture result { picture.height, picture.width, 1, {} };
    for (std::size_t at = 0; at < picture.pixels.size(); at += 3) {
        const std::uint8_t* const rgb = &picture.pixels[at];
        result.pixels.push_back(static_cast<std::uint8_t>((rgb[0] * 19595U + rgb[1] * 38470U + rgb[2] * 7471U + 0x8000U) >> 16));
    }
    return result;
}

std::vector<std::uint8_t> bytes_of(const fs::path& path)
{
    std::error_code code;
    const std::uint64_t size = fs::is_regular_file(path, code) ? fs::file_size(path, code) : 0;
    std::ifstream file(path, std::ios::binary);
    if (code || !fs::is_regular_file(path) || !file) {
        throw refused(path, "cannot be read", "a readable file", "check its path and permissions");
    }
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(std::min(size, most_bytes)));
    file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    bytes.resize(static_cast<std::size_t>(file.gcount()));
    return bytes;
}

bool begins(const std::vector<std::uint8_t>& bytes, const char* mark, std::size_t length)
{
    return bytes.size() > length && std::memcmp(bytes.data(), mark, length) == 0;
}

} // namespace

Picture read_picture(const fs::path& path, int channels, int bit_depth)
{
    const std::vector<std::uint8_t> bytes = bytes_of(path);
    if (channels != 1 && channels != 3) {
        throw refused(path, "is no image of " + std::to_string(channels) + " channels", "a model of RGB or grey images",
            "call the library with the bytes of all channels");
    }
    try {
        int orientation = 1;
        Picture picture;
        if (begins(bytes, "\x89PNG", 4)) {
            picture = png_of(bytes, orientation, bit_depth);
        } else if (begins(bytes, "\xff\xd8", 2)) {
            picture = jpeg_of(bytes, orientation);
        } else if (begins(bytes, "P6", 2)) {
            picture = ppm_of(bytes);
        } else {
            throw refused(path, "is not an image", "PNG, JPEG or binary PPM", "convert it to PNG or JPEG");
        }
        picture = upright(picture, orientation);
        return channels == 1 ? grey(picture) : picture;
    } catch (const Wrong& wrong) {
        throw refused(path, "cannot be decoded (" + wrong.why + ")", "a complete, undamaged image", "copy or export it again");
    }
}

std::vector<fs::path> pictures_in(const fs::path& folder)
{
    static const std::set<std::string> suffixes = { ".jpg", ".jpeg", ".png", ".ppm" };
    std::vector<fs::path> found;
    std::error_code code;
    for (fs::recursive_directory_iterator entry(folder, code), end; !code && entry != end; entry.increment(code)) {
        std::string suffix = entry->path().extension().string();
        std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char one) { return std::tolower(one); });
        const bool hidden = entry->path().filename().string().front() == '.';
        if (hidden && entry->is_directory()) {
            entry.disable_recursion_pending();
        } else if (!hidden && entry->is_regular_file() && suffixes.count(suffix) == 1) {
            found.push_back(entry->path());
        }
    }
    if (code || found.empty()) {
        throw Error(3, "'" + folder.string() + "' holds no images", "PNG, JPEG or PPM files", "check the folder");
    }
    std::sort(found.begin(), found.end());
    return found;
}

} // namespace ztdeploy
