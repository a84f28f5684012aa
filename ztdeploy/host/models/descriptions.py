"""Read the configuration files beside weights: timm's `config.json`, and those of `transformers`.

The files are untrusted: their values are checked and bounded, and no code is taken from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ztdeploy.core.data import first_error, read_json
from ztdeploy.core.errors import CheckpointError
from ztdeploy.core.preprocess_spec import LARGEST_RESIZED, ImageSize
from ztdeploy.core.text import printable

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
#: Configurations take a few MB, even with 21,841 names of classes.
_MOST_BYTES = 16 * 2**20
#: Bounds on arguments and on depth.
_LARGEST, _DEEPEST = 65536, 256
#: Arguments of models that are at least 1.
_COUNTS = {"patch_size", "embed_dim", "depth", "num_heads", "num_kv_heads", "in_chans"}

#: timm's names of activations, by the names in `transformers`.
_ACTIVATIONS = {
    **{"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
    **{"relu": "relu", "silu": "silu", "swish": "silu"},
}
#: timm's names of models by the `model_type` of `transformers`, with places for the size and the side of patches.
_ARCHITECTURES = {
    "vit": "vit_{size}_patch{patch}_224",
    "vit_mae": "vit_{size}_patch{patch}_224",
    "vit_msn": "vit_{size}_patch{patch}_224",
    "deit": "deit_{size}_patch{patch}_224",
    "dinov2": "vit_{size}_patch{patch}_dinov2",
    "dinov2_with_registers": "vit_{size}_patch{patch}_reg4_dinov2",
    "clip_vision_model": "vit_{size}_patch{patch}_clip_224",
    "siglip_vision_model": "vit_{size}_patch{patch}_siglip_224",
}
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1408: "giant", 1536: "giant"}
_FILTERS: dict[int, str] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  #: Pillow's numbers


@dataclass(frozen=True)
class Description:
    """Facts about weights, from the files beside them."""

    library: Literal["timm", "transformers"]
    architecture: str | None  #: timm's name; None where timm has no such model
    tag: str | None = None  #: timm's name of the weights
    geometry: Mapping[str, Any] = field(default_factory=dict)  #: arguments for timm that decide shapes
    arguments: Mapping[str, Any] = field(default_factory=dict)  #: other arguments for timm
    preprocess: Mapping[str, Any] = field(default_factory=dict)  #: under timm's names
    sources: Mapping[str, str] = field(default_factory=dict)  #: the file that each of these comes from
    image_size: ImageSize | None = None
    class_names: tuple[str, ...] | None = None
    problem_type: str | None = None  #: the meaning of logits, as `transformers` names it
    layer_norm_eps: float | None = None


def describe(folder: Path) -> Description | None:
    """Read a folder's `config.json` and `preprocessor_config.json`; None where neither has a known form.

    Raises:
        CheckpointError: one of them is damaged.
    """
    config, preprocessor = (_read(folder / name) for name in (CONFIG, PREPROCESSOR))
    try:
        if "architecture" in config:
            return _of_timm(config)
        return _of_transformers(config, preprocessor) if "model_type" in config else None
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = ": ".join(first_error(error)) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(
            f"configuration in '{folder}' cannot be used ({printable(reason)[:160]})",
            f"{CONFIG} as timm or transformers write it",
            "correct it, or give --model NAME and --checkpoint FILE from a folder without it",
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    data = read_json(path, _MOST_BYTES, what="configuration", error=CheckpointError, expected="a table in JSON")
    return data if isinstance(data, dict) else {}


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        return cls.model_validate_json(json.dumps(data))  # in JSON mode, strict validation takes a list for a tuple


# -------------------- timm


class _TimmPretrained(_Said):
    tag: str | None = None
    input_size: tuple[int, int, int] | None = None
    interpolation: str | None = None
    crop_pct: float | None = Field(default=None, gt=0, le=2)
    crop_mode: str | None = None
    mean: tuple[float, ...] | None = Field(default=None, min_length=1, max_length=64)
    std: tuple[float, ...] | None = Field(default=None, min_length=1, max_length=64)
    label_names: list[str] | None = None


class _Timm(_TimmPretrained):
    architecture: str = Field(pattern=r"^[a-z0-9_]{1,128}$")
    num_classes: int | None = Field(default=None, ge=0, le=10_000_000)
    model_args: dict[str, Any] = {}
    pretrained_cfg: _TimmPretrained | None = None
    labels: list[str] | None = None  #: what older files call `label_names`


def _of_timm(data: dict[str, Any]) -> Description:
    config = _Timm.of(data)
    facts = config.pretrained_cfg or config  # older files have one table
    said = facts.model_dump(include={"interpolation", "crop_pct", "crop_mode", "mean", "std"}, exclude_none=True)
    arguments = {name: _bounded(name, value) for name, value in config.model_args.items() if name != "num_classes"}
    channels, *size = facts.input_size or (3,)
    if channels != 3:
        arguments.setdefault("in_chans", channels)
    given = arguments.pop("img_size", None)
    asked = given if given is not None else size or None
    return Description(
        library="timm",
        architecture=config.architecture,
        tag=facts.tag,
        geometry=arguments,
        preprocess=said,
        sources=dict.fromkeys((*said, *(["image_size"] if asked else [])), CONFIG),
        image_size=None if asked is None else ImageSize.of(asked),
        class_names=_names(config.label_names or config.labels or facts.label_names),
    )


def _bounded(name: str, value: Any) -> Any:
    """An argument for timm, with its numbers in bounds that keep a model from being too large."""
    numbers = value if isinstance(value, list) else [value]
    if not all(one is None or isinstance(one, (bool, int, float, str)) for one in numbers) or len(numbers) > _DEEPEST:
        raise ValueError(f"model_args.{name} is neither a number nor a word")
    most = _DEEPEST if name == "depth" else _LARGEST
    least = 1 if name in _COUNTS else 0
    if any(isinstance(one, (int, float)) and not least <= one <= most for one in numbers):
        raise ValueError(f"model_args.{name} is not from {least} to {most}")
    return tuple(value) if isinstance(value, list) else value


# -------------------- transformers


class _Vision(_Said):
    """Sizes under timm's names; the names of `transformers` are aliases."""

    model_type: str
    embed_dim: int | None = Field(default=None, alias="hidden_size", ge=1, le=_LARGEST)
    depth: int | None = Field(default=None, alias="num_hidden_layers", ge=1, le=_DEEPEST)
    num_heads: int | None = Field(default=None, alias="num_attention_heads", ge=1, le=_LARGEST)
    intermediate_size: int | None = Field(default=None, ge=1, le=_LARGEST)
    mlp_ratio: float | None = Field(default=None, gt=0, le=64)
    image_size: int | tuple[int, int] | None = None
    patch_size: int | tuple[int, int] | None = None
    in_chans: int | None = Field(default=None, alias="num_channels", ge=1, le=64)
    reg_tokens: int | None = Field(default=None, alias="num_register_tokens", ge=0, le=_LARGEST)
    qkv_bias: bool | None = None
    hidden_act: str | None = None
    layer_norm_eps: float | None = Field(default=None, gt=0, lt=1)
    use_swiglu_ffn: bool = False
    id2label: dict[str, str] | None = None
    problem_type: str | None = None
    architectures: list[str] | None = None

    @property
    def distilled(self) -> bool:
        """Whether both heads of a distilled model are used."""
        return "DeiTForImageClassificationWithTeacher" in (self.architectures or ())


class _Preprocessor(_Said):
    do_resize: bool = True
    do_center_crop: bool | None = None
    do_normalize: bool = True
    size: int | dict[str, int | None] | None = None
    crop_size: int | dict[str, int | None] | None = None
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    resample: int | None = None
    image_mean: tuple[float, ...] | None = Field(default=None, min_length=1, max_length=64)
    image_std: tuple[float, ...] | None = Field(default=None, min_length=1, max_length=64)
    do_rescale: bool = True
    rescale_factor: float = Field(default=1 / 255, gt=0, le=1)  #: factor for pixels from 0 to 255

    @property
    def largest(self) -> float:
        """The value of a white pixel ahead of mean and std; in timm it is 1."""
        largest = 255 * self.rescale_factor if self.do_rescale else 255.0
        return 1.0 if math.isclose(largest, 1, rel_tol=1e-3) else largest


#: The library's defaults, which its configurations leave out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16},
    "clip_vision_model": {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "dinov2": {"patch_size": 14, "layer_norm_eps": 1e-6, "mlp_ratio": 4.0},
    "dinov2_with_registers": {"patch_size": 14, "layer_norm_eps": 1e-6, "mlp_ratio": 4.0, "num_register_tokens": 4},
}


def _of_transformers(data: dict[str, Any], preprocessor: dict[str, Any]) -> Description:
    kind = str(data["model_type"])
    if kind in ("clip", "siglip"):
        vision = data.get("vision_config")
        data = {**(vision if isinstance(vision, dict) else {}), "model_type": f"{kind}_vision_model"}
        kind = data["model_type"]
    given = {name: value for name, value in data.items() if value is not None}
    config = _Vision.of(
        {"hidden_act": "gelu", "layer_norm_eps": 1e-12, **_DEFAULTS[""], **_DEFAULTS.get(kind, {}), **given}
    )
    said = _said(_Preprocessor.of(preprocessor))
    size = said.pop("image_size", None) or _pair(config.image_size)
    where = PREPROCESSOR if said else CONFIG
    known = kind in _ARCHITECTURES  # for others only pre-processing and class names are understood
    activation = _ACTIVATIONS.get(config.hidden_act or "gelu") if known else ""
    if activation is None:
        raise ValueError(f"hidden_act '{config.hidden_act}', which is none of {', '.join(_ACTIVATIONS)}")
    return Description(
        library="transformers",
        architecture=_architecture(kind, config),
        geometry=_geometry(config) | ({"reg_tokens": 1} if kind == "deit" and not config.distilled else {}),
        arguments={"act_layer": activation} if known and not config.use_swiglu_ffn else {},
        preprocess=said,
        sources={**dict.fromkeys(said, where), **({"image_size": where} if size else {})},
        image_size=None if size is None else ImageSize.of(size),
        class_names=_labels(config.id2label),
        problem_type=config.problem_type,
        layer_norm_eps=config.layer_norm_eps if known else None,
    )


def _architecture(kind: str, config: _Vision) -> str | None:
    """The nearest of timm's names; the model is then made with the configuration's sizes."""
    pattern = _ARCHITECTURES.get(kind)
    if pattern is None:
        return None
    import timm

    if kind == "deit" and config.distilled:
        pattern = "deit_{size}_distilled_patch{patch}_224"
    if kind == "clip_vision_model" and config.hidden_act == "quick_gelu":
        pattern = pattern.replace("_clip_", "_clip_quickgelu_")
    size, patch = _SIZES.get(config.embed_dim or 0, "base"), (_pair(config.patch_size) or (16, 16))[0]
    exact = "vit_giant_patch14_dinov2" if config.use_swiglu_ffn else pattern.format(size=size, patch=patch)
    if config.use_swiglu_ffn and kind == "dinov2_with_registers":
        exact = "vit_giant_patch14_reg4_dinov2"
    if timm.is_model(exact):
        return exact
    return next(name for patch in (16, 14, 32) if timm.is_model(name := pattern.format(size="base", patch=patch)))


def _geometry(config: _Vision) -> dict[str, Any]:
    found = config.model_dump(include={"embed_dim", "depth", "num_heads", "in_chans", "reg_tokens", "qkv_bias"})
    width, inner, patch = config.embed_dim, config.intermediate_size, _pair(config.patch_size)
    if not config.use_swiglu_ffn:  # timm multiplies the width by it and truncates
        found["mlp_ratio"] = config.mlp_ratio if inner is None or width is None else (inner + 0.5) / width
    found["patch_size"] = patch[0] if patch and patch[0] == patch[1] else patch
    return {name: value for name, value in found.items() if value is not None}


def _said(preprocessor: _Preprocessor) -> dict[str, Any]:
    """A preprocessor's configuration under timm's names."""
    said: dict[str, Any] = {"mean": preprocessor.image_mean, "std": preprocessor.image_std}
    if not preprocessor.do_normalize:
        said = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if preprocessor.largest != 1:
        if said["mean"] is None or said["std"] is None:
            raise ValueError(f"pixels up to {preprocessor.largest:g}, without mean and std")
        said = {name: tuple(value / preprocessor.largest for value in values) for name, values in said.items()}
    if preprocessor.resample is not None:
        said["interpolation"] = _FILTERS.get(preprocessor.resample)
        if said["interpolation"] is None:
            raise ValueError(f"resample {preprocessor.resample}, which is none of {', '.join(map(str, _FILTERS))}")
    edge, exact = _sides(preprocessor.size)
    crop_edge, crop = _sides(preprocessor.crop_size)
    crop = crop or (None if crop_edge is None else (crop_edge, crop_edge))
    if crop is not None and preprocessor.do_center_crop is not False:
        shorter = edge or min(exact or crop)
        # a hair less, since the shorter side is a truncated quotient
        said |= {"image_size": crop, "crop_mode": "center", "crop_pct": math.nextafter(min(crop) / shorter, 0)}
    elif exact is not None or isinstance(preprocessor.size, int):
        said |= {"image_size": exact or (edge, edge), "crop_mode": "squash", "crop_pct": 1.0}
    elif edge is not None:
        said |= {"image_size": (edge, edge), "crop_mode": "center", "crop_pct": preprocessor.crop_pct or 1.0}
    return {name: value for name, value in said.items() if value is not None}


def _sides(size: int | dict[str, int | None] | None) -> tuple[int | None, tuple[int, int] | None]:
    """The shorter side, and (height, width); None for what the size leaves out."""
    said = {"shortest_edge": size} if isinstance(size, int) else size or {}
    edge, height, width = (said.get(name) for name in ("shortest_edge", "height", "width"))
    for side in (edge, height, width):
        if side is not None and not 1 <= side <= LARGEST_RESIZED:
            raise ValueError(f"a side of {side} pixels")
    return edge, None if height is None or width is None else (height, width)


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _labels(table: dict[str, str] | None) -> tuple[str, ...] | None:
    """The names of classes; None where they are the library's placeholders."""
    if not table or set(table) != {str(index) for index in range(len(table))}:
        return None
    names = [table[str(index)] for index in range(len(table))]
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else _names(names)


def _names(names: list[str] | None) -> tuple[str, ...] | None:
    cleaned = tuple(printable(name).strip() for name in names or ())
    return cleaned if cleaned and all(cleaned) else None
