// JSON of unknown origin, read strictly: no repeated keys, no value of another type than asked for.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ztdeploy {

using Json = nlohmann::ordered_json; // the first profile that runs is the one that is taken

// What is wrong with a value, and where it stands.
struct Damage : std::runtime_error {
    Damage(const std::string& where, const std::string& what)
        : std::runtime_error((where.empty() ? "the JSON" : where) + ": " + what)
    {
    }
};

// A value and where it stands.
class Node {
public:
    explicit Node(const Json& value, std::string where = "");

    Node at(const char* key) const;                 // must be there
    std::optional<Node> find(const char* key) const; // none: absent
    std::optional<Node> find_or_null(const char* key) const; // none: absent or null
    bool is_text() const;
    std::string text() const;
    std::int64_t whole(std::int64_t least, std::int64_t most) const;
    std::int64_t whole(const char* key, std::int64_t least, std::int64_t most, std::int64_t otherwise) const;
    double number() const;
    bool flag() const;
    std::size_t one_of(const std::vector<const char*>& names) const; // which of these texts it is
    std::vector<Node> list() const;
    std::vector<std::pair<std::string, Node>> table() const;
    [[noreturn]] void refuse(const std::string& what) const;

private:
    const Json& of_type(bool right, const char* wanted) const;

    const Json* value_;
    std::string where_;
};

// A whole text. Throws Damage where it is no JSON.
class Document {
public:
    explicit Document(const std::string& text);

    Node root() const { return Node(*value_); } // of this document, which must outlive it

private:
    std::shared_ptr<const Json> value_;
};

} // namespace ztdeploy
