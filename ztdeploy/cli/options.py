"""Options and arguments that several commands have: declared once, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from ztdeploy.models.catalogue import WeightsSource
    from ztdeploy.preprocess_spec import ImageSize

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
    Path | None, typer.Option("--checkpoint", help="Weights from a .safetensors or .pth file.")
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
