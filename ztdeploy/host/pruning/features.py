"""Features by which tokens are compared, and their similarities."""

from __future__ import annotations

import torch
from torch import Tensor

from ztdeploy.core.options import Feature, Metric
from ztdeploy.host.pruning.layer import BlockTaps

_EPSILON = 1e-12


def source_of(feature: Feature, x: Tensor, taps: BlockTaps) -> Tensor:
    """The tensor that a feature is made from: `[B, H, N, d]` of the block, or its tokens `x [B, N, D]`."""
    tapped = {"keys": taps.keys, "all-keys": taps.keys, "queries": taps.queries, "values": taps.values, "tokens": x}
    source = tapped[feature]
    assert source is not None, f"the layer did not ask for {feature}"
    return source


def vectors(feature: Feature, source: Tensor) -> Tensor:
    """One vector per token, `[B, N, f]`: the mean over heads, or all heads concatenated."""
    if feature == "tokens":
        return source
    return source.transpose(1, 2).flatten(2) if feature == "all-keys" else source.mean(1)


def held(x: Tensor) -> Tensor:
    """Values of a type that holds products of whole tokens, which half precision does not."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def folded(x: Tensor, width: int) -> Tensor:
    """The sums of every `width`-th value of tokens, `[B, N, D]` to `[B, N, width]`.

    Channels have no order, so products of different channels nearly cancel out: what is left is about the squared
    distance, for `width` multiply-adds instead of D. A count sketch (Charikar, Chen, Farach-Colton, 2002) would draw
    the channels of a sum and their signs.
    """
    return x if x.shape[-1] == width else x.reshape(*x.shape[:2], -1, width).sum(2)


def mean_token(x: Tensor) -> Tensor:
    """The mean of tokens, `[B, N, D]` to `[B, 1, D]`; a product, since runtimes reduce over an inner axis slowly."""
    shares = x.new_full((1, 1, x.shape[1]), 1 / x.shape[1])
    return shares @ x


def lengths_of(x: Tensor) -> Tensor:
    """Euclidean lengths of vectors, `[..., D]` to `[..., 1]`; sums of squares, since runtimes make norms slowly."""
    long = held(x)
    lengths: Tensor = (long * long).sum(-1, keepdim=True).sqrt()
    return lengths.to(x.dtype)


def unit_length(feature: Tensor) -> Tensor:
    """Scale each vector along the last axis to length 1; a zero vector stays zero."""
    length: Tensor = torch.linalg.vector_norm(feature, dim=-1, keepdim=True)
    return feature / length.clamp_min(_EPSILON)


def comparable(feature: Tensor, metric: Metric) -> Tensor:
    """Scale vectors `[B, N, f]` for `similarities`: each to length 1 for cosines, otherwise an image's longest to 1.

    A common factor does not change the ranking, and keeps all values in the range of half precision.
    """
    if metric == "cosine":
        return unit_length(feature)
    longest: Tensor = torch.linalg.vector_norm(feature, dim=-1, keepdim=True).amax(1, keepdim=True)
    return feature / longest.clamp_min(_EPSILON)


def similarities(one: Tensor, other: Tensor, metric: Metric) -> Tensor:
    """Similarities of `[B, m, f]` to `[B, n, f]`, as `[B, m, n]`; for distances, their negatives.

    Euclidean distances are squared, which keeps their order. Manhattan distances take a tensor `[B, m, n, f]`.
    """
    if metric == "manhattan":
        return -(one.unsqueeze(2) - other.unsqueeze(1)).abs().sum(-1)
    product = one @ other.transpose(1, 2)
    if metric != "euclidean":
        return product
    return 2 * product - (one * one).sum(-1).unsqueeze(2) - (other * other).sum(-1).unsqueeze(1)
