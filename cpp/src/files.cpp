#include "files.h"

#include <openssl/evp.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <utility>
#include <vector>

namespace ztdeploy {
namespace {

[[noreturn]] void fail(int code)
{
    throw std::system_error(code, std::generic_category());
}

class Descriptor {
public:
    explicit Descriptor(const std::filesystem::path& path)
        : number_(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)) // a FIFO must not be waited for
    {
        if (number_ < 0) {
            fail(errno);
        }
        struct stat status { };
        const bool known = ::fstat(number_, &status) == 0;
        if (!known || !S_ISREG(status.st_mode)) {
            ::close(number_);
            fail(known ? (S_ISDIR(status.st_mode) ? EISDIR : EINVAL) : errno);
        }
        size_ = static_cast<std::uint64_t>(status.st_size);
    }
    ~Descriptor() { ::close(number_); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;

    int number() const { return number_; }
    std::uint64_t size() const { return size_; }
    std::size_t read(char* into, std::size_t most) const
    {
        for (;;) {
            const ssize_t count = ::read(number_, into, most);
            if (count >= 0) {
                return static_cast<std::size_t>(count);
            }
            if (errno != EINTR) {
                fail(errno);
            }
        }
    }

private:
    int number_;
    std::uint64_t size_ = 0;
};

} // namespace

std::string read_regular(const std::filesystem::path& path, std::uint64_t limit)
{
    const Descriptor file(path);
    if (file.size() > limit) {
        throw std::length_error("it has more than " + std::to_string(limit) + " bytes");
    }
    std::string content(static_cast<std::size_t>(file.size()), '\0');
    std::size_t filled = 0;
    while (filled < content.size()) {
        const std::size_t count = file.read(&content[filled], content.size() - filled);
        if (count == 0) {
            break;
        }
        filled += count;
    }
    content.resize(filled);
    return content;
}

void check_regular(const std::filesystem::path& path)
{
    const Descriptor file(path);
}

Digest digest_of(const std::filesystem::path& path)
{
    const Descriptor file(path);
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    std::vector<char> block(std::size_t { 1 } << 18);
    bool good = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
    Digest found;
    while (good) {
        const std::size_t count = file.read(block.data(), block.size());
        if (count == 0) {
            break;
        }
        found.bytes += count;
        good = EVP_DigestUpdate(context.get(), block.data(), count) == 1;
    }
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    if (!good || EVP_DigestFinal_ex(context.get(), sum, &length) != 1) {
        throw std::runtime_error("OpenSSL computes no sha256 here");
    }
    constexpr char digits[] = "0123456789abcdef";
    for (unsigned int at = 0; at < length; ++at) {
        found.sha256 += { digits[sum[at] >> 4], digits[sum[at] & 15] };
    }
    return found;
}

MappedFile::MappedFile(const std::filesystem::path& path)
{
    const Descriptor file(path);
    size_ = static_cast<std::size_t>(file.size());
    if (size_ > 0) {
        data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number(), 0);
        if (data_ == MAP_FAILED) {
            fail(errno);
        }
    }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr))
    , size_(std::exchange(other.size_, 0))
{
}

MappedFile::~MappedFile()
{
    if (data_ != nullptr) {
        ::munmap(data_, size_);
    }
}

} // namespace ztdeploy
