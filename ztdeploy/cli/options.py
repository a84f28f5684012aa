"""Options and arguments that several commands have: declared once, so that they read the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import typer

from ztdeploy.core import arguments
from ztdeploy.core.arguments import Numbers, WholeNumbers
from ztdeploy.core.errors import InputError

if TYPE_CHECKING:
    from ztdeploy.core.manifest import WeightsSource
    from ztdeploy.core.preprocess_spec import ImageSize, PreprocessOptions

_Value = TypeVar("_Value")


def number_option(wanted: Numbers | WholeNumbers, name: str, *short: str, help: str, metavar: str = "") -> Any:
    """An option that takes a number, which is checked before anything else is done."""

    def typed(text: str | float) -> float:
        value = wanted.typed(str(text).strip())
        if value is None:
            raise InputError(f"{name} {str(text)[:40]}", str(wanted), f"give another {name}")
        return value

    kind = "INTEGER" if isinstance(wanted, WholeNumbers) else "NUMBER"
    return typer.Option(name, *short, parser=typed, metavar=metavar or kind, help=help)


def counts_option(name: str, wanted: WholeNumbers, *, help: str) -> Any:
    """An option that takes several numbers, such as 1,8; it stays text."""

    def check(text: str) -> str:
        from ztdeploy.target.measure.plan import parse_counts

        for count in parse_counts(text, name):
            arguments.whole_number(name, count, wanted)
        return text

    return typer.Option(name, parser=check, metavar="INTEGERS", help=help)


def path_option(*names: str, help: str) -> Any:
    """An option that takes the path of a file or folder."""
    return typer.Option(*names, parser=_refusing(arguments.named_path), metavar="PATH", help=help)


def path_argument(help: str) -> Any:
    return typer.Argument(parser=_refusing(arguments.named_path), help=help)


def word_option(*names: str, help: str, metavar: str = "TEXT") -> Any:
    """An option that takes a name."""
    return typer.Option(*names, parser=_refusing(arguments.word), metavar=metavar, help=help)


def word_argument(help: str) -> Any:
    return typer.Argument(parser=_refusing(arguments.word), help=help)


def _refusing(check: Callable[[str], _Value]) -> Callable[[Any], _Value]:
    def typed(text: Any) -> _Value:
        try:
            return check(str(text))
        except InputError as error:
            raise typer.BadParameter(f"{error.given}; expected {error.expected}") from error

    return typed


BundleArgument = Annotated[Path, path_argument("Folder that 'ztdeploy build' wrote.")]
ImagesArgument = Annotated[list[Path], path_argument("Image files.")]
ProfileOption = Annotated[
    str | None,
    word_option("--profile", "-p", help="Run the engines of this profile. (default: the first that runs here)"),
]
KeepRatiosOption = Annotated[
    list[str] | None, word_option("--keep-ratio", "-k", help="Which variants; repeatable. (default: all)")
]
VariantOption = Annotated[
    str | None, word_option("--variant", help="Select the variant by name instead of keep ratio.")
]
VariantsOption = Annotated[
    list[str] | None, word_option("--variant", help="Select variants by name instead of keep ratio; repeatable.")
]
BATCHES_HELP = "Images per call: 1,8. (default: the profile's smallest)"
ThreadsOption = Annotated[
    str | None,
    counts_option("--threads", arguments.THREADS, help="Threads: 1,2. (default: what the process may use)"),
]
WarmupOption = Annotated[
    float,
    number_option(arguments.SECONDS, "--warmup", metavar="SECONDS", help="Per configuration, before the first round."),
]
LimitOption = Annotated[
    int | None, number_option(arguments.IMAGES, "--limit", help="At most so many images, of every class alike.")
]
CacheOption = Annotated[
    Path | None,
    path_option("--cache", help="Where what is made is kept. (default: $ZTDEPLOY_CACHE or ~/.cache/ztdeploy)"),
]
CheckpointOption = Annotated[
    Path | None,
    path_option("--checkpoint", help="Weights: a .safetensors, .pth or .ckpt file, an index of shards, or a folder."),
]
SIZE = "PIXELS|HEIGHTxWIDTH"
ImageSizeOption = Annotated[
    str | None,
    word_option("--image-size", metavar=SIZE, help="Side of the input, or 96x384. (default: the model's)"),
]
CropOption = Annotated[
    float | None,
    number_option(Numbers(0.1, 1), "--crop-pct", help="Image size over resize. (default: the model's)"),
]


MeanOption = Annotated[
    str | None, word_option("--mean", metavar="R,G,B", help="Mean of the channels, of 0 to 1. (default: the model's)")
]
StdOption = Annotated[
    str | None, word_option("--std", metavar="R,G,B", help="Standard deviation, likewise. (default: the model's)")
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
    from ztdeploy.core.preprocess_spec import PreprocessOptions

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
    from ztdeploy.core.preprocess_spec import LARGEST_SIDE, ImageSize

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
