// The known inputs of a bundle, and the outputs of PyTorch that engines must give.
#pragma once

#include "bundle.h"

#include <cstdint>
#include <vector>

namespace ztdeploy {

// [n, H, W, C]. Throws Error where they are damaged or of another shape.
std::vector<std::uint8_t> golden_pixels(Bundle& bundle);

// Hold a variant's outputs in these images against PyTorch's, as `ztdeploy verify` does: in fp32 all tokens and outputs
// within rounding, below that the outputs of the median image. Throws Error: parity_error names what differs.
Checked check_golden(Bundle& bundle, const Variant& variant, const Graph& graph, const Outputs& found);

} // namespace ztdeploy
