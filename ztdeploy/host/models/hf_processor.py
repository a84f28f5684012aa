"""The image processors of `transformers`: what `preprocessor_config.json` says, under timm's names.

Pixels come out bit for bit as from the library's processors that use Pillow. DINOv3 has none of these: the library
resizes unrounded numbers, and pixels differ by at most one level of 255.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from ztdeploy.core.preprocess_spec import LARGEST_RESIZED, PreprocessSpec

if TYPE_CHECKING:
    from typing_extensions import Self

_HALVES = (0.5, 0.5, 0.5)
_CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
_SQUARE, _CROP = {"size": {"height": 224, "width": 224}}, {"crop_size": {"height": 224, "width": 224}}
_OF_EDGE = {**_CLIP, **_CROP, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, "edge": True}
#: The library's defaults of the processors that are known, which configurations leave out. `edge`: whether a size of
#: one number is that of the shorter side.
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {**_SQUARE, "resample": 2},
    "DeiT": {**_CROP, "size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True},
    "Beit": {**_SQUARE, **_CROP, "resample": 3},
    "Siglip": {**_SQUARE, "resample": 3, "edge": True},
    "CLIP": _OF_EDGE,
    "Bit": _OF_EDGE,
    "DPT": {"size": {"height": 384, "width": 384}, "resample": 3},
    "DINOv3ViT": {
        **_SQUARE,
        "resample": 2,
        "image_mean": (0.485, 0.456, 0.406),
        "image_std": (0.229, 0.224, 0.225),
    },
}
#: What is said of models with DINOv3's processor.
INEXACT = "transformers resizes images for DINOv3 without rounding, so pixels differ from its by up to one level of 255"
SQUASHED = "transformers keeps the shape of an image here, and a graph takes one size: images are squashed to it"
_FILTERS: dict[int, str] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  #: Pillow's numbers
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels"}


class Said(BaseModel):
    """What a configuration says, of which other keys are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        return cls.model_validate_json(json.dumps(data))  # in JSON mode, strict validation takes a list for a tuple


class ProcessorConfig(Said):
    """A processor's configuration; sizes may be numbers, as older releases wrote them."""

    do_resize: bool = True
    do_center_crop: bool | None = None
    do_normalize: bool = True
    do_rescale: bool = True
    size: int | dict[str, int | None] | None = None
    crop_size: int | dict[str, int | None] | None = None
    resample: int | None = None
    image_mean: tuple[float, ...] = Field(default=_HALVES, min_length=1, max_length=64)
    image_std: tuple[float, ...] = Field(default=_HALVES, min_length=1, max_length=64)
    rescale_factor: float = Field(default=1 / 255, gt=0, le=1)  #: factor for pixels from 0 to 255
    edge: bool = False
    keep_aspect_ratio: bool = False  #: to the nearest size of that shape
    ensure_multiple_of: int = Field(default=1, ge=1, le=LARGEST_RESIZED)

    @property
    def largest(self) -> float:
        """The value of a white pixel ahead of mean and std; in timm it is 1."""
        largest = 255 * self.rescale_factor if self.do_rescale else 255.0
        return 1.0 if math.isclose(largest, 1, rel_tol=1e-9) else largest


def said_by(data: Mapping[str, Any], usual: str, *, exact: bool = True) -> dict[str, Any]:
    """Pre-processing under timm's names, `image_size` among them.

    Args:
        data: the content of `preprocessor_config.json`; empty: the library's defaults.
        usual: the processor in `PROCESSORS` that the model's configuration implies, where the data name none.
        exact: whether what cannot be reproduced exactly is refused, or left out.

    Raises:
        ValueError: something that cannot be reproduced exactly; names the key.
    """
    defaults = PROCESSORS[_type_of(data, usual) if exact else usual]
    strange = [name for name, value in data.items() if name.startswith("do_") and value and name not in _STEPS]
    if strange and exact:
        raise ValueError(f"key {strange[0]}: a step that is not reproduced")
    found = ProcessorConfig.of({**defaults, **{name: value for name, value in data.items() if value is not None}})
    if exact and not found.do_resize:
        raise ValueError("key do_resize: without it images keep their own sizes, and a graph needs one size")
    if found.resample not in _FILTERS:
        raise ValueError(f"key resample: {found.resample} is none of {', '.join(map(str, _FILTERS))}")
    return {
        **_values(found),
        "interpolation": _FILTERS[found.resample],
        "crop_rounding": "down",
        **({"squashed": True} if found.keep_aspect_ratio else {}),
        **_sizes(found, exact),
    }


def processor_of(spec: PreprocessSpec, *, pixels: bool) -> dict[str, Any] | None:
    """What `preprocessor_config.json` must say for the library to give a bundle's pixels; None: nothing says that.

    Args:
        pixels: uint8, not normalised.
    """
    squash = spec.crop_mode == "squash"
    if spec.channels != len(_HALVES) or not (squash or spec.resize.height == spec.resize.width):
        return None
    crops = not squash or spec.resize != spec.image_size
    sides = {"height": spec.resize.height, "width": spec.resize.width}
    return {
        "image_processor_type": f"{'CLIP' if not squash else 'DeiT' if crops else 'Siglip'}ImageProcessor",
        "do_resize": True,
        "size": sides if squash else {"shortest_edge": spec.resize.height},
        "resample": next(number for number, name in _FILTERS.items() if name == spec.interpolation),
        "do_center_crop": crops,
        **({"crop_size": {"height": spec.image_size.height, "width": spec.image_size.width}} if crops else {}),
        "do_rescale": not pixels,
        "rescale_factor": 1 / 255,
        "do_normalize": not pixels,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_convert_rgb": True,
    }


def _type_of(data: Mapping[str, Any], usual: str) -> str:
    key = next((key for key in ("image_processor_type", "feature_extractor_type") if data.get(key)), None)
    named = str(data.get(key or "", f"{usual}ImageProcessor"))
    kind = named.removesuffix("Fast").removesuffix("FeatureExtractor").removesuffix("ImageProcessor")
    if kind not in PROCESSORS:
        raise ValueError(f"key {key}: {named[:80]} is not one of {', '.join(PROCESSORS)} with ImageProcessor behind")
    return kind


def _values(found: ProcessorConfig) -> dict[str, Any]:
    mean, std = found.image_mean, found.image_std
    if not found.do_normalize:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    return {"mean": tuple(one / found.largest for one in mean), "std": tuple(one / found.largest for one in std)}


def _sizes(found: ProcessorConfig, exact: bool) -> dict[str, Any]:
    edge, sides = _sides("size", found.size, found.edge)
    _, crop = _sides("crop_size", found.crop_size, edge=False) if found.do_center_crop else (None, None)
    if edge is not None and crop is None and exact:
        raise ValueError("key do_center_crop: without it images keep their shapes, and a graph needs one size")
    before = sides or (edge or 0, edge or 0)
    step = found.ensure_multiple_of
    size = crop or (round(before[0] / step) * step, round(before[1] / step) * step)
    before = before if crop else size
    # a hair less, since the sides before the crop are truncated quotients
    ratio = math.nextafter(size[0] / before[0], 0) if crop else 1.0
    if exact and tuple(math.floor(side / ratio) for side in size) != before:
        raise ValueError("key crop_size: its sides have another ratio than those of size")
    return {"image_size": size, "crop_mode": "squash" if edge is None else "center", "crop_pct": ratio}


def _sides(key: str, size: int | dict[str, int | None] | None, edge: bool) -> tuple[int | None, tuple[int, int] | None]:
    """The shorter side, or (height, width)."""
    if isinstance(size, int):
        size = {"shortest_edge": size} if edge else {"height": size, "width": size}
    said = {name: side for name, side in (size or {}).items() if side is not None}
    for name, side in said.items():
        if name not in ("shortest_edge", "height", "width"):
            raise ValueError(f"key {key}: a size by {name}")
        if not 1 <= side <= LARGEST_RESIZED:
            raise ValueError(f"key {key}: a side of {side} pixels")
    if said.keys() == {"shortest_edge"}:
        return said["shortest_edge"], None
    if said.keys() == {"height", "width"}:
        return None, (said["height"], said["width"])
    raise ValueError(f"key {key}: {', '.join(said) or 'nothing'}, and not shortest_edge, or height and width")
