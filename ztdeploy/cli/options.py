"""Options and arguments: how what is typed becomes values, and what several commands take, declared once.

Every value is read by a kind: numbers of a range, the type of a path or a word, a few words to choose from, or a
function that raises an `InputError`. An option that takes several values takes commas, and may be repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast, get_args

import typer

from ztdeploy.cli.help import MEASURING, MODEL, OUTPUT, PRUNING, QUALITY, TARGETS
from ztdeploy.cli.output import hold
from ztdeploy.core import arguments
from ztdeploy.core.arguments import BATCH, KEEP_RATIO, SECONDS, Numbers, WholeNumbers
from ztdeploy.core.errors import InputError, nearest

if TYPE_CHECKING:
    from ztdeploy.core.model_source import ModelSource

Kind = Numbers | WholeNumbers | tuple[str, ...] | Callable[[str], Any]
#: Where completion takes names from: a table or a function by its place, or a function of what is typed so far.
Known = str | tuple[str, ...] | Callable[[typer.Context], Iterable[str]]
_Made = TypeVar("_Made")
_Command = TypeVar("_Command", bound=Callable[..., None])

METHODS, PROFILES = "ztdeploy.core.methods:METHODS", "ztdeploy.core.profile:profile_names"
SCHEDULES, MODELS = "ztdeploy.core.profile:schedule_names", "ztdeploy.host.models.catalogue:CATALOGUE"
ALL = "all"  #: in the place of keep ratios


def option(shown: str, kind: Kind, panel: str, help: str, *, known: Known | None = None) -> Any:
    """An option that takes one value, which is checked before anything else is done.

    Args:
        shown: its names and its metavar as the help shows them, such as "-k, --keep-ratio RATIO".
        known: names that completion offers.
    """
    names, metavar = _names(shown)
    return typer.Option(*names, parser=_named(kind, names[-1]), **_words(kind, metavar, panel, help, known))


def options(shown: str, kind: Kind, panel: str, help: str, *, known: Known | None = None) -> Any:
    """An option that takes several values, each of which counts once: with commas, repeated, or both."""
    names, metavar = _names(shown)
    words = _words(kind, f"{metavar},...", panel, help, known)
    return typer.Option(*names, parser=_named(each(kind), names[-1]), callback=_gathered, **words)


def flag(shown: str, panel: str, help: str) -> Any:
    return typer.Option(shown, help=help, rich_help_panel=panel)


def argument(metavar: str, kind: Kind, help: str, *, known: Known | None = None) -> Any:
    return typer.Argument(parser=_named(kind, metavar), **_words(kind, metavar, None, help, known))


def each(kind: Kind) -> Callable[[str], tuple[Any, ...]]:
    """The kind of several values with commas."""
    read = _reader(kind)

    def several(text: str) -> tuple[Any, ...]:
        return tuple(map(read, text.split(",")))

    vars(several)["one"] = kind
    return several


def request_of(kind: Callable[..., _Made], values: Mapping[str, Any]) -> _Made:
    """A request made of a command's values by their names; what was not given stays the request's default."""
    given = {name: values.get(name) for name in signature(kind).parameters}
    return kind(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
            if value is not None and value != [ALL]
        }
    )


def _gathered(values: list[tuple[Any, ...]] | None) -> list[Any]:
    found = list(dict.fromkeys(one for several in values or () for one in several))
    return [ALL] if ALL in found else found


def _names(shown: str) -> tuple[list[str], str]:
    names, _, metavar = shown.rpartition(" ")
    return names.split(", "), metavar


def _words(kind: Kind, metavar: str, panel: str | None, help: str, known: Known | None) -> dict[str, Any]:
    """What help and completion say of an option."""
    offered = kind if isinstance(kind, tuple) else known
    completion = {} if offered is None else {"autocompletion": _completing(offered)}
    return {"help": help, "metavar": metavar, "rich_help_panel": panel, **completion}


def _named(kind: Kind, name: str) -> Callable[[Any], Any]:
    """What reads a value of an option, and names the option where it cannot."""
    read = _reader(kind)

    def named(text: Any) -> Any:
        try:
            return read(str(text))
        except InputError as error:
            colon = "" if type(error) is InputError else ":"  # ahead of more than a value: "pruning method 'zero'"
            raise InputError(f"{name}{colon} {error.given}", error.expected, error.fix) from error

    vars(named)["kind"] = kind
    return named


def kinds_of(command: Callable[..., Any]) -> dict[str, Kind | None]:
    """The kinds of a command's values, by parameter; None of a flag."""
    declared = {name: one.annotation for name, one in signature(command, eval_str=True).parameters.items()}
    return {name: _kind_of(one) for name, one in declared.items()}


def _kind_of(annotation: Any) -> Kind | None:
    (info, *_) = getattr(annotation, "__metadata__", (None,))
    found: Kind | None = getattr(getattr(info, "parser", None), "kind", None)
    return found


def _reader(kind: Kind) -> Callable[[str], Any]:
    if isinstance(kind, tuple):
        return partial(_choice, kind)
    return partial(_number, kind) if isinstance(kind, Numbers | WholeNumbers) else kind


def _choice(kind: tuple[str, ...], text: str) -> str:
    if text not in kind:
        near, words = nearest(text, kind, 0.5), ", ".join(map(repr, kind))
        raise typer.BadParameter(f"{text[:40]!r} is not one of {words}{f'; did you mean {near!r}?' if near else ''}")
    return text


def _number(kind: Numbers | WholeNumbers, text: str) -> float:
    value = kind.typed(text.strip())
    if value is None:
        raise InputError(text[:40] or "''", str(kind), "give another one")
    return value


def _either(choice: Any) -> str:
    """Such as "softmax, sigmoid or none"."""
    *others, last = get_args(choice)
    return f"{', '.join(others)} or {last}"


def _completing(known: Known) -> Callable[..., list[str]]:
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        """The names that what is typed may become, behind its last comma."""
        before, comma, last = incomplete.rpartition(",")
        try:
            found: Any = known(ctx) if callable(known) else known
            if isinstance(known, str):
                found = resolve_name(known)
                found = found() if callable(found) else found
            names = list(found)
        except Exception:  # of whatever kind: somebody is typing, and asked nothing
            return []
        return [f"{before}{comma}{name}" for name in names if name.startswith(last)]

    return complete


def ratio_or_all(text: str) -> float | str:
    """
    Raises:
        InputError: neither a keep ratio nor "all".
    """
    value = KEEP_RATIO.typed(text.strip())
    if value is None and text.strip() != ALL:
        raise InputError(text[:40] or "''", f"{KEEP_RATIO}, or '{ALL}'", "give for instance -k 0.7")
    return ALL if value is None else value


def method(text: str) -> str:
    """
    Raises:
        ScheduleError: there is no such pruning method.
    """
    from ztdeploy.core.methods import method_named

    method_named(text)
    return text


def image_size(text: str) -> Any:
    """
    Raises:
        InputError: no size, or one that no model has.
    """
    from ztdeploy.core.preprocess_spec import LARGEST_SIDE, ImageSize

    expected = f"a side from 8 to {LARGEST_SIDE} pixels, or HEIGHTxWIDTH"
    try:
        size = ImageSize.of(text.strip())
    except ValueError as error:
        raise InputError(f"'{text[:40]}'", expected, "give for instance 224 or 96x384") from error
    if min(size) < 8 or max(size) > LARGEST_SIDE:
        raise InputError(f"'{size}'", expected, "give for instance 224 or 96x384")
    return size


def _variants(context: typer.Context) -> list[str]:
    from ztdeploy.core.bundle import read_bundle

    return [variant.name for variant in read_bundle(context.params["bundle"]).manifest.variants]


def demand_signature(keys: Sequence[str] | None) -> None:
    """Let the command, and all processes that it starts, open no bundle that none of the keys signed.

    Raises:
        InputError: one of them is no public key, and no file of one.
    """
    from ztdeploy.core import signature

    if keys:
        hold(signature.demanding([_named(signature.public_key, "--signed-by")(key) for key in keys]))


def signer(key: Path | None, password_file: Path | None = None) -> Any:
    """The secret key in a file; its password comes from a file, or is asked for in a terminal.

    Raises:
        InputError: there is no key in it, or its password is wrong or missing.
    """
    from ztdeploy.core.files import read_text
    from ztdeploy.core.signature import secret_key

    def password() -> str:
        if password_file is not None:
            return read_text(password_file, 2**16, what="password").removesuffix("\n")
        return str(typer.prompt(f"Password of {key}", hide_input=True, err=True))

    answers = password_file is not None or sys.stdin.isatty()
    return None if key is None else secret_key(key, password if answers else None)


path, word = arguments.named_path, arguments.word


def out_path(text: str) -> Path:
    """A path that is written, where `path` is one that is read; `cli/boards.py` tells them apart."""
    return path(text)


def path_there(text: str) -> Path:
    """A file of the machine that the verb runs on, such as a secret key, which is never sent there."""
    return path(text)


def public_key(text: str) -> str:
    """A public key, or the file of one; it is read where it was typed."""
    return word(text)


def path_or_name(text: str) -> Path:
    """A file to read, or the name of one that ships."""
    return path(text)


_MODELS_OWN = "[default: the model's]"
BundleArgument = Annotated[Path, argument("BUNDLE", path, "Folder that 'ztdeploy build' wrote.")]
ImagesArgument = Annotated[list[Path], argument("IMAGE", path, "Image files.")]
_SIGNED_BY = (
    "Public key that must have signed the bundle; repeat it for either of several. [default: $ZTDEPLOY_SIGNED_BY]"
)
SignedByOption = Annotated[list[str] | None, options("--signed-by KEY", public_key, TARGETS, _SIGNED_BY)]
SignOption = Annotated[
    Path | None,
    option("--sign FILE", path_there, TARGETS, "Secret key that signs the bundle again, once engines were built."),
]
_OWN_PROFILE = "Run the engines of this profile. [default: the first that runs here]"
ProfileOption = Annotated[str | None, option("-p, --profile NAME", word, TARGETS, _OWN_PROFILE, known=PROFILES)]
KeepRatioOption = Annotated[
    float | None, option("-k, --keep-ratio RATIO", KEEP_RATIO, PRUNING, "Which variant. [default: the first built]")
]
KeepRatiosOption = Annotated[
    list[Any] | None, options("-k, --keep-ratio RATIO", ratio_or_all, PRUNING, "Which variants. [default: all]")
]
VariantOption = Annotated[
    str | None, option("--variant NAME", word, PRUNING, "Which variant, by its name.", known=_variants)
]
VariantsOption = Annotated[
    list[str] | None, options("--variant NAME", word, PRUNING, "Which variants, by their names.", known=_variants)
]
BatchesOption = Annotated[
    list[int] | None, options("--batch N", BATCH, MEASURING, "Images in one call. [default: the profile's smallest]")
]
_ALL_THREADS = "Threads. [default: what the process may use]"
ThreadsOption = Annotated[list[int] | None, options("--threads N", arguments.THREADS, MEASURING, _ALL_THREADS)]
CascadeOption = Annotated[bool, flag("--cascade", PRUNING, "Run the cascade: each image takes the stages it needs.")]
ThreadCountOption = Annotated[int | None, option("--threads N", arguments.THREADS, TARGETS, _ALL_THREADS)]
WarmupOption = Annotated[
    float, option("--warmup SECONDS", SECONDS, MEASURING, "Warm-up of each configuration, before the first round.")
]
RoundsOption = Annotated[
    int, option("--rounds N", arguments.ROUNDS, MEASURING, "How often configurations that are compared take turns.")
]
Preset = Literal["default", "paper"]
PresetOption = Annotated[
    Preset, option("--preset NAME", get_args(Preset), PRUNING, "Where layers stand: default, or paper (Zero-TPrune's).")
]
DATA_HELP = "labels.json, a folder per class, or a flat folder"
DataOption = Annotated[Path, option("-d, --data DIR", path, QUALITY, f"Images: {DATA_HELP}.")]
SeedOption = Annotated[
    int, option("--seed N", arguments.SEED, QUALITY, "Decides what is random, such as which images a limit takes.")
]
LimitOption = Annotated[
    int | None,
    option("--limit N", arguments.IMAGES, QUALITY, "Use at most so many images, equally many of every class."),
]
MaxErrorOption = Annotated[
    float | None,
    option("--max-error NUMBER", arguments.PERCENT, QUALITY, "Highest mean error of maps; of values, in ranges."),
]
MinIouOption = Annotated[
    float | None, option("--min-iou RATIO", arguments.SHARE, QUALITY, "Lowest mean IoU with the baseline's maps.")
]
MinAgreementOption = Annotated[
    float,
    option(
        "--min-agreement RATIO",
        arguments.SHARE,
        QUALITY,
        "Share of the answers (or mean cosine) that must stay for a recommendation.",
    ),
]
_REUSED = "Folder for what later runs reuse. [default: $ZTDEPLOY_CACHE or ~/.cache/ztdeploy]"
CacheOption = Annotated[Path | None, option("--cache DIR", out_path, OUTPUT, _REUSED)]
#: Options of a model that only `build` has.
OF_BUILDS = ("bit_depth", "class_names", "output", "activation", "text_head")
#: What is imported on use, in signatures.
_LATER = {"ModelSource": object}
_Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_Output = Literal["logits", "embedding", "features"]
_Activation = Literal["softmax", "sigmoid", "none"]


def model_source(
    model: Annotated[
        str,
        option(
            "-m, --model NAME",
            word,
            MODEL,
            "Short name such as deit_s, any timm name, hf:DIR or hf:OWNER/NAME.",
            known=MODELS,
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        option("--checkpoint FILE", path, MODEL, "Weights (.safetensors, .pth, .ckpt), index of shards, or folder."),
    ] = None,
    weights: Annotated[
        Literal["pretrained", "random"],
        option("--weights NAME", ("pretrained", "random"), MODEL, "pretrained, or random: good for latency only."),
    ] = "pretrained",
    image_size: Annotated[
        Any, option("--image-size PIXELS", image_size, MODEL, f"Such as 224 or 96x384. {_MODELS_OWN}")
    ] = None,
    crop_pct: Annotated[
        float | None,
        option("--crop-pct RATIO", Numbers(0.1, 1), MODEL, f"Image size over the size before the crop. {_MODELS_OWN}"),
    ] = None,
    mean: Annotated[
        Any, option("--mean R,G,B", each(Numbers(-1e6, 1e6)), MODEL, f"Mean of each channel. {_MODELS_OWN}")
    ] = None,
    std: Annotated[
        Any,
        option("--std R,G,B", each(Numbers(0, 1e6, above=True)), MODEL, f"Deviation of each channel. {_MODELS_OWN}"),
    ] = None,
    interpolation: Annotated[
        _Interpolation | None,
        option("--interpolation NAME", get_args(_Interpolation), MODEL, f"{_either(_Interpolation)}. {_MODELS_OWN}"),
    ] = None,
    crop_mode: Annotated[
        Literal["center", "squash"] | None,
        option("--crop-mode NAME", ("center", "squash"), MODEL, f"center cuts out, squash distorts. {_MODELS_OWN}"),
    ] = None,
    bit_depth: Annotated[
        int | None, option("--bit-depth N", WholeNumbers(9, 16), MODEL, "Bits that 16-bit images use. [default: 16]")
    ] = None,
    class_names: Annotated[
        Path | None, option("--class-names FILE", path, MODEL, "Names of the classes: lines, JSON, or 'imagenet'.")
    ] = None,
    output: Annotated[
        _Output, option("--output NAME", get_args(_Output), MODEL, f"What the model gives: {_either(_Output)}.")
    ] = "logits",
    activation: Annotated[
        _Activation | None,
        option("--activation NAME", get_args(_Activation), MODEL, f"{_either(_Activation)}. [default: by the head]"),
    ] = None,
    text_head: Annotated[
        Path | None, option("--text-head FILE", path, MODEL, "Text embeddings (.safetensors) that logits come from.")
    ] = None,
) -> ModelSource:
    """The model that somebody asks for, by the options of `takes_model`.

    Raises:
        typer.BadParameter: options that exclude each other.
    """
    given = locals()
    from ztdeploy.core.model_source import ModelSource
    from ztdeploy.core.preprocess_spec import PreprocessOptions

    if text_head is not None and output != "logits":
        raise typer.BadParameter(f"it gives logits, and --output is '{output}'", param_hint="--text-head")
    preprocess = request_of(PreprocessOptions, given)
    return request_of(ModelSource, {**given, "name": model, "preprocess": preprocess})


def takes_model(*, without: Sequence[str] = (), required: bool = True) -> Callable[[_Command], _Command]:
    """Put the options of `model_source` in the place of a command's parameter `model`, which takes what they make.

    Args:
        without: options that the command does not have.
        required: whether there must be a model; otherwise the command's `model` is None without one.
    """
    offered = dict(signature(model_source, locals=_LATER, eval_str=True).parameters)
    for name in without:
        del offered[name]
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
