// The tensors of a weights file (safetensors), where they lie in it; nothing is copied and nothing is trusted.
#pragma once

#include "files.h"

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace ztdeploy {

struct StoredTensor {
    std::int64_t type = 0; // ONNX's number of it
    std::vector<std::int64_t> shape;
    std::size_t begin = 0, size = 0; // in bytes, from the beginning of the file
};

// Tensors by name; bf16 ones are left out. Throws Error where the header is damaged or a tensor lies outside the file.
std::map<std::string, StoredTensor> tensors_of(const MappedFile& file, const std::filesystem::path& path);

} // namespace ztdeploy
