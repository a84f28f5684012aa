#include "fields.h"

#include "log.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

namespace ztdeploy {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

template <class Stored>
Stored read_as(const PluginField& field)
{
    Stored value; // copied, since nothing promises that the data is aligned
    std::memcpy(&value, field.data, sizeof(value));
    return value;
}

std::string range_text(std::int32_t lowest, std::int32_t highest)
{
    if (highest == std::numeric_limits<std::int32_t>::max()) {
        return "an integer of at least " + std::to_string(lowest);
    }
    return "an integer from " + std::to_string(lowest) + " to " + std::to_string(highest);
}

} // namespace

FieldReader::FieldReader(const char* plugin, const nvinfer1::PluginFieldCollection* fields)
    : plugin_(plugin)
    , fields_(fields)
{
}

void FieldReader::refuse(const std::string& why)
{
    if (good_) { // the first reason is the one to mend first
        log_error(std::string(plugin_) + ": " + why);
    }
    good_ = false;
}

const PluginField* FieldReader::find(const char* name)
{
    const int count = fields_ == nullptr ? 0 : fields_->nbFields;
    for (int index = 0; index < count; ++index) {
        const PluginField& field = fields_->fields[index];
        if (field.name == nullptr || std::strcmp(field.name, name) != 0) {
            continue;
        }
        if (field.data == nullptr || field.length != 1) {
            refuse(std::string("attribute '") + name + "' holds " + std::to_string(field.length)
                + " values; expected exactly one");
            return nullptr;
        }
        return &field;
    }
    refuse(std::string("attribute '") + name + "' is missing; export the graph again");
    return nullptr;
}

void FieldReader::operator()(const char* name, std::int32_t& value, std::int32_t lowest, std::int32_t highest)
{
    const PluginField* field = find(name);
    if (field == nullptr) {
        return;
    }
    std::int64_t given = 0;
    if (field->type == PluginFieldType::kINT32) {
        given = read_as<std::int32_t>(*field);
    } else if (field->type == PluginFieldType::kINT64) {
        given = read_as<std::int64_t>(*field);
    } else {
        refuse(std::string("attribute '") + name + "' is not an integer; expected " + range_text(lowest, highest));
        return;
    }
    if (given < lowest || given > highest) {
        refuse(std::string("attribute '") + name + "' is " + std::to_string(given) + "; expected "
            + range_text(lowest, highest));
        return;
    }
    value = static_cast<std::int32_t>(given);
}

void FieldReader::operator()(const char* name, float& value)
{
    const PluginField* field = find(name);
    if (field == nullptr) {
        return;
    }
    double given = 0.0;
    if (field->type == PluginFieldType::kFLOAT32) {
        given = read_as<float>(*field);
    } else if (field->type == PluginFieldType::kFLOAT64) {
        given = read_as<double>(*field);
    } else {
        refuse(std::string("attribute '") + name + "' is not a float; expected a number");
        return;
    }
    if (std::isnan(given)) { // infinities are sound limits
        refuse(std::string("attribute '") + name + "' is not a number; expected a number");
        return;
    }
    value = static_cast<float>(given);
}

void FieldLister::operator()(const char* name, const std::int32_t& value, std::int32_t /*lowest*/, std::int32_t /*highest*/)
{
    fields.emplace_back(name, &value, PluginFieldType::kINT32, 1);
    text += std::string(text.empty() ? "" : " ") + name + "=" + std::to_string(value);
}

void FieldLister::operator()(const char* name, const float& value)
{
    char number[32]; // hexadecimal floats are exact: two settings that differ must not share a timing cache entry
    std::snprintf(number, sizeof(number), "%a", static_cast<double>(value));
    fields.emplace_back(name, &value, PluginFieldType::kFLOAT32, 1);
    text += std::string(text.empty() ? "" : " ") + name + "=" + number;
}

} // namespace ztdeploy
