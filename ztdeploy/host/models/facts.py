"""Facts about a model beside its weights, with their sources: pre-processing, classes, and activation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztdeploy.core.data import read_json
from ztdeploy.core.errors import InputError, ModelError
from ztdeploy.core.files import read_text
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import Activation, ImageSize, PreprocessSpec
from ztdeploy.core.text import printable
from ztdeploy.host.models.hf_folder import DEPTH, SEGMENTATION
from ztdeploy.host.models.sources import IMAGENET, Source

_OPTION = "option"
_FIELDS = ("image_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
#: Activations by the `problem_type` of a configuration of `transformers`.
_PROBLEM_TYPES: dict[str, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}

# -------------------- pre-processing


@dataclass(frozen=True)
class Preprocessing:
    """The specification of pre-processing, with the source of each field."""

    spec: PreprocessSpec
    sources: Mapping[str, str]  #: the source of each field: an option, a file beside the weights, or timm
    assumed: tuple[str, ...]  #: remarks on assumptions


def preprocessing_of(
    config: Mapping[str, Any], source: Source, asked: ModelSource, size: ImageSize | None, channels: int
) -> Preprocessing:
    """Merge what options, files and timm say about pre-processing.

    Args:
        config: timm's data configuration of the model's name.
        size: image size; None: the configuration's.
        channels: number of image channels.

    Raises:
        ModelError: values that cannot be used.
    """
    said = source.description
    options = asked.preprocess.model_dump(exclude_none=True)
    merged = {**config, **said.preprocess, **options}
    averaged = [_per_channel(merged[name], channels) for name in ("mean", "std")]
    spec = _spec(merged, size or ImageSize.of(tuple(config["input_size"][-2:])), *averaged)
    default = "that of the package" if source.shipped else f"timm's for {source.timm_name}"
    if source.hub is not None:
        default = f"transformers' for {source.hub.kind}"
    given = [*options, *(["image_size"] if asked.image_size else [])]
    who = {**dict.fromkeys(_FIELDS, default), **said.sources, **dict.fromkeys(given, _OPTION)}
    remarks = []
    if any(len(set(merged[name])) > 1 and len(merged[name]) != channels for name in ("mean", "std")):
        many = f"each of {channels} channels" if channels > 1 else "the one channel"
        remarks.append(f"mean {spec.mean[0]:.3f} and std {spec.std[0]:.3f} for {many}, the average of those for colour")
    guessed = [name for name in _FIELDS[1:] if who[name] == default]
    if source.kind == "checkpoint" and not source.shipped and guessed:
        remarks.append(
            f"pre-processing is assumed to be {default}, because no file says it: "
            f"{', '.join(_described(name, merged) for name in guessed)}; "
            f"{', '.join('--' + name.replace('_', '-') for name in guessed)} change it"
        )
    fields = (*_FIELDS, *(("bit_depth",) if spec.bit_depth else ()))
    return Preprocessing(spec, {name: who[name] for name in fields}, tuple(remarks))


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number per channel; for another number of channels the average, as in timm's own loader."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _spec(
    config: Mapping[str, Any], size: ImageSize, mean: tuple[float, ...], std: tuple[float, ...]
) -> PreprocessSpec:
    mode, interpolation = config.get("crop_mode") or "center", config["interpolation"]
    if mode not in ("center", "squash"):
        raise ModelError(f"crop mode '{mode}'", "'center' or 'squash'", "give --crop-mode")
    if interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise ModelError(
            f"interpolation '{interpolation}'", "nearest, bilinear, bicubic or lanczos", "give --interpolation"
        )
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ModelError(f"mean {mean} and std {std}", "finite numbers, each std above 0", "give others")
    try:
        return PreprocessSpec(
            image_size=size,
            resize=ImageSize.of([math.floor(side / float(config["crop_pct"])) for side in size]),
            interpolation=interpolation,
            crop_mode=mode,
            crop_rounding=config.get("crop_rounding", "even"),
            mean=mean,
            std=std,
            bit_depth=config.get("bit_depth"),
        )
    except (ValueError, ArithmeticError) as error:  # pydantic's ValidationError is a ValueError
        raise ModelError(
            f"image size {size} with crop_pct {config['crop_pct']}",
            "at most 4096 pixels, resized to at most 8192",
            "change --image-size or --crop-pct",
        ) from error


def _described(name: str, config: Mapping[str, Any]) -> str:
    value = config.get(name) or "center"
    if name in ("mean", "std"):
        return f"{name} {' '.join(f'{one:.3g}' for one in value)}"
    return f"crop {value:.3g}" if name == "crop_pct" else f"{name.replace('_', ' ')} {value}"


# -------------------- classes


def imagenet_names() -> list[str]:
    """The first name of each of ImageNet's 1000 classes."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [str(info.index_to_description(index)).split(", ")[0] for index in range(1000)]


def published_names(model: Any) -> list[str] | None:
    """ImageNet's class names for a timm model with 1000 classes; None for any other head."""
    return imagenet_names() if getattr(model, "num_classes", 0) == 1000 else None


def read_class_names(path: Path | tuple[str, ...], classes: int) -> tuple[str, ...]:
    """Read class names: a text file with a name per line, or JSON with a list or `{"0": name, ...}` (`id2label`).

    Args:
        path: a file, `IMAGENET`, or the names themselves.

    Raises:
        InputError: it cannot be read, or names another number of classes.
    """
    expected, fix = "a name a line, or a JSON list", "correct the file"
    names: Any
    what = "class names" if isinstance(path, tuple) else f"class names '{path}'"
    if isinstance(path, tuple):
        names = path
    elif path == IMAGENET and not path.exists():
        names = imagenet_names()
    elif path.suffix == ".json":
        names = read_json(path, what="class names", expected=expected, fix=fix)
        names = names.get("id2label", names) if isinstance(names, dict) else names
        if isinstance(names, dict):
            names = [names.get(str(index)) for index in range(len(names))]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            reason = "neither a list of names nor a table of them"
            raise InputError(f"{what} cannot be read ({reason})", expected, fix)
    else:
        names = read_text(path, what="class names", expected=expected, fix=fix).splitlines()
    cleaned = tuple(printable(name).strip() for name in names)
    if len(cleaned) != classes or not all(cleaned):
        raise InputError(
            f"{what} with {sum(map(bool, cleaned))} names",
            f"{classes}, one for each output",
            "correct it",
        )
    return cleaned


# -------------------- activations


@dataclass(frozen=True)
class Meaning:
    """The meaning of a head's outputs."""

    activation: Activation
    source: str  #: where it comes from
    remarks: tuple[str, ...] = ()  #: remarks on assumptions


def meaning_of(outputs: int, asked: Activation | None, problem_type: str | None = None) -> Meaning:
    """The activation that the user names, otherwise the configuration's, otherwise the usual one.

    Args:
        outputs: number of the head's outputs; 0 for embeddings and features, which have no activation.
        problem_type: the key of the model's configuration.

    Raises:
        InputError: an activation that makes no sense for such a head.
    """
    if asked is not None and not outputs:
        raise InputError(f"--activation {asked} for a model without a head", "a head", "leave --activation out")
    if asked == "softmax" and outputs == 1:
        raise InputError(
            "--activation softmax for one output, which is 100 % whatever the image shows",
            "sigmoid for a yes or no, none for a value",
            "give --activation sigmoid or --activation none",
        )
    if asked is not None:
        return Meaning(asked, "--activation")
    known = _PROBLEM_TYPES.get(problem_type or "")
    if known is not None and not (known == "softmax" and outputs == 1):
        return Meaning(known, f"problem_type '{problem_type}' of the model's configuration")
    if outputs == 1:
        remark = "its head has one output, taken for a yes or no (sigmoid): --activation none keeps it as a value"
        return Meaning("sigmoid", "the head has one output", (remark,))
    return Meaning("softmax", "default")


def meaning_of_maps(channels: int, asked: Activation | None, name: str) -> Meaning:
    """The activation of each position of a map: the one that the user names, otherwise that of a class of the library
    transformers, otherwise the usual one.

    Args:
        name: of the class.

    Raises:
        InputError: softmax of a single channel.
    """
    if asked is not None:
        return meaning_of(channels, asked)
    if name.endswith((DEPTH, SEGMENTATION)):
        return Meaning("none" if name.endswith(DEPTH) else "softmax", f"a {name} gives it")
    if channels == 1:
        remark = "its maps have one channel, taken for values: --activation sigmoid if it tells a yes or no"
        return Meaning("none", "maps have one channel", (remark,))
    remark = f"the {channels} channels of its maps are taken for classes (softmax): --activation none keeps values"
    return Meaning("softmax", "maps have several channels", (remark,))


def check_activation(model: Any, timm_name: str, classes: int | None, *, published: bool) -> str | None:
    """Check that the weights were trained with the activation of the model's MLPs, as far as that is known.

    OpenAI's, DFN's and MetaCLIP's towers were trained with QuickGELU, LAION's with GELU; all have the same names and
    shapes. timm keeps models of both kinds, and notes which weights were trained with QuickGELU.

    Args:
        classes: number of classes of the head in the weights; None without a head.
        published: whether these are timm's published weights; otherwise they come from a user's file.

    Returns:
        A doubt, or None.

    Raises:
        ModelError: timm notes that these weights want another activation.
    """
    import timm

    architecture, _, tag = timm_name.partition(".")
    twin = architecture.replace("_clip_", "_clip_quickgelu_")
    if twin == architecture or not timm.is_model(twin) or type(model.blocks[0].mlp.act).__name__.startswith("Quick"):
        return None
    facts = timm.get_pretrained_cfg(timm_name) if timm.is_model_pretrained(timm_name) else None
    noted = any("quickgelu" in note.lower() for note in (facts.notes if facts else None) or ())
    as_published = published or classes in (None, timm.get_pretrained_cfg(twin).num_classes)
    if not as_published:  # a classifier trained by a user, perhaps with timm's model
        return f"its activation is GELU; '{twin}' has QuickGELU, which timm notes of the tower" if noted else None
    if noted:
        raise ModelError(
            f"model '{timm_name}', whose activation is GELU",
            "QuickGELU, which its weights were trained with by timm's own notes",
            f"give --model {twin}.{tag}" + ("" if published else f" (or {architecture}, if it was tuned with GELU)"),
        )
    if published:
        return None
    return f"its activation is GELU; weights of OpenAI, DFN and MetaCLIP want QuickGELU: --model {twin}"
