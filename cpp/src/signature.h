// Signatures of the program minisign: Ed25519 over the BLAKE2b-512 digest of a content, with a trusted comment.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace ztdeploy {

struct PublicKey {
    std::string id, bytes;

    std::string number() const; // as minisign prints it
};

// The keys that are given, as paths or base64; where none is, those that the environment variable ZTDEPLOY_SIGNED_BY
// names. None: no signature is demanded. Throws Error.
std::vector<PublicKey> demanded_keys(const std::vector<std::string>& given);

// Throws Error unless one of the keys signed the content, which is the manifest of a bundle.
void check_signature(
    const std::filesystem::path& bundle, const std::string& content, const std::vector<PublicKey>& keys);

} // namespace ztdeploy
