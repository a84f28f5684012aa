// NumPy's array files: .npy, and .npz whose members are not compressed. Nothing of them is trusted.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace ztdeploy {

struct Array {
    std::string type; // NumPy's code of it, such as "<f4"
    std::vector<std::size_t> shape;
    std::string bytes; // row by row
};

// Arrays by name; that of a .npy file has none. Throws Error.
std::map<std::string, Array> read_arrays(const std::filesystem::path& path);

} // namespace ztdeploy
