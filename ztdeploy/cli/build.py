"""ztdeploy build"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from ztdeploy.cli.options import (
    CheckpointOption,
    CropModeOption,
    CropOption,
    ImageSizeOption,
    InterpolationOption,
    MeanOption,
    StdOption,
    number_option,
    parse_image_size,
    path_option,
    preprocess_options,
    weights_source,
    word_option,
)
from ztdeploy.cli.output import JsonFlag, leave, note, print_json, progress_bar, warn
from ztdeploy.core import arguments

if TYPE_CHECKING:
    from ztdeploy.jobs.gate import Gate


#: What `--json` prints of the manifest.
_IN_JSON = {"variants", "failed", "adapted", "missing", "weights", "text_head", "gates", "choices", "calibration"}


def register(app: typer.Typer) -> None:
    app.command(help="Trace, prune, export, build engines, prove them, and write one bundle.")(build)


def build(
    model: Annotated[
        str, word_option("--model", "-m", help="Short name (deit_s), any timm name, local-dir:DIR or hf-hub:NAME.")
    ],
    profile: Annotated[list[str], word_option("--profile", "-p", help="Shipped profile or TOML file; repeatable.")],
    out: Annotated[Path | None, path_option("--out", "-o", help="Folder to write. (default: MODEL-PROFILE)")] = None,
    keep_ratio: Annotated[
        list[float] | None,
        number_option(
            arguments.KEEP_RATIO, "--keep-ratio", "-k", help="Share of patch tokens each layer keeps; repeatable."
        ),
    ] = None,
    method: Annotated[list[str] | None, word_option(help="Pruning method; repeatable. (default: zero-tprune)")] = None,
    preset: Annotated[str, word_option(help="Where layers stand: 'default' or 'paper'.")] = "default",
    schedule: Annotated[
        list[Path] | None, path_option(help="Schedule file (TOML, JSON), or a shipped one's name; repeatable.")
    ] = None,
    checkpoint: CheckpointOption = None,
    class_names: Annotated[
        Path | None, path_option(help="Names of the classes: a line each, JSON, or 'imagenet'.")
    ] = None,
    output: Annotated[str, word_option(help="'logits', 'embedding', or 'features' of all patches.")] = "logits",
    activation: Annotated[
        str | None,
        word_option(help="What logits mean: 'softmax', 'sigmoid' or 'none'. (default: softmax; one output: sigmoid)"),
    ] = None,
    text_head: Annotated[
        Path | None,
        path_option(help="Text embeddings (.safetensors) that an image tower's logits shall come from."),
    ] = None,
    weights: Annotated[str, word_option(help="'pretrained', or 'random' to measure latency only.")] = "pretrained",
    precision: Annotated[
        str | None,
        word_option(help="'auto': the fastest of the profile's candidates that costs little on --calib."),
    ] = None,
    batch: Annotated[
        int | None, number_option(arguments.BATCH, "--batch", help="Fix the batch. (default: as the profile says)")
    ] = None,
    image_size: ImageSizeOption = None,
    crop_pct: CropOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    interpolation: InterpolationOption = None,
    crop_mode: CropModeOption = None,
    bit_depth: Annotated[
        int | None,
        number_option(
            arguments.WholeNumbers(9, 16),
            "--bit-depth",
            help="Bits that values of 16-bit images have, such as 12. (default: 16)",
        ),
    ] = None,
    calib: Annotated[
        Path | None,
        path_option(help="Images to hold pruned variants against dense on, and to calibrate int8: see 'eval --data'."),
    ] = None,
    max_drop: Annotated[
        float | None,
        number_option(arguments.POINTS, "--max-drop", help="Points of top-1 that pruning may cost on them."),
    ] = None,
    min_agreement: Annotated[
        float | None,
        number_option(arguments.SHARE, "--min-agreement", help="Share of them that must get dense's answer."),
    ] = None,
    max_kl: Annotated[
        float | None, number_option(arguments.PERCENT, "--max-kl", help="Highest mean KL from dense on them, in nats.")
    ] = None,
    min_cosine: Annotated[
        float | None,
        number_option(
            arguments.Numbers(-1, 1), "--min-cosine", help="Lowest mean cosine to dense, of embeddings and features."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    json: JsonFlag = False,
) -> None:
    source = weights_source(weights)
    if preset not in ("default", "paper"):
        raise typer.BadParameter(f"'{preset}' is neither 'default' nor 'paper'", param_hint="--preset")
    if output not in ("logits", "embedding", "features"):
        raise typer.BadParameter(f"'{output}' is not 'logits', 'embedding' or 'features'", param_hint="--output")
    if activation not in (None, "softmax", "sigmoid", "none"):
        raise typer.BadParameter(f"'{activation}' is not 'softmax', 'sigmoid' or 'none'", param_hint="--activation")
    if text_head is not None and output != "logits":
        raise typer.BadParameter(f"it gives logits, and --output is '{output}'", param_hint="--text-head")
    if precision not in (None, "auto"):
        raise typer.BadParameter(f"'{precision}' is not 'auto'; profiles say the rest", param_hint="--precision")
    from ztdeploy.core.methods import DEFAULT_METHOD
    from ztdeploy.core.profile import schedule_path
    from ztdeploy.host.models.sources import folder_word
    from ztdeploy.jobs.build import BuildRequest

    request = BuildRequest(
        model=model,
        profiles=tuple(profile),
        out=out or Path(f"{folder_word(model)}-{'-'.join(Path(name).stem for name in profile)}"),
        keep_ratios=tuple(keep_ratio or ()),
        schedules=tuple(map(schedule_path, schedule or ())),
        methods=tuple(method or (DEFAULT_METHOD,)),
        preset=preset,
        weights=source,
        checkpoint=checkpoint,
        image_size=parse_image_size(image_size),
        batch=batch,
        crop_pct=crop_pct,
        preprocess=preprocess_options(mean, std, interpolation, crop_mode, bit_depth),
        class_names=class_names,
        output=cast(Literal["logits", "embedding", "features"], output),
        activation=cast(Literal["softmax", "sigmoid", "none"] | None, activation),
        text_head=text_head,
        gate=_gate(calib, max_drop=max_drop, min_agreement=min_agreement, max_kl=max_kl, min_cosine=min_cosine),
        force=force,
    )
    if weights == "random" and checkpoint is None:
        warn("the weights are random: good for latency, while predictions mean nothing")
    if precision == "auto":
        from ztdeploy.jobs.auto_precision import build_fastest as build_bundle
    else:
        from ztdeploy.jobs.build import build as build_bundle
    with progress_bar(not json) as progress:
        bundle = build_bundle(request, progress)
    if json:
        print_json(
            {
                "bundle": str(bundle.root),
                **bundle.manifest.model_dump(mode="json", include=_IN_JSON),
            }
        )
        leave(bundle.manifest.failed)
        return
    from ztdeploy.cli.inspect import show_bundle, show_drift, show_fidelity
    from ztdeploy.cli.precision import show_choices, show_ranges
    from ztdeploy.jobs.gate import gate_lines
    from ztdeploy.target.backends.int8 import int8_note, is_elsewhere

    show_bundle(bundle)
    show_drift(bundle)
    show_fidelity(bundle)
    show_choices(bundle)
    show_ranges(bundle)
    manifest, seen = bundle.manifest, bundle.manifest.calibration
    said = {record.profile for record in manifest.adapted}
    here = [one for name, one in manifest.profiles.items() if name not in said and not is_elsewhere(one)]
    slow = filter(None, map(int8_note, here))
    for line in manifest.weights.remarks:
        note(f"note: {line}")
    for line in (*(seen.cautions if seen else ()), *gate_lines(manifest), *manifest.lines_of_missing, *slow):
        warn(line)
    note(f"wrote {bundle.root}; next: ztdeploy run {bundle.root} PHOTO")
    leave(bundle.manifest.failed)


def _gate(calib: Path | None, **limits: float | None) -> Gate | None:
    """
    Args:
        limits: the fields of `GateLimits`.

    Raises:
        InputError: limits without images.
    """
    from math import isfinite

    from ztdeploy.core.errors import InputError
    from ztdeploy.core.manifest import GateLimits
    from ztdeploy.jobs.gate import Gate

    for name, value in limits.items():
        option = f"--{name.replace('_', '-')}"
        if value is not None and not isfinite(value):
            raise InputError(f"{option} {value}", "a number", f"leave {option} out")
        if value is not None and calib is None:
            raise InputError(f"{option} {value:g} without --calib", "images to judge on", "give --calib DIR as well")
    if calib is None:
        return None
    return Gate(calib, GateLimits.model_validate(limits))
