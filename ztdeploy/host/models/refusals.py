"""Families of timm that cannot be pruned soundly, and why."""

from __future__ import annotations

_WINDOWS = "its attention stays within windows of the image, which need every patch in its place"
_STAGES = "it shrinks the grid of patches between its stages, which needs every patch in its place"
_CONVOLUTION = "convolutions among its blocks need every patch in its place"
_NETWORK = "it is no plain vision transformer: what lies between its blocks needs the whole grid of patches"

#: By the module of timm that defines a family.
REFUSED: dict[str, str] = {
    "cait": "talking heads mix attention before and behind its softmax, and patches are frozen at the end",
    "coat": _CONVOLUTION,
    "convit": "its gated attention is a sum with a fixed one between places of the whole grid",
    "crossvit": "two branches with patches of two sizes exchange class tokens",
    "davit": _WINDOWS,
    "deepseek_vit": _STAGES,
    "efficientformer": _STAGES,
    "efficientformer_v2": _STAGES,
    "focalnet": "it has no attention between patches, but modulation by convolutions",
    "gcvit": _WINDOWS,
    "hiera": _STAGES,
    "hieradet_sam2": _WINDOWS,
    "levit": _STAGES,
    "maxxvit": _WINDOWS,
    "mobilevit": _CONVOLUTION,
    "mvitv2": _STAGES,
    "naflexvit": "its number of patches depends on the image; a graph needs one that is fixed",
    "nest": _WINDOWS,
    "nextvit": _CONVOLUTION,
    "pit": _STAGES,
    "pvt_v2": _STAGES,
    "swin_transformer": _WINDOWS,
    "swin_transformer_v2": _WINDOWS,
    "swin_transformer_v2_cr": _WINDOWS,
    "tiny_vit": _WINDOWS,
    "tnt": "each patch is a transformer of its own pixels beside the outer one",
    "twins": _WINDOWS,
    "vision_transformer_hybrid": "a convolutional network stands in for its patch embedding, whose cost is unknown",
    "vision_transformer_relpos": "its relative position bias is a module of its own that no adapter gathers per image",
    "vision_transformer_sam": _WINDOWS,
    "vitamin": _CONVOLUTION,
    "visformer": _STAGES,
    "volo": "its outlook attention mixes neighbouring patches, and it shrinks the grid",
    "xcit": "its attention is between channels: no patch attends to another",
}


def refusal(module: str) -> str:
    """Why models of a module, as in `timm.models.swin_transformer`, are refused."""
    return REFUSED.get(module.rpartition(".")[2], _NETWORK)
