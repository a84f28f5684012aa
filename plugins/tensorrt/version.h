#pragma once

// The version of what this library and the Python package must agree on: names, attributes, exported functions.
// Python reads it from this line and refuses a compiled library that says something else.
#define ZT_PLUGIN_ABI "1.0"

#define ZT_PLUGIN_NAMESPACE "ztdeploy"
#define ZT_PLUGIN_VERSION "1"
