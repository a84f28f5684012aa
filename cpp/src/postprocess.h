// From raw outputs to what a person wants to know; as ztdeploy/target/runtime/postprocess.py does it.
#pragma once

#include "bundle.h"

#include <ztdeploy/ztdeploy.h>

#include <string>
#include <vector>

namespace ztdeploy {

// The `top` best outputs of one image, best first, equal ones in the order of their indices.
std::vector<Label> top_labels(const float* logits, const std::vector<std::string>& names, std::size_t top,
    Activation activation, std::optional<double> threshold);

// Per layer, the patches of one image that are left, as indices into its grid.
std::vector<std::vector<std::int32_t>> kept_patches(
    const std::vector<std::vector<std::int32_t>>& kept, const std::vector<Layer>& layers, std::size_t image, int prefix_tokens);

} // namespace ztdeploy
