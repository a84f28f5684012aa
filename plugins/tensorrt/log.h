#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace ztdeploy {

// TensorRT hands a finder over when it loads the library; a null pointer takes it away.
void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// Reports through the logger of the calling engine, else the process's, else standard error.
void log_error(const std::string& message);

} // namespace ztdeploy
