#include "signature.h"

#include "files.h"
#include "text.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <system_error>

namespace ztdeploy {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t key_limit = 4 << 10, signature_limit = 16 << 10;
constexpr std::size_t id_bytes = 8, key_bytes = 32, signature_bytes = 64;
const char* const variable = "ZTDEPLOY_SIGNED_BY";
const char* const ask = "ask whoever signs your bundles";
const std::string trusted = "trusted comment: ";

std::vector<std::string> split(const std::string& text, char at)
{
    std::vector<std::string> parts;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(at, begin), text.size());
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

// The bytes that a line of base64 stands for, if there are so many.
std::optional<std::string> decoded(std::string line, std::size_t length)
{
    if (!line.empty() && line.back() == '\r') {
        line.pop_back();
    }
    const std::size_t padding = (3 - length % 3) % 3;
    if (line.size() != (length + 2) / 3 * 4 || line.find('=') != (padding > 0 ? line.size() - padding : std::string::npos)) {
        return {};
    }
    std::string bytes(line.size() / 4 * 3, '\0');
    const auto* const from = reinterpret_cast<const unsigned char*>(line.data());
    if (EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()), from, static_cast<int>(line.size()))
        != static_cast<int>(bytes.size())) {
        return {};
    }
    bytes.resize(length);
    return bytes;
}

std::optional<PublicKey> key_of(const std::string& line)
{
    const auto bytes = decoded(line, 2 + id_bytes + key_bytes);
    if (!bytes || bytes->compare(0, 2, "Ed") != 0) {
        return {};
    }
    return PublicKey { bytes->substr(2, id_bytes), bytes->substr(2 + id_bytes) };
}

PublicKey read_key(const std::string& given)
{
    if (const auto key = key_of(given)) {
        return *key;
    }
    const char* const expected = "a public key of minisign: its file, or the line that begins with RW";
    try {
        for (const std::string& line : split(read_regular(given, key_limit), '\n')) {
            if (const auto key = key_of(line)) {
                return *key;
            }
        }
    } catch (const std::system_error& error) {
        throw Error(input_error, "public key '" + given + "' cannot be read: " + error.code().message(), expected,
            "give the .pub file");
    } catch (const std::length_error&) { // said below
    }
    throw Error(input_error, "'" + given + "' holds no public key", expected, "give the .pub file");
}

std::string wanted(const std::vector<PublicKey>& keys)
{
    std::string numbers;
    for (const PublicKey& key : keys) {
        numbers += (numbers.empty() ? "a signature by " : " or ") + key.number();
    }
    return numbers;
}

std::string digest(const std::string& content)
{
    std::string sum(EVP_MAX_MD_SIZE, '\0');
    unsigned int length = 0;
    if (EVP_Digest(content.data(), content.size(), reinterpret_cast<unsigned char*>(sum.data()), &length,
            EVP_blake2b512(), nullptr)
        != 1) {
        throw Error(environment_error, "OpenSSL computes no BLAKE2b here", "a build of it that does", "install another one");
    }
    sum.resize(length);
    return sum;
}

// Whether a key made a signature; what OpenSSL cannot check was not.
bool made_by(const PublicKey& key, const std::string& signature, const std::string& content)
{
    const auto bytes = [](const std::string& text) { return reinterpret_cast<const unsigned char*>(text.data()); };
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> own(
        EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, bytes(key.bytes), key.bytes.size()), EVP_PKEY_free);
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    return own && context && EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, own.get()) == 1
        && EVP_DigestVerify(context.get(), bytes(signature), signature.size(), bytes(content), content.size()) == 1;
}

std::string read_signature(const fs::path& bundle, const std::vector<PublicKey>& keys)
{
    const fs::path path = bundle / "manifest.json.minisig";
    try {
        return read_regular(path, signature_limit);
    } catch (const std::system_error& error) {
        if (error.code() == std::errc::no_such_file_or_directory) {
            throw Error(bundle_error, "'" + bundle.string() + "' is not signed", wanted(keys),
                "sign it: ztdeploy sign BUNDLE --key KEY");
        }
        throw Error(bundle_error, "signature '" + path.string() + "' cannot be read: " + error.code().message(),
            wanted(keys), ask);
    } catch (const std::length_error&) {
        const std::string limit = std::to_string(signature_limit);
        throw Error(bundle_error, "signature '" + path.string() + "' has more than " + limit + " bytes", "at most " + limit, ask);
    }
}

} // namespace

std::string PublicKey::number() const
{
    constexpr char digits[] = "0123456789ABCDEF";
    std::string text;
    for (auto byte = id.rbegin(); byte != id.rend(); ++byte) {
        const auto value = static_cast<unsigned char>(*byte);
        text += { digits[value >> 4], digits[value & 15] };
    }
    return text;
}

std::vector<PublicKey> demanded_keys(const std::vector<std::string>& given)
{
    std::vector<std::string> texts = given;
    const char* const named = std::getenv(variable);
    if (texts.empty() && named != nullptr) {
        for (const std::string& one : split(named, ':')) {
            if (!one.empty()) {
                texts.push_back(one);
            }
        }
        if (texts.empty()) {
            throw Error(input_error, std::string("$") + variable + " names no key", "at least one public key",
                std::string("set it to keys, or unset ") + variable);
        }
    }
    std::vector<PublicKey> keys;
    for (const std::string& text : texts) {
        keys.push_back(read_key(text));
    }
    return keys;
}

void check_signature(const fs::path& bundle, const std::string& content, const std::vector<PublicKey>& keys)
{
    const std::string what = "'" + bundle.string() + "'";
    std::string text = read_signature(bundle, keys);
    text.resize(text.find_last_not_of('\n') + 1);
    const std::vector<std::string> lines = split(text, '\n');
    const bool whole = lines.size() == 4 && lines[2].compare(0, trusted.size(), trusted) == 0;
    const auto data = whole ? decoded(lines[1], 2 + id_bytes + signature_bytes) : std::nullopt;
    const auto both = whole ? decoded(lines[3], signature_bytes) : std::nullopt;
    const std::string kind = data ? data->substr(0, 2) : "";
    if (!both || (kind != "ED" && kind != "Ed")) {
        throw Error(bundle_error, "the signature of " + what + " is damaged", "the four lines that minisign writes", ask);
    }
    if (kind != "ED") {
        throw Error(bundle_error, "the signature of " + what + " is of minisign's older kind", "a signature of the digest",
            "sign again, without minisign's option -l");
    }
    const PublicKey signer { data->substr(2, id_bytes), "" };
    const std::string own = data->substr(2 + id_bytes);
    std::string comment = lines[2].substr(trusted.size());
    comment.resize(comment.find_last_not_of('\r') + 1);
    bool known = false;
    for (const PublicKey& key : keys) {
        known = known || key.id == signer.id;
        if (key.id == signer.id && made_by(key, own, digest(content)) && made_by(key, *both, own + comment)) {
            return;
        }
    }
    if (!known) {
        throw Error(bundle_error, what + " is signed by key " + signer.number(), wanted(keys), ask);
    }
    throw Error(bundle_error, what + " is not what key " + signer.number() + " signed: it, or its signature, was changed",
        "the content that was signed", "do not use it; copy it again");
}

} // namespace ztdeploy
