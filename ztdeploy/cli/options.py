"""Options and arguments that several commands have: declared once, so that they read the same everywhere."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

if TYPE_CHECKING:
    from ztdeploy.models.catalogue import WeightsSource
    from ztdeploy.preprocess_spec import ImageSize, PreprocessOptions

BundleArgument = Annotated[Path, typer.Argument(help="Folder that 'ztdeploy build' wrote.")]
ImagesArgument = Annotated[list[Path], typer.Argument(help="Image files.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", "-p", help="Whose engines.")]
KeepRatiosOption = Annotated[
    list[str] | None, typer.Option("--keep-ratio", "-k", help="Which variants; repeatable. (default: all)")
]
VariantOption = Annotated[str | None, typer.Option("--variant", help="The same by name.")]
BatchesOption = Annotated[str | None, typer.Option(help="Images per call: 1,8. (default: the profile's smallest)")]
ThreadsOption = Annotated[str | None, typer.Option(help="Threads: 1,2. (default: what the process may use)")]
WarmupOption = Annotated[
    float, typer.Option("--warmup", metavar="SECONDS", help="Per configuration, before the first round.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", help="At most so many images, of every class alike.")]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help="Where what is made is kept. (default: $ZTDEPLOY_CACHE or ~/.cache/ztdeploy)"),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Weights: a .safetensors, .pth or .ckpt file, an index of shards, or a folder."),
]
SIZE = "PIXELS|HEIGHTxWIDTH"
ImageSizeOption = Annotated[
    str | None,
    typer.Option("--image-size", metavar=SIZE, help="Side of the input, or 96x384. (default: the model's)"),
]
CropOption = Annotated[
    float | None,
    typer.Option("--crop-pct", min=0.1, max=1.0, help="Image size over resize. (default: the model's)"),
]


MeanOption = Annotated[
    str | None, typer.Option("--mean", metavar="R,G,B", help="Mean of the channels, of 0 to 1. (default: the model's)")
]
StdOption = Annotated[
    str | None, typer.Option("--std", metavar="R,G,B", help="Standard deviation, likewise. (default: the model's)")
]
InterpolationOption = Annotated[
    Literal["nearest", "bilinear", "bicubic", "lanczos"] | None,
    typer.Option("--interpolation", help="How images are resized. (default: the model's)"),
]
CropModeOption = Annotated[
    Literal["center", "squash"] | None,
    typer.Option("--crop-mode", help="Cut the centre out, or squash the image. (default: the model's)"),
]


def preprocess_options(
    mean: str | None,
    std: str | None,
    interpolation: str | None,
    crop_mode: str | None,
    bit_depth: int | None = None,
) -> PreprocessOptions:
    """
    Raises:
        typer.BadParameter: `mean` or `std` is no list of numbers.
    """
    from ztdeploy.preprocess_spec import PreprocessOptions

    return PreprocessOptions.model_validate(
        {
            "mean": _numbers(mean, "--mean"),
            "std": _numbers(std, "--std"),
            "interpolation": interpolation,
            "crop_mode": crop_mode,
            "bit_depth": bit_depth,
        }
    )


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is no list of numbers such as 0.5,0.5,0.5", param_hint=option) from error
    if not all(map(isfinite, numbers)) or (option == "--std" and min(numbers) <= 0):
        raise typer.BadParameter(f"'{text}': numbers must be finite, and none of --std 0 or less", param_hint=option)
    return numbers


def parse_image_size(text: str | None) -> ImageSize | None:
    """
    Raises:
        typer.BadParameter: no size, or one of less than 8 pixels.
    """
    from ztdeploy.preprocess_spec import LARGEST_SIDE, ImageSize

    if text is None:
        return None
    try:
        size = ImageSize.of(text)
        if min(size) < 8 or max(size) > LARGEST_SIDE:
            raise ValueError(f"sides have from 8 to {LARGEST_SIDE} pixels")
    except ValueError as error:
        raise typer.BadParameter(f"'{text}': {error}", param_hint="--image-size") from error
    return size


def weights_source(weights: str) -> WeightsSource:
    """
    Raises:
        typer.BadParameter: there are no such weights.
    """
    if weights not in ("pretrained", "random"):
        raise typer.BadParameter(f"'{weights}' is neither 'pretrained' nor 'random'", param_hint="--weights")
    return cast("WeightsSource", weights)
