"""Read the configuration files beside weights: timm's `config.json`, and those of `transformers`.

The files are untrusted: their values are checked and bounded, and no code is taken from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from ztdeploy.core.data import first_error, read_json
from ztdeploy.core.errors import CheckpointError
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.text import printable
from ztdeploy.host.models.hf_folder import CONFIG, KINDS, PREPROCESSOR, HubConfig, check_no_code, read_config
from ztdeploy.host.models.hf_processor import Said, said_by

if TYPE_CHECKING:
    pass

_PROCESSOR = "processor_config.json"  #: holds the image processor's configuration in newer releases of transformers
CONFIGURATIONS = (CONFIG, PREPROCESSOR, _PROCESSOR)
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
    config = _read(folder / CONFIG)
    with _unusable(folder, CONFIG):
        if "architecture" in config:
            return _of_timm(config)
        return _of_transformers(config, *_processor(folder)) if "model_type" in config else None


def describe_hub(folder: Path, where: str) -> tuple[HubConfig, Description] | None:
    """What a folder in the form of `transformers` says of a model of that library; None for other folders.

    Args:
        where: the name of the folder or repository in errors.

    Raises:
        CheckpointError: a file is damaged, pre-processing cannot be reproduced, or the weights are quantised.
        ModelError: see `hf_folder.read_config`.
    """
    data = _read(folder / CONFIG)
    if "model_type" not in data:
        return None
    config, (processor, file) = read_config(data, where), _processor(folder)
    check_no_code(processor, where, file)
    with _unusable(folder, CONFIG):
        vision = _vision(data)
    with _unusable(folder, file):
        images = said_by(processor, KINDS[config.kind].processor) if processor else {}
    size = images.pop("image_size", None)
    return config, Description(
        library="transformers",
        architecture=None,
        preprocess=images,
        sources=dict.fromkeys(images, file) | {"image_size": file if size else CONFIG},
        image_size=ImageSize.of(size or vision.image_size),
        class_names=_labels(vision.id2label),
        problem_type=vision.problem_type,
    )


def _processor(folder: Path) -> tuple[dict[str, Any], str]:
    """The configuration of the image processor, and the name of its file."""
    if (folder / PREPROCESSOR).exists():
        return _read(folder / PREPROCESSOR), PREPROCESSOR
    found = _read(folder / _PROCESSOR).get("image_processor")
    return (found, _PROCESSOR) if isinstance(found, dict) else ({}, PREPROCESSOR)


@contextmanager
def _unusable(folder: Path, file: str) -> Iterator[None]:
    """Turns errors about values into ours."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = ": ".join(first_error(error)) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(
            f"{file} in '{folder}' cannot be used ({printable(reason)[:160]})",
            "values as timm or transformers write them, which can be reproduced exactly",
            "correct it, or give --model NAME and --checkpoint FILE from a folder without it",
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    data = read_json(path, _MOST_BYTES, what="configuration", error=CheckpointError, expected="a table in JSON")
    return data if isinstance(data, dict) else {}


# -------------------- timm


class _TimmPretrained(Said):
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
    model_args: dict[str, Any] = Field(default_factory=dict)
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


class _Vision(Said):
    """What is used of a configuration, and bounds on its sizes."""

    model_type: str
    hidden_size: int | None = Field(default=None, ge=1, le=_LARGEST)
    num_hidden_layers: int | None = Field(default=None, ge=1, le=_DEEPEST)
    num_attention_heads: int | None = Field(default=None, ge=1, le=_LARGEST)
    intermediate_size: int | None = Field(default=None, ge=1, le=_LARGEST)
    mlp_ratio: float | None = Field(default=None, gt=0, le=64)
    image_size: int | tuple[int, int] | None = None
    patch_size: int | tuple[int, int] | None = None
    num_channels: int | None = Field(default=None, ge=1, le=64)
    num_register_tokens: int | None = Field(default=None, ge=0, le=_LARGEST)
    hidden_act: str
    layer_norm_eps: float | None = Field(default=None, gt=0, lt=1)
    use_swiglu_ffn: bool = False
    id2label: dict[str, str] | None = None
    problem_type: str | None = None


#: The library's defaults, which its configurations leave out, for models that timm has as well.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "": {"image_size": 224, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
    **{kind: {} for kind in ("vit", "vit_mae", "vit_msn", "deit")},
    "clip_vision_model": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    **{kind: {"layer_norm_eps": 1e-6} for kind in ("dinov2", "dinov2_with_registers")},
}


def _vision(data: dict[str, Any]) -> _Vision:
    """The configuration of a vision tower, by itself or within that of a whole CLIP or SigLIP, or of a dense model."""
    kind = str(data["model_type"])
    if kind in ("clip", "siglip"):
        vision = data.get("vision_config")
        data = {**data, **(vision if isinstance(vision, dict) else {}), "model_type": f"{kind}_vision_model"}
    given = {name: value for name, value in data.items() if value is not None}
    if isinstance(inner := data.get("backbone_config"), dict) and inner.get("image_size"):
        given["image_size"] = inner["image_size"]
    return _Vision.of({**_DEFAULTS[""], **_DEFAULTS.get(data["model_type"], {}), **given})


def _of_transformers(data: dict[str, Any], preprocessor: dict[str, Any], file: str) -> Description:
    """For weights that become a model of timm's, whose names `dialects` translates."""
    config = _vision(data)
    usual = KINDS[config.model_type].processor if config.model_type in KINDS else "ViT"
    said = said_by(preprocessor, usual, exact=False) if preprocessor else {}
    size = said.pop("image_size", None) or _pair(config.image_size)
    where = file if said else CONFIG
    known = config.model_type in _DEFAULTS  # for others only pre-processing and class names are understood
    activation = _ACTIVATIONS.get(config.hidden_act) if known else ""
    if activation is None:
        raise ValueError(f"hidden_act '{config.hidden_act}', which is none of {', '.join(_ACTIVATIONS)}")
    return Description(
        library="transformers",
        architecture=None,
        arguments={"act_layer": activation} if known and not config.use_swiglu_ffn else {},
        preprocess=said,
        sources={**dict.fromkeys(said, where), **({"image_size": where} if size else {})},
        image_size=None if size is None else ImageSize.of(size),
        class_names=_labels(config.id2label),
        problem_type=config.problem_type,
        layer_norm_eps=config.layer_norm_eps if known else None,
    )


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
