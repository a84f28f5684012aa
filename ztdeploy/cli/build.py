"""ztdeploy build"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ztdeploy.cli.help import DEPLOY, OUTPUT, PRUNING, QUALITY, TARGETS
from ztdeploy.cli.options import (
    METHODS,
    PROFILES,
    SCHEDULES,
    MaxErrorOption,
    MinIouOption,
    PresetOption,
    flag,
    method,
    option,
    options,
    path,
    request_of,
    takes_model,
    word,
)
from ztdeploy.cli.output import answer, leave, note, progress_bar, say, warn
from ztdeploy.core.arguments import BATCH, KEEP_RATIO, PERCENT, POINTS, SHARE, Numbers

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ztdeploy.core.bundle import Bundle
    from ztdeploy.core.model_source import ModelSource


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=DEPLOY)(build)


@takes_model()
def build(
    model: ModelSource,
    profiles: Annotated[
        list[str] | None,
        options(
            "-p, --profile NAME",
            word,
            TARGETS,
            "Targets: profiles or TOML files. [default: this machine's]",
            known=PROFILES,
        ),
    ] = None,
    out: Annotated[
        Path | None, option("-o, --out DIR", path, OUTPUT, "Folder to write. [default: MODEL-PROFILE]")
    ] = None,
    keep_ratios: Annotated[
        list[float] | None,
        options(
            "-k, --keep-ratio RATIO",
            KEEP_RATIO,
            PRUNING,
            "Share of patches that a layer keeps. [default: the profile's]",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        options("--method NAME", method, PRUNING, "Pruning methods. [default: novelty-merge]", known=METHODS),
    ] = None,
    preset: PresetOption = "default",
    schedules: Annotated[
        list[Path] | None,
        options("--schedule FILE", path, PRUNING, "Shipped schedules, or TOML or JSON files.", known=SCHEDULES),
    ] = None,
    precision: Annotated[
        Literal["auto"] | None,
        option("--precision auto", ("auto",), TARGETS, "The fastest candidate that costs little on --calib."),
    ] = None,
    batch: Annotated[
        int | None, option("--batch N", BATCH, TARGETS, "Fix the batch. [default: as the profile says]")
    ] = None,
    calib: Annotated[
        Path | None, option("--calib DIR", path, QUALITY, "Images that judge pruned variants and set int8 ranges.")
    ] = None,
    max_drop: Annotated[
        float | None, option("--max-drop NUMBER", POINTS, QUALITY, "Points of top-1 that pruning may cost on --calib.")
    ] = None,
    min_agreement: Annotated[
        float | None, option("--min-agreement RATIO", SHARE, QUALITY, "Share of --calib with the baseline's answer.")
    ] = None,
    max_kl: Annotated[
        float | None,
        option("--max-kl NUMBER", PERCENT, QUALITY, "Highest mean KL from the baseline on --calib, in nats."),
    ] = None,
    min_cosine: Annotated[
        float | None,
        option("--min-cosine NUMBER", Numbers(-1, 1), QUALITY, "Lowest mean cosine to the baseline on --calib."),
    ] = None,
    max_error: MaxErrorOption = None,
    min_iou: MinIouOption = None,
    cascade: Annotated[
        float | None,
        option("--cascade RATIO", KEEP_RATIO, QUALITY, "Build a cascade that agrees with the baseline so often."),
    ] = None,
    cascade_max_rerun: Annotated[
        float | None,
        option("--cascade-max-rerun RATIO", KEEP_RATIO, QUALITY, "Share of images that may go past its first stage."),
    ] = None,
    cascade_min_cosine: Annotated[
        float | None,
        option(
            "--cascade-min-cosine RATIO", KEEP_RATIO, QUALITY, "From this cosine on, vectors agree. [default: 0.95]"
        ),
    ] = None,
    force: Annotated[bool, flag("--force", OUTPUT, "Replace an existing bundle.")] = False,
) -> None:
    """Build a bundle: prune, export, build engines, and prove them.

    Examples:
        # Build for this machine.
        ztdeploy build --model deit_s
        # Build two variants for two targets; keep those that your images allow.
        ztdeploy build -m deit_s -k 0.9,0.7 -p cpu,jetson-orin --calib photos -o edge
        # Prune half of the work away, and run the baseline where that is unsure.
        ztdeploy build -m deit_s -k 0.55 --cascade 0.98 --calib photos -o unsure
    """
    given = locals()
    from ztdeploy.core.manifest import GateLimits
    from ztdeploy.core.profile import schedule_path
    from ztdeploy.core.schedule import read_schedule
    from ztdeploy.jobs.request import BuildRequest, cascade_goal, default_folder, gate_of

    profiles = profiles or [_own_profile()]
    defaults = {
        "profiles": profiles,
        "out": out or default_folder(model.name, profiles),
        "schedules": [read_schedule(schedule_path(one)) for one in schedules or ()],
        "cascade": cascade_goal(cascade, cascade_max_rerun, cascade_min_cosine),
        "gate": gate_of(calib, **{name: given[name] for name in GateLimits.model_fields}),
    }
    request = request_of(BuildRequest, {**given, **defaults})
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
    from ztdeploy.target.verdict import verdict_of_build

    found = {name: getattr(bundle.manifest, name) for name in OF_MANIFEST}
    return BuildResult.model_validate({"bundle": str(bundle.root), "verdict": verdict_of_build(bundle), **found})


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
    from ztdeploy.target.verdict import verdict_of_build

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
    say(verdict_of_build(bundle).sentence)
