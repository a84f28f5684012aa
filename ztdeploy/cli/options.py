"""Options and arguments that several commands have: declared once, so that they read the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, Signature, signature
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import typer

from ztdeploy.core import arguments
from ztdeploy.core.arguments import Numbers, WholeNumbers
from ztdeploy.core.errors import InputError

if TYPE_CHECKING:
    from ztdeploy.core.model_source import ModelSource
    from ztdeploy.core.preprocess_spec import ImageSize

_Value = TypeVar("_Value")
_Command = TypeVar("_Command", bound=Callable[..., None])


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
    list[str] | None, word_option("--keep-ratio", "-k", help="Keep ratio of the variants; repeatable. (default: all)")
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
    number_option(
        arguments.SECONDS, "--warmup", metavar="SECONDS", help="Warm-up of each configuration, before the first round."
    ),
]
ThreadCountOption = Annotated[
    int | None,
    number_option(arguments.THREADS, "--threads", help="Threads. (default: what the process may use)"),
]
RoundsOption = Annotated[
    int, number_option(arguments.ROUNDS, "--rounds", help="How often configurations that are compared take turns.")
]
PresetOption = Annotated[Literal["default", "paper"], typer.Option(help="Where layers stand.")]
DataOption = Annotated[Path, path_option("--data", "-d", help="labels.json, a folder per class, or a flat folder.")]
SeedOption = Annotated[
    int, number_option(arguments.SEED, "--seed", help="Decides what is random, such as which images a limit takes.")
]
LimitOption = Annotated[
    int | None,
    number_option(arguments.IMAGES, "--limit", help="Use at most so many images, equally many of every class."),
]
CacheOption = Annotated[
    Path | None,
    path_option("--cache", help="Folder for what later runs reuse. (default: $ZTDEPLOY_CACHE or ~/.cache/ztdeploy)"),
]
SIZE = "PIXELS|HEIGHTxWIDTH"
#: Options of a model that only `build` has.
OF_BUILDS = ("bit_depth", "class_names", "output", "activation", "text_head")
#: What is imported on use, in signatures.
_LATER = {"ModelSource": object}


def model_source(
    model: Annotated[
        str,
        word_option("--model", "-m", help="Short name (deit_s), any timm name, local-dir:DIR or hf-hub:OWNER/NAME."),
    ],
    checkpoint: Annotated[
        Path | None,
        path_option(help="Weights: a .safetensors, .pth or .ckpt file, an index of shards, or a folder."),
    ] = None,
    weights: Annotated[
        Literal["pretrained", "random"], typer.Option(help="Random weights serve to measure latency only.")
    ] = "pretrained",
    image_size: Annotated[
        str | None, word_option(metavar=SIZE, help="Side of the input, or 96x384. (default: the model's)")
    ] = None,
    crop_pct: Annotated[
        float | None,
        number_option(
            Numbers(0.1, 1),
            "--crop-pct",
            help="Image size divided by the size that images are resized to. (default: the model's)",
        ),
    ] = None,
    mean: Annotated[
        str | None, word_option(metavar="R,G,B", help="Mean of each channel, from 0 to 1. (default: the model's)")
    ] = None,
    std: Annotated[
        str | None, word_option(metavar="R,G,B", help="Standard deviation of each channel. (default: the model's)")
    ] = None,
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic", "lanczos"] | None,
        typer.Option(help="How images are resized. (default: the model's)"),
    ] = None,
    crop_mode: Annotated[
        Literal["center", "squash"] | None,
        typer.Option(help="Cut the centre out, or squash the image. (default: the model's)"),
    ] = None,
    bit_depth: Annotated[
        int | None,
        number_option(
            WholeNumbers(9, 16), "--bit-depth", help="Bits of the values of 16-bit images, such as 12. (default: 16)"
        ),
    ] = None,
    class_names: Annotated[
        Path | None, path_option(help="Names of the classes: a line each, JSON, or 'imagenet'.")
    ] = None,
    output: Annotated[
        Literal["logits", "embedding", "features"],
        typer.Option(help="What the model gives; 'features' are the tokens of all patches."),
    ] = "logits",
    activation: Annotated[
        Literal["softmax", "sigmoid", "none"] | None,
        typer.Option(help="What logits mean. (default: softmax; of one output: sigmoid)"),
    ] = None,
    text_head: Annotated[
        Path | None,
        path_option(help="Text embeddings (.safetensors) that an image tower's logits shall come from."),
    ] = None,
) -> ModelSource:
    """The model that somebody asks for, by the options of `takes_model`.

    Raises:
        typer.BadParameter: a value that is none of its option's.
    """
    from ztdeploy.core.model_source import ModelSource
    from ztdeploy.core.preprocess_spec import PreprocessOptions

    if text_head is not None and output != "logits":
        raise typer.BadParameter(f"it gives logits, and --output is '{output}'", param_hint="--text-head")
    return ModelSource(
        name=model,
        checkpoint=checkpoint,
        weights=weights,
        image_size=parse_image_size(image_size),
        preprocess=PreprocessOptions(
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            interpolation=interpolation,
            mean=_numbers(mean, "--mean"),
            std=_numbers(std, "--std"),
            bit_depth=bit_depth,
        ),
        class_names=class_names,
        output=output,
        activation=activation,
        text_head=text_head,
    )


def takes_model(*, without: Sequence[str] = (), required: bool = True) -> Callable[[_Command], _Command]:
    """Put the options of `model_source` in the place of a command's parameter `model`, which takes what they make.

    Args:
        without: options that the command does not have.
        required: whether there must be a model; otherwise the command's `model` is None without one.
    """
    offered = dict(signature(model_source, locals=_LATER, eval_str=True).parameters)
    for name in without:
        del offered[name]
    for one in offered.values():
        one.annotation.__metadata__[0].rich_help_panel = "Model"
    if not required:
        offered["model"] = offered["model"].replace(default=None)

    def decorate(command: _Command) -> _Command:
        own = signature(command, locals=_LATER, eval_str=True).parameters.values()

        @wraps(command)
        def with_model(**values: Any) -> Any:
            given = {name: values.pop(name) for name in offered}
            if given["model"] is not None:
                return command(model=model_source(**given), **values)
            for name, value in given.items():
                if value != offered[name].default:
                    option = f"--{name.replace('_', '-')}"
                    raise InputError(f"{option} without a model", "--model", f"give --model, or leave {option} out")
            return command(model=None, **values)

        parameters = (*offered.values(), *(one for one in own if one.name != "model"))
        vars(with_model)["__signature__"] = Signature([one.replace(kind=Parameter.KEYWORD_ONLY) for one in parameters])
        with_model.__annotations__ = {}
        return cast("_Command", with_model)

    return decorate


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
