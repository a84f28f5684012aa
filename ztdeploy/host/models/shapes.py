"""Infer facts about a model from the shapes in a checkpoint: channels, pooling, the grid of patches.

Names are recognised by their ends, since trainers add prefixes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ztdeploy.core.errors import CheckpointError
from ztdeploy.core.preprocess_spec import ImageSize

State = Mapping[str, Tensor]

#: First layers, whose input has the image's channels: LV-ViT's convolution; the projection of patches in timm,
#: `transformers`, and CLIP's towers.
_DEEP = ("patch_embed.conv1.weight",)
_PATCHES = ("patch_embed.proj.weight", "projection.weight", "patch_embedding.weight", "conv1.weight")
_POOLED, _NORM, _CLASS_TOKEN = "fc_norm.weight", "norm.weight", "cls_token"
#: Absolute positions in timm, `transformers`, and CLIP's towers.
_POSITIONS = ("pos_embed", "position_embeddings", "position_embedding.weight", "positional_embedding")
_RELATIVE = "relative_position_bias_table"
#: Rows of the class token in a table of relative positions.
_CLASS_ROWS = 3


@dataclass(frozen=True)
class Making:
    """How to make a model for a checkpoint."""

    arguments: Mapping[str, Any]  #: arguments for timm, beside the image size
    image_size: ImageSize | None  #: None: the model's own
    assumed: tuple[str, ...] = ()  #: remarks


def channels_of(model: Any) -> int:
    """Number of channels of a model's images."""
    embed = model.patch_embed
    return int((embed.conv1 if hasattr(embed, "conv1") else embed.proj).in_channels)


def made_for(model: Any) -> ImageSize:
    """Image size of a model."""
    (rows, columns), (height, width) = model.patch_embed.grid_size, model.patch_embed.patch_size
    return ImageSize(rows * height, columns * width)


def making_of(tables: Mapping[str, State], sketch: Any, asked: ImageSize | None, where: str) -> Making:
    """Find out how to make the model of a checkpoint.

    Args:
        tables: all tensors of the file; where several tables have one name, the first counts.
        sketch: the model of that name, without values.
        asked: the user's image size.

    Raises:
        CheckpointError: positions do not form a square grid, and the user gave no size.
    """
    state = {name: tensor for table in reversed(list(tables.values())) for name, tensor in table.items()}
    own = sketch.state_dict()
    arguments: dict[str, Any] = {}
    ends = _DEEP if hasattr(sketch.patch_embed, "conv1") else _PATCHES
    patches = _first(state, ends, lambda tensor: tensor.dim() == 4)
    if patches is not None and patches.shape[1] != channels_of(sketch):
        arguments["in_chans"] = patches.shape[1]
    pooled = _pools(state)
    if pooled and not _pools(own):
        arguments["global_pool"] = "avg"
    elif _pools(own) and not pooled and _has(state, _NORM):
        arguments["global_pool"] = "token"
    if _CLASS_TOKEN in own and pooled and not _has(state, _CLASS_TOKEN):
        arguments["class_token"] = False
    size, assumed = _image_size(state, sketch, asked, where)
    return Making(arguments, size, assumed)


def _image_size(
    state: State, sketch: Any, asked: ImageSize | None, where: str
) -> tuple[ImageSize | None, tuple[str, ...]]:
    """The image size of the model, and a remark on assumptions about the checkpoint's positions."""
    height, width = sketch.patch_embed.patch_size
    rows, columns = (asked.height // height, asked.width // width) if asked else sketch.patch_embed.grid_size
    absolute = _POSITIONS[0] in sketch.state_dict()
    counts = _absolute_places(state, sketch) if absolute else _relative_places(state)
    if not counts or (rows * columns if absolute else (2 * rows - 1) * (2 * columns - 1)) in counts:
        return asked, ()
    square = next((count for count in counts if math.isqrt(count) ** 2 == count), counts[0])
    what, root = f"{square} {'patches' if absolute else 'distances'}", math.isqrt(square)
    if root**2 != square or not (absolute or root % 2):
        example = _examples(counts[0], height, width) if absolute else ""
        raise CheckpointError(
            f"checkpoint '{where}' has positions for {what}, which are no square grid, and not the {rows} x "
            f"{columns} of image size {ImageSize(rows * height, columns * width)}",
            "the image size that it was trained for",
            f"give --image-size HEIGHTxWIDTH{example}",
        )
    side = root if absolute else (root + 1) // 2
    grid = f"positions for {what} are taken for a grid of {side} x {side}"
    if asked is not None:
        return asked, (f"{grid} and resampled to {rows} x {columns}",)
    own_size = ImageSize(side * height, side * width)
    return own_size, (f"{grid}, which is image size {own_size}; for another grid give --image-size HEIGHTxWIDTH",)


def _absolute_places(state: State, sketch: Any) -> tuple[int, ...]:
    """Possible numbers of patches of a position table, the likeliest first, since prefix tokens may have rows."""
    found = _first(state, _POSITIONS, lambda tensor: tensor.dim() > 1 and tensor.shape[-1] == sketch.embed_dim)
    if found is None:
        return ()
    ours = sketch.state_dict()[_POSITIONS[0]].shape[1] - sketch.patch_embed.num_patches
    prefixes = dict.fromkeys((ours, 1, 0, sketch.num_prefix_tokens))
    return tuple(count for prefix in prefixes if (count := found.shape[-2] - prefix) > 0)


def _relative_places(state: State) -> tuple[int, ...]:
    """Number of relative positions in a table."""
    found = _first(state, (_RELATIVE,), lambda tensor: tensor.dim() == 2)
    return (found.shape[0] - _CLASS_ROWS,) if found is not None and found.shape[0] > _CLASS_ROWS else ()


def _examples(count: int, height: int, width: int) -> str:
    """The most nearly square grids of a number of patches."""
    rows = next((rows for rows in range(math.isqrt(count), 1, -1) if count % rows == 0), None)
    if rows is None:
        return ""
    columns = count // rows
    return f", such as {ImageSize(rows * height, columns * width)} or {ImageSize(columns * height, rows * width)}"


def _first(state: State, ends: tuple[str, ...], suits: Callable[[Tensor], bool]) -> Tensor | None:
    return next((state[name] for end in ends for name in state if _ends(name, end) and suits(state[name])), None)


def _has(state: State, end: str) -> bool:
    """Whether there is a tensor of that name outside of the blocks."""
    return any(_ends(name, end) and "blocks." not in name and "layer." not in name for name in state)


def _pools(state: State) -> bool:
    """Whether there is a norm behind the pooling and none ahead of it."""
    return _has(state, _POOLED) and not _has(state, _NORM)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
