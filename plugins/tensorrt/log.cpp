#include "log.h"

#include <atomic>
#include <cstdio>

// Weak: this library is not linked to a TensorRT library, since which one loads it (standard, lean, RTX) is not known here.
#pragma weak getLogger

namespace ztdeploy {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> finder_of_host{nullptr};

nvinfer1::ILogger* find_logger()
{
    if (nvinfer1::ILoggerFinder* finder = finder_of_host.load()) {
        if (nvinfer1::ILogger* logger = finder->findLogger()) {
            return logger;
        }
    }
    return getLogger != nullptr ? getLogger() : nullptr;
}

} // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { finder_of_host.store(finder); }

void log_error(const std::string& message)
{
    const std::string line = "ztdeploy plugins: " + message;
    if (nvinfer1::ILogger* logger = find_logger()) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
        return;
    }
    std::fprintf(stderr, "%s\n", line.c_str());
}

} // namespace ztdeploy
