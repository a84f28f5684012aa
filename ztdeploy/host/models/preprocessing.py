"""How images become a model's input, and who says so: an option, a file beside the weights, or timm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ztdeploy.core.errors import ModelError
from ztdeploy.core.preprocess_spec import ImageSize, PreprocessOptions, PreprocessSpec

OPTION = "option"
_FIELDS = ("image_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")


@dataclass(frozen=True)
class Preprocessing:
    """A specification, and where it comes from."""

    spec: PreprocessSpec
    sources: Mapping[str, str]  #: of each of its fields, in words
    assumed: tuple[str, ...]  #: what no file says and nobody was asked, in words


def preprocessing_of(
    config: Mapping[str, Any],
    said: Mapping[str, Any],
    options: PreprocessOptions,
    *,
    sources: Mapping[str, str],
    default: str,
    size: ImageSize | None,
    channels: int,
    doubtful: bool,
) -> Preprocessing:
    """
    Args:
        config: timm's data configuration, of the model's name.
        said: what the files beside the weights say instead, in the same words.
        sources: who says what of `said`, and of the image size.
        default: who says the rest.
        size: of the image; None: as the configuration has it.
        channels: of the image.
        doubtful: whether the weights are somebody's own, so that what timm says need not be true of them.

    Raises:
        ModelError: values that no image can be brought to.
    """
    asked = {name: value for name, value in options.model_dump().items() if value is not None}
    merged = {**config, **said, **asked}
    side = size or ImageSize.of(tuple(config["input_size"][-2:]))
    averaged = [_per_channel(merged[name], channels) for name in ("mean", "std")]
    spec = _spec(merged, side, *(values for values, _ in averaged))
    whose = {**dict.fromkeys(_FIELDS, default), **sources, **dict.fromkeys(asked, OPTION)}
    lines = []
    if any(changed for _, changed in averaged):
        many = f"each of {channels} channels" if channels > 1 else "the one channel"
        lines.append(f"mean {spec.mean[0]:.3f} and std {spec.std[0]:.3f} for {many}, the average of those for colour")
    guessed = [name for name in _FIELDS[1:] if whose[name] == default]
    if doubtful and guessed:
        lines.append(
            f"pre-processing is assumed to be {default}, no file saying so: "
            f"{', '.join(_in_words(name, merged) for name in guessed)}; "
            f"{', '.join('--' + name.replace('_', '-') for name in guessed)} say otherwise"
        )
    fields = (*_FIELDS, *(("bit_depth",) if spec.bit_depth else ()))
    return Preprocessing(spec, {name: whose[name] for name in fields}, tuple(lines))


def _spec(config: Mapping[str, Any], size: ImageSize, mean: Sequence[float], std: Sequence[float]) -> PreprocessSpec:
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ModelError(f"crop mode '{mode}'", "'center' or 'squash'", "give --crop-mode")
    filtered = config["interpolation"]
    if filtered not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise ModelError(f"interpolation '{filtered}'", "nearest, bilinear, bicubic or lanczos", "give --interpolation")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ModelError(f"mean {tuple(mean)} and std {tuple(std)}", "finite numbers, each std above 0", "give others")
    try:
        return PreprocessSpec(
            image_size=size,
            resize=ImageSize.of([math.floor(side / float(config["crop_pct"])) for side in size]),
            interpolation=filtered,
            crop_mode=mode,
            mean=tuple(mean),
            std=tuple(std),
            bit_depth=config.get("bit_depth"),
        )
    except (ValueError, ArithmeticError) as error:  # pydantic's ValidationError is a ValueError
        raise ModelError(
            f"image size {size} with crop_pct {config['crop_pct']}",
            "at most 4096 pixels, resized to at most 8192",
            "change --image-size or --crop-pct",
        ) from error


def _per_channel(values: Sequence[float], channels: int) -> tuple[tuple[float, ...], bool]:
    """One number per channel, and whether that is the average of others, which is what timm's own loader takes."""
    if len(values) == channels:
        return tuple(values), False
    return (sum(values) / len(values),) * channels, len(set(values)) > 1


def _in_words(name: str, config: Mapping[str, Any]) -> str:
    value = config.get(name) or "center"
    if name in ("mean", "std"):
        return f"{name} {' '.join(f'{one:.3g}' for one in value)}"
    return f"crop {value:.3g}" if name == "crop_pct" else f"{name.replace('_', ' ')} {value}"
