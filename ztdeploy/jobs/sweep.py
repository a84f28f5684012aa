"""A sweep: build every variant once, measure it against dense, and go on where an earlier one was stopped.

`sweep` is the job on one screen. The first half needs PyTorch only where something is missing from the cache, and not
at all for a bundle that is there already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.cache import cache_folder
from ztdeploy.core.errors import EnvironmentLacksError, InputError, OutputError, ZtdeployError
from ztdeploy.core.methods import DEFAULT_METHOD, method_named
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.profile import HardwareProfile, read_profile
from ztdeploy.core.progress import Note, Progress, parts, silent
from ztdeploy.jobs.build import check_backends
from ztdeploy.jobs.bundle_cache import buildable_bundle
from ztdeploy.jobs.request import BuildRequest
from ztdeploy.report.sweep.verdict import verdicts
from ztdeploy.report.sweep_folder import PREVIOUS, REPORT, read_previous, set_aside, sweep_folder, write_sweep
from ztdeploy.target.backends import why_not_run
from ztdeploy.target.evaluate.swept import check_images, with_fidelity
from ztdeploy.target.measure.bench_report import Failure
from ztdeploy.target.measure.details import measure_details
from ztdeploy.target.measure.machine import read_machine
from ztdeploy.target.measure.sweep import measure_groups
from ztdeploy.target.measure.sweep_plan import (
    check_holds,
    check_sweep,
    empty_report,
    kept_runs,
    plan_groups,
    why_not_resumed,
    with_findings_of,
)
from ztdeploy.target.measure.sweep_report import SweepReport, SweepRequest
from ztdeploy.target.runtime.runner import runnable_profile

KEEP_RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


@dataclass(frozen=True)
class Built:
    """What there is to measure, and what could not be built."""

    bundles: tuple[Bundle, ...]
    profile: str
    failures: tuple[Failure, ...] = ()


def sweep(
    request: SweepRequest,
    out: Path,
    *,
    cache: Path | None = None,
    fresh: bool = False,
    progress: Progress = silent,
    note: Note = lambda _text: None,
) -> SweepReport:
    """Build, evaluate on images where there are some, measure, and write `out/sweep.json` after every round.

    Args:
        out: a new folder, or that of an earlier sweep: with the same request, its complete groups are kept.
        cache: see `cache.cache_folder`.
        fresh: evaluate and measure everything again.
        note: told what is worth knowing and no error.

    Returns:
        The report; its `progress` is "interrupted" after Ctrl-C.

    Raises:
        ZtdeployError: the request makes no sense, nothing can be built, `out` is something else, or what
            `evaluate_bundle` raises.
    """
    check_sweep(request)
    check_images(request)
    caches, stages = cache_folder(cache), _stages(request, progress)
    with sweep_folder(out):
        request, built = gather(request, caches, stages["build"])
        groups = plan_groups(request, built.bundles, built.profile)
        start = empty_report(request, built.bundles, built.profile, groups, built.failures)
        start = with_fidelity(
            start, built.bundles, built.profile, cache=caches, fresh=fresh, progress=stages["evaluate"], note=note
        )
        if request.data is None and any(bundle.manifest.cascade for bundle in built.bundles):
            note("the cascade is not measured: its latency depends on images; give --data DIR")
        earlier = _earlier(out, start, fresh=fresh, note=note)
        start = with_findings_of(start, earlier)
        kept = kept_runs(earlier, groups) if earlier else {}
        if kept:
            note(f"kept from before: {len(kept)} of {len(groups)} groups of configurations; --fresh measures all again")
        save = partial(write_sweep, out=out)
        report = measure_groups(start, groups, kept, progress=stages["measure"], save=save)
        if report.progress == "complete" and request.details:
            report = measure_details(report, built.bundles, progress=stages["details"], save=save)
        report = report.model_copy(update={"verdicts": tuple(one.verdict for one in verdicts(report))})
        write_sweep(report, out)
        for line in report.notes:
            note(line)
    return report


def _stages(request: SweepRequest, progress: Progress) -> dict[str, Progress]:
    """The progress of each stage, by about how many seconds it takes."""
    variants = 1 + len(request.keep_ratios or KEEP_RATIOS) * max(1, len(request.methods))
    settings = max(1, len(request.batches)) * max(1, len(request.threads)) * max(1, len(request.image_sizes))
    seconds = {
        "build": 8.0 * variants if request.model else 0.0,
        "evaluate": 3.0 * variants if request.data else 0.0,
        "measure": settings * variants * (request.duration_s + request.warmup_s + 1),
        "details": 2.0 * variants if request.details else 0.0,
    }
    return parts(progress, seconds)


def gather(request: SweepRequest, cache: Path, progress: Progress) -> tuple[SweepRequest, Built]:
    """The bundles of a sweep, one per image size, and the request with its defaults filled in.

    Raises:
        ZtdeployError: a bad request, or nothing at all can be built.
    """
    if request.model is None:
        return request, _given(request)
    if request.bundle is not None or request.profile is None:
        raise InputError(
            f"model '{request.model.name}' with {'a bundle' if request.bundle else 'no profile'}",
            "a model and a profile, or a bundle",
            "give --model MODEL --profile PROFILE, or --bundle DIR",
        )
    profile = read_profile(request.profile)
    ratios = tuple(sorted(set(request.keep_ratios or KEEP_RATIOS), reverse=True))
    methods = tuple(dict.fromkeys(request.methods or (DEFAULT_METHOD,)))
    _check_can_do(request, profile)
    pruned = tuple(ratio for ratio in ratios if ratio != 1)
    wanted = BuildRequest(
        model=request.model,
        profiles=(profile,),
        out=Path(),  # the cache's own
        keep_ratios=pruned or (1.0,),
        methods=methods if pruned else (DEFAULT_METHOD,),
        preset=request.preset,
    )
    built = _build(wanted, profile.name, request.image_sizes or (request.model.image_size,), cache, progress)
    return request.model_copy(update={"keep_ratios": ratios, "methods": methods}), built


def _given(request: SweepRequest) -> Built:
    """The variants of a bundle as they are."""
    if request.bundle is None:
        raise InputError("neither a model nor a bundle", "one of them", "give --model MODEL, or --bundle DIR")
    for name in ("image_sizes", "preset"):
        if getattr(request, name) != SweepRequest.model_fields[name].default:
            option = name.replace("_", "-").removesuffix("s")
            raise InputError(f"--{option} with a bundle", "a bundle as it is", f"leave --{option} out, or give --model")
    bundle = read_bundle(request.bundle)
    profile = runnable_profile(bundle) if request.profile is None else bundle.profile_name(request.profile)
    check_holds(request, bundle)
    return Built((bundle,), profile)


def _build(
    wanted: BuildRequest, profile: str, sizes: Sequence[ImageSize | None], cache: Path, progress: Progress
) -> Built:
    bundles, failures, errors = [], list[Failure](), list[ZtdeployError]()
    for size in sizes:
        try:
            sized = replace(wanted, model=wanted.model.model_copy(update={"image_size": size}))
            bundle, unbuilt = buildable_bundle(sized, cache, progress)
        except (EnvironmentLacksError, OutputError):
            raise
        except ZtdeployError as error:
            errors.append(error)
            failures.append(Failure(message=f"at {size} px: {error}", exit_code=error.exit_code))
            continue
        bundles.append(bundle)
        for one in unbuilt:
            message = f"{one.variant} at {bundle.manifest.preprocess.image_size} px: {one.error}"
            failures.append(Failure(message=message, exit_code=one.error.exit_code))
    if not bundles:
        raise errors[0]
    return Built(tuple(bundles), profile, tuple(failures))


def _check_can_do(request: SweepRequest, profile: HardwareProfile) -> None:
    """Refuse what can be known to fail before anything is built."""
    check_backends([profile])
    for method in request.methods:
        method_named(method)
    reason = why_not_run(profile)
    if reason is not None:
        raise EnvironmentLacksError(
            f"profile '{profile.name}': {reason}",
            "a machine that runs its engines",
            "build with 'ztdeploy build', copy the bundle there, and run: ztdeploy sweep --bundle BUNDLE",
        )
    dynamic, sizes = profile.batch.dynamic, profile.batch.sizes
    for batch in request.batches:
        if (batch > max(sizes)) if dynamic else (batch != sizes[0]):
            takes = f"up to {max(sizes)} images" if dynamic else f"{sizes[0]} images"
            raise InputError(
                f"--batch {batch} with profile '{profile.name}', whose engines take {takes}",
                takes,
                f"choose another one, or a profile whose batch.sizes hold {batch}",
            )


def _earlier(out: Path, start: SweepReport, *, fresh: bool, note: Note) -> SweepReport | None:
    """The sweep to go on with; any other one is set aside, with the reason."""
    earlier, reason = read_previous(out)
    if earlier is not None:
        machine = read_machine()
        reason = "asked for with --fresh" if fresh else why_not_resumed(earlier, start, machine)
    if reason is not None:
        set_aside(out)
        note(f"measuring all anew: {reason}; what was in '{out / REPORT}' is now '{PREVIOUS}'")
        return None
    return earlier
