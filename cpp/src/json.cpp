#include "json.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <set>

namespace ztdeploy {
namespace {

constexpr std::ptrdiff_t most_values = 2'000'000;

} // namespace

Document::Document(const std::string& text)
{
    if (std::count(text.begin(), text.end(), ',') > most_values) {
        throw Damage("", "it holds more than 2,000,000 values");
    }
    std::vector<std::set<std::string>> open;
    const auto watch = [&open](int, Json::parse_event_t event, Json& parsed) {
        if (event == Json::parse_event_t::object_start) {
            open.emplace_back();
        } else if (event == Json::parse_event_t::object_end) {
            open.pop_back();
        } else if (event == Json::parse_event_t::key && !open.back().insert(parsed.get<std::string>()).second) {
            throw Damage("", "'" + parsed.get<std::string>().substr(0, 80) + "' stands there twice");
        }
        return true;
    };
    try {
        value_ = std::make_shared<const Json>(Json::parse(text, watch));
    } catch (const Json::exception& error) {
        throw Damage("", error.what());
    }
}

Node::Node(const Json& value, std::string where)
    : value_(&value)
    , where_(std::move(where))
{
}

void Node::refuse(const std::string& what) const
{
    throw Damage(where_, what);
}

const Json& Node::of_type(bool right, const char* wanted) const
{
    if (!right) {
        refuse(std::string("it is no ") + wanted);
    }
    return *value_;
}

Node Node::at(const char* key) const
{
    const Json& table = of_type(value_->is_object(), "table");
    const auto found = table.find(key);
    const std::string where = where_.empty() ? key : where_ + "." + key;
    if (found == table.end()) {
        throw Damage(where, "it is missing");
    }
    return Node(*found, where);
}

std::optional<Node> Node::find(const char* key) const
{
    const Json& table = of_type(value_->is_object(), "table");
    const auto found = table.find(key);
    return found == table.end() ? std::nullopt : std::optional(at(key));
}

std::optional<Node> Node::find_or_null(const char* key) const
{
    const std::optional<Node> found = find(key);
    return found && found->value_->is_null() ? std::nullopt : found;
}

bool Node::is_text() const
{
    return value_->is_string();
}

std::string Node::text() const
{
    return of_type(value_->is_string(), "text").get<std::string>();
}

std::int64_t Node::whole(std::int64_t least, std::int64_t most) const
{
    const Json& value = of_type(value_->is_number_integer(), "whole number");
    const bool huge = value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX;
    if (huge || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most) {
        refuse("it is no number from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value.get<std::int64_t>();
}

std::int64_t Node::whole(const char* key, std::int64_t least, std::int64_t most, std::int64_t otherwise) const
{
    const std::optional<Node> found = find(key);
    return found ? found->whole(least, most) : otherwise;
}

double Node::number() const
{
    return of_type(value_->is_number(), "number").get<double>();
}

bool Node::flag() const
{
    return of_type(value_->is_boolean(), "truth value").get<bool>();
}

std::size_t Node::one_of(const std::vector<const char*>& names) const
{
    const auto found = std::find(names.begin(), names.end(), text());
    if (found == names.end()) {
        refuse("'" + text().substr(0, 80) + "' is unknown");
    }
    return static_cast<std::size_t>(found - names.begin());
}

std::vector<Node> Node::list() const
{
    std::vector<Node> nodes;
    for (const Json& value : of_type(value_->is_array(), "list")) {
        nodes.emplace_back(value, where_ + "." + std::to_string(nodes.size()));
    }
    return nodes;
}

std::vector<std::pair<std::string, Node>> Node::table() const
{
    std::vector<std::pair<std::string, Node>> nodes;
    for (const auto& entry : of_type(value_->is_object(), "table").items()) {
        nodes.emplace_back(entry.key(), Node(entry.value(), where_ + "." + entry.key().substr(0, 80)));
    }
    return nodes;
}

} // namespace ztdeploy
