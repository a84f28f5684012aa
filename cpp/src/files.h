// Reading files of unknown origin: regular ones only, never waiting, within bounds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace ztdeploy {

struct Digest {
    std::string sha256; // in hexadecimal
    std::uint64_t bytes = 0;
};

// These throw std::system_error, or std::length_error where the file has more than `limit` bytes.
std::string read_regular(const std::filesystem::path& path, std::uint64_t limit);
void check_regular(const std::filesystem::path& path);
Digest digest_of(const std::filesystem::path& path);

// A file's bytes in memory, read-only, for as long as this object lives. Throws std::system_error.
class MappedFile {
public:
    explicit MappedFile(const std::filesystem::path& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    MappedFile& operator=(MappedFile&&) = delete;

    const char* data() const { return static_cast<const char*>(data_); }
    std::size_t size() const { return size_; }

private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace ztdeploy
