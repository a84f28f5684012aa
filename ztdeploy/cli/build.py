"""ztdeploy build"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ztdeploy.cli.options import PresetOption, number_option, path_option, takes_model, word_option
from ztdeploy.cli.output import answer, leave, note, progress_bar, warn
from ztdeploy.core import arguments

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ztdeploy.core.bundle import Bundle
    from ztdeploy.core.model_source import ModelSource


def register(app: typer.Typer) -> None:
    app.command(help="Trace, prune, export, build engines, prove them, and write one bundle.")(build)


@takes_model()
def build(
    model: ModelSource,
    profile: Annotated[
        list[str] | None,
        word_option("--profile", "-p", help="Shipped profile or TOML file; repeatable. (default: this machine's)"),
    ] = None,
    out: Annotated[Path | None, path_option("--out", "-o", help="Folder to write. (default: MODEL-PROFILE)")] = None,
    keep_ratio: Annotated[
        list[float] | None,
        number_option(
            arguments.KEEP_RATIO, "--keep-ratio", "-k", help="Share of patch tokens each layer keeps; repeatable."
        ),
    ] = None,
    method: Annotated[list[str] | None, word_option(help="Pruning method; repeatable. (default: zero-tprune)")] = None,
    preset: PresetOption = "default",
    schedule: Annotated[
        list[Path] | None, path_option(help="Schedule file (TOML, JSON), or a shipped one's name; repeatable.")
    ] = None,
    precision: Annotated[
        Literal["auto"] | None,
        typer.Option(help="auto: the fastest of the profile's candidates that costs little on --calib."),
    ] = None,
    batch: Annotated[
        int | None, number_option(arguments.BATCH, "--batch", help="Fix the batch. (default: as the profile says)")
    ] = None,
    calib: Annotated[
        Path | None,
        path_option(help="Calibration images, as for 'eval --data': they judge pruned variants and set int8 ranges."),
    ] = None,
    max_drop: Annotated[
        float | None,
        number_option(arguments.POINTS, "--max-drop", help="Points of top-1 that pruning may cost on --calib."),
    ] = None,
    min_agreement: Annotated[
        float | None,
        number_option(arguments.SHARE, "--min-agreement", help="Share of --calib that must get the baseline's answer."),
    ] = None,
    max_kl: Annotated[
        float | None,
        number_option(arguments.PERCENT, "--max-kl", help="Highest mean KL from the baseline there, in nats."),
    ] = None,
    min_cosine: Annotated[
        float | None,
        number_option(
            arguments.Numbers(-1, 1), "--min-cosine", help="Lowest mean cosine of vectors to the baseline's."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    from ztdeploy.core.methods import DEFAULT_METHOD
    from ztdeploy.core.profile import schedule_path
    from ztdeploy.core.schedule import read_schedule
    from ztdeploy.jobs.request import BuildRequest, default_folder, gate_of

    profiles = profile or [_own_profile()]
    request = BuildRequest(
        model=model,
        profiles=tuple(profiles),
        out=out or default_folder(model.name, profiles),
        keep_ratios=tuple(keep_ratio or ()),
        schedules=tuple(read_schedule(schedule_path(path)) for path in schedule or ()),
        methods=tuple(method or (DEFAULT_METHOD,)),
        preset=preset,
        batch=batch,
        gate=gate_of(calib, max_drop=max_drop, min_agreement=min_agreement, max_kl=max_kl, min_cosine=min_cosine),
        force=force,
    )
    if model.weights == "random" and model.checkpoint is None:
        warn("the weights are random: good for latency, while predictions mean nothing")
    if precision == "auto":
        from ztdeploy.jobs.auto_precision import build_fastest as build_bundle
    else:
        from ztdeploy.jobs.build import build as build_bundle
    with progress_bar() as progress:
        bundle = build_bundle(request, progress)
    answer(lambda: _result(bundle), lambda: _show(bundle))
    leave(bundle.manifest.failed)


def _result(bundle: Bundle) -> BaseModel:
    from ztdeploy.cli.results import OF_MANIFEST, BuildResult

    found = {name: getattr(bundle.manifest, name) for name in OF_MANIFEST}
    return BuildResult.model_validate({"bundle": str(bundle.root), **found})


def _own_profile() -> str:
    """The profile of the machine that builds, of which the reason is said."""
    from ztdeploy.target.machine_profile import profile_for_this_machine

    name, reason = profile_for_this_machine()
    note(f"building for profile '{name}': {reason}")
    return name


def _show(bundle: Bundle) -> None:
    """What was built, and what the user should know about it."""
    from ztdeploy.cli.inspect import show_bundle, show_findings
    from ztdeploy.target.backends.int8 import int8_note, is_elsewhere

    show_bundle(bundle)
    show_findings(bundle)
    manifest, seen = bundle.manifest, bundle.manifest.calibration
    for line in manifest.weights.remarks:
        note(f"note: {line}")
    said = {record.profile for record in manifest.adapted}
    here = [one for name, one in manifest.profiles.items() if name not in said and not is_elsewhere(one)]
    left_out = (line for gate in manifest.gates for line in gate.lines)
    slow = filter(None, map(int8_note, here))
    for line in (*(seen.cautions if seen else ()), *left_out, *manifest.lines_of_missing, *slow):
        warn(line)
    note(f"wrote {bundle.root}; next: ztdeploy run {bundle.root} PHOTO")
