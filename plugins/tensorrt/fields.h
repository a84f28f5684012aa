// Plugin fields (attributes of an ONNX node, or what an engine stored) to settings and back.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace ztdeploy {

// A visitor of settings that fills them from fields, and says what is wrong with the first bad one.
class FieldReader {
public:
    FieldReader(const char* plugin, const nvinfer1::PluginFieldCollection* fields);

    void operator()(const char* name, std::int32_t& value, std::int32_t lowest, std::int32_t highest);
    void operator()(const char* name, float& value);

    void refuse(const std::string& why);
    bool good() const { return good_; }

private:
    const nvinfer1::PluginField* find(const char* name);

    const char* plugin_;
    const nvinfer1::PluginFieldCollection* fields_;
    bool good_ = true;
};

// A visitor of settings that lists them as fields. The fields point into the settings, which must outlive them.
class FieldLister {
public:
    void operator()(const char* name, const std::int32_t& value, std::int32_t lowest, std::int32_t highest);
    void operator()(const char* name, const float& value);

    std::vector<nvinfer1::PluginField> fields;
    std::string text; //!< "name=value name=value", exact
};

} // namespace ztdeploy
