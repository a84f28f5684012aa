"""What the shapes in a checkpoint say of its model: channels, pooling, the grid of patches.

Names are told by their ends, whatever a trainer puts in front of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ztdeploy.core.errors import CheckpointError
from ztdeploy.core.preprocess_spec import ImageSize

#: What takes an image's channels: in LV-ViT a convolution ahead of the projection; the projection of patches by timm,
#: `transformers`, and CLIP's towers.
_DEEP = ("patch_embed.conv1.weight",)
_PATCHES = ("patch_embed.proj.weight", "projection.weight", "patch_embedding.weight", "conv1.weight")
_POOLED, _NORM, _CLASS_TOKEN = "fc_norm.weight", "norm.weight", "cls_token"
#: Absolute positions, by timm, `transformers`, and CLIP's towers.
_POSITIONS = ("pos_embed", "position_embeddings", "position_embedding.weight", "positional_embedding")
_RELATIVE = "relative_position_bias_table"
#: Rows of a table of relative positions that are the class token's.
_CLASS_ROWS = 3


@dataclass(frozen=True)
class Making:
    """How a model has to be made for a checkpoint."""

    arguments: Mapping[str, Any]  #: for timm, beside the image size
    image_size: ImageSize | None  #: None: the model's own
    assumed: tuple[str, ...] = ()  #: in words


def channels_of(model: nn.Module) -> int:
    """How many channels a model's images have."""
    embed: Any = model.patch_embed
    return int((embed.conv1 if _is_deep(model) else embed.proj).in_channels)


def _is_deep(model: Any) -> bool:
    return hasattr(model.patch_embed, "conv1")


def making_of(
    tables: Mapping[str, Mapping[str, Tensor]], sketch: nn.Module, asked: ImageSize | None, where: str
) -> Making:
    """How to make a model whose weights a checkpoint holds.

    Args:
        tables: all tensors of the file; where several tables have one name, the first counts.
        sketch: the model as its name alone makes it; without values.
        asked: the image size that the user gave.

    Raises:
        CheckpointError: positions are of no square grid, and nobody said of which.
    """
    state = {name: tensor for table in reversed(list(tables.values())) for name, tensor in table.items()}
    own = sketch.state_dict()
    arguments: dict[str, Any] = {}
    patches = _first(state, _DEEP if _is_deep(sketch) else _PATCHES, lambda tensor: tensor.dim() == 4)
    if patches is not None and patches.shape[1] != channels_of(sketch):
        arguments["in_chans"] = patches.shape[1]
    pooled, plain = _pools(state), _has(state, _NORM)
    if pooled and not _pools(own):
        arguments["global_pool"] = "avg"
    elif _pools(own) and plain and not pooled:
        arguments["global_pool"] = "token"
    if _CLASS_TOKEN in own and pooled and not _has(state, _CLASS_TOKEN):
        arguments["class_token"] = False
    size, assumed = _image_size(state, sketch, asked, where)
    return Making(arguments, size, assumed)


def _image_size(
    state: Mapping[str, Tensor], sketch: Any, asked: ImageSize | None, where: str
) -> tuple[ImageSize | None, tuple[str, ...]]:
    """The size to make the model at, and what was assumed about the positions in a checkpoint."""
    height, width = sketch.patch_embed.patch_size
    rows, columns = (asked.height // height, asked.width // width) if asked else sketch.patch_embed.grid_size
    places = _places(state, sketch)
    if places is None or places.fit(rows, columns):
        return asked, ()
    if places.side is None:
        raise CheckpointError(
            f"checkpoint '{where}' has positions for {places.what}, which are no square grid, and not the {rows} x "
            f"{columns} of image size {ImageSize(rows * height, columns * width)}",
            "the image size that it was trained for",
            f"give --image-size HEIGHTxWIDTH{_examples(places.counts[0], height, width) if places.absolute else ''}",
        )
    grid = f"positions for {places.what} are taken for a grid of {places.side} x {places.side}"
    if asked is not None:
        return asked, (f"{grid} and resampled to {rows} x {columns}",)
    own_size = ImageSize(places.side * height, places.side * width)
    return own_size, (f"{grid}, which is image size {own_size}; for another grid give --image-size HEIGHTxWIDTH",)


@dataclass(frozen=True)
class _Places:
    """How many places a table of positions has a row for."""

    counts: tuple[int, ...]  #: the likeliest first, since it may hold rows for prefix tokens, too
    absolute: bool  #: a row per patch; else one for each way in which two patches lie to each other

    def fit(self, rows: int, columns: int) -> bool:
        return (rows * columns if self.absolute else (2 * rows - 1) * (2 * columns - 1)) in self.counts

    @property
    def side(self) -> int | None:
        """Of the square grid that it is for, if it can be one."""
        sides = (math.isqrt(count) for count in self.counts if math.isqrt(count) ** 2 == count)
        return next((side if self.absolute else (side + 1) // 2 for side in sides if self.absolute or side % 2), None)

    @property
    def what(self) -> str:
        count = next((count for count in self.counts if math.isqrt(count) ** 2 == count), self.counts[0])
        return f"{count} patches" if self.absolute else f"{count} distances"


def _places(state: Mapping[str, Tensor], sketch: Any) -> _Places | None:
    own = sketch.state_dict()
    if _POSITIONS[0] in own:
        found = _first(state, _POSITIONS, lambda tensor: tensor.dim() > 1 and tensor.shape[-1] == sketch.embed_dim)
        ours = own[_POSITIONS[0]].shape[1] - sketch.patch_embed.num_patches
        prefixes = dict.fromkeys((ours, 1, 0, sketch.num_prefix_tokens))
        counts = tuple(found.shape[-2] - prefix for prefix in prefixes) if found is not None else ()
    else:
        found = _first(state, (_RELATIVE,), lambda tensor: tensor.dim() == 2)
        counts = (found.shape[0] - _CLASS_ROWS,) if found is not None else ()
    counts = tuple(count for count in counts if count > 0)
    return _Places(counts, absolute=_POSITIONS[0] in own) if counts else None


def _examples(count: int, height: int, width: int) -> str:
    """The most nearly square sizes of so many patches."""
    rows = next((rows for rows in range(math.isqrt(count), 1, -1) if count % rows == 0), None)
    if rows is None:
        return ""
    columns = count // rows
    sizes = (ImageSize(rows * height, columns * width), ImageSize(columns * height, rows * width))
    return f", such as {sizes[0]} or {sizes[1]}"


def _first(state: Mapping[str, Tensor], ends: tuple[str, ...], suits: Callable[[Tensor], bool]) -> Tensor | None:
    found = (state[name] for end in ends for name in state if _ends(name, end))
    return next(filter(suits, found), None)


def _has(state: Mapping[str, Tensor], end: str) -> bool:
    """Whether it has a tensor of that name, outside of its blocks."""
    return any(_ends(name, end) and "blocks." not in name and "layer." not in name for name in state)


def _pools(state: Mapping[str, Tensor]) -> bool:
    """Whether it has a norm behind the pooling, and not ahead of it."""
    return _has(state, _POOLED) and not _has(state, _NORM)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
