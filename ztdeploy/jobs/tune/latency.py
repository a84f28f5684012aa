"""Measuring what a budget in time is predicted from: a few engines, and a block at every number of tokens.

Done once per machine, profile and model, and kept in the cache; so are the bundles that it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.cache import cache_errors, key_of
from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.errors import EnvironmentLacksError, InputError
from ztdeploy.core.files import read_text, write
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.plan import plan
from ztdeploy.core.profile import read_profile
from ztdeploy.core.progress import Progress
from ztdeploy.core.records import from_json, to_json
from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.jobs.build import BuildRequest
from ztdeploy.jobs.bundle_cache import cached_bundle
from ztdeploy.jobs.tune.fitting import least_squares
from ztdeploy.jobs.tune.space import Point, fitted
from ztdeploy.report.tune.cost import LatencyCost, features
from ztdeploy.report.tune.records import Measured
from ztdeploy.report.tune.request import TuneRequest
from ztdeploy.target.backends import backend_of, runtime_versions, why_not_run
from ztdeploy.target.backends.base import Insight
from ztdeploy.target.measure.bench import run_bench
from ztdeploy.target.measure.bench_report import BenchReport, BenchRequest
from ztdeploy.target.measure.details import details_order, look_into
from ztdeploy.target.measure.machine import read_machine, usable_cores
from ztdeploy.target.measure.sweep_report import Staircase

#: What engines are measured at, as shares of dense's multiply-adds; each with layers in many blocks, and in few.
_SHARES = (0.85, 0.7, 0.55)
_SECONDS, _ROUNDS, _WARM_UP_S = 2.0, 10, 0.5


def measured_cost(request: TuneRequest, model: LoadedModel, cache: Path, progress: Progress) -> LatencyCost:
    """The cost model of this machine; measured where the cache holds none.

    Raises:
        EnvironmentLacksError: engines of the profile do not run here, or say nothing about their blocks.
        ZtdeployError: they cannot be built or measured.
    """
    assert request.profile is not None
    profile = read_profile(request.profile)
    reason = why_not_run(profile)
    if reason is not None or not isinstance(backend_of(profile), Insight):
        raise EnvironmentLacksError(
            f"profile '{profile.name}' for a budget in time: {reason or 'its engines say nothing about their blocks'}",
            "a profile of ONNX Runtime that runs on this machine",
            "run this there with --profile cpu, or give a budget in gmacs",
        )
    key = key_of(
        runtimes=runtime_versions(),
        profile=profile.model_dump(mode="json"),
        model=model.timm_name,
        image_size=model.preprocess.image_size,
        architecture=model.adapter.architecture.model_dump(mode="json"),
        methods=request.methods,
        machine=read_machine().model_dump(mode="json", exclude={"gpus"}),
    )
    kept = cache / "latency" / f"{key}.json"
    try:
        return from_json(LatencyCost, read_text(kept))
    except (InputError, ValidationError):
        found = _measure(request, model.adapter.architecture, cache, progress)
    with cache_errors(cache):
        write(kept, to_json(found))
    return found


def _measure(request: TuneRequest, architecture: Architecture, cache: Path, progress: Progress) -> LatencyCost:
    probes = _probes(request.methods, architecture)
    bundle = _bundle(request, probes, cache, progress)
    report = _timed(request, bundle, progress)
    setting = report.configurations[0]
    assert request.profile is not None
    progress("measuring a block at every number of tokens", 0, 1)
    profile = read_profile(request.profile).name
    threads = setting.threads or len(usable_cores())
    staircase = look_into(details_order(bundle, profile, None, setting.batch, threads))
    assert isinstance(staircase, Staircase)
    return fit(staircase, probes, _times(report), request.methods, architecture)


def fit(
    staircase: Staircase,
    probes: Sequence[PruningSchedule],
    times: dict[str, float],
    methods: Sequence[str],
    architecture: Architecture,
) -> LatencyCost:
    """
    Args:
        times: of variants by name, in ms; "dense" is among them.
    """
    known = [one for one in (PruningSchedule(name="dense"), *probes) if one.name in times]
    rows = []
    for one in known:
        blocks, layers, pairs = features(plan(one, architecture), staircase)
        own = [value * (one.method == method) for method in methods for value in (layers, 1e-6 * pairs)]
        rows.append([1.0, blocks, *own])
    table, measured = np.array(rows), np.array([times[one.name] for one in known])
    found = least_squares(table, measured)
    return LatencyCost(
        staircase=staircase,
        ends_ms=float(found[0]),
        scale=float(found[1]),
        layer_ms={method: float(found[2 + 2 * place]) for place, method in enumerate(methods)},
        pair_ns={method: float(found[3 + 2 * place]) for place, method in enumerate(methods)},
        fitted=len(known),
        worst_fit=float(np.abs(table @ found / measured - 1).max()),
    )


def measure_winners(
    request: TuneRequest,
    schedules: Sequence[PruningSchedule],
    predict: Callable[[PruningSchedule], float],
    cache: Path,
    progress: Progress,
) -> tuple[Measured, ...]:
    """Engines of what was found, built and measured, against what was predicted of them."""
    bundle = _bundle(request, schedules, cache, progress)
    times = _times(_timed(request, bundle, progress))
    return tuple(
        Measured(schedule=one.name, predicted_ms=predict(one), measured_ms=times[one.name])
        for one in schedules
        if one.name in times
    )


def _probes(methods: Sequence[str], architecture: Architecture) -> list[PruningSchedule]:
    """Schedules that tell apart what a layer costs from what its tokens cost."""

    def gmacs(schedule: PruningSchedule) -> float:
        return plan_gmacs(architecture, plan(schedule, architecture))

    dense, depth = gmacs(PruningSchedule(name="dense")), architecture.depth
    points = [Point(method=method, first=max(1, depth // 3)) for method in methods]
    points += [Point(method=method, first=max(1, depth // 4), every=max(2, depth // 4)) for method in methods]
    found = [
        fitted(point, architecture, gmacs, share * dense, f"probe-{point.method}-{point.every}-{round(100 * share)}")
        for share in _SHARES
        for point in points
    ]
    return [one for one in found if one is not None]


def _bundle(request: TuneRequest, schedules: Sequence[PruningSchedule], cache: Path, progress: Progress) -> Bundle:
    assert request.profile is not None
    with scratch_folder() as folder:
        files = [folder / f"{one.name}.json" for one in schedules]
        for one, file in zip(schedules, files, strict=True):
            write(file, to_json(one, by_alias=True))
        build = BuildRequest(
            model=request.model,
            profiles=(request.profile,),
            out=folder / "bundle",
            schedules=tuple(files),
        )
        return cached_bundle(build, cache, progress)


def _timed(request: TuneRequest, bundle: Bundle, progress: Progress) -> BenchReport:
    assert request.profile is not None
    bench = BenchRequest(
        bundle=bundle.root,
        all_variants=True,
        profile=read_profile(request.profile).name,
        warmup_s=_WARM_UP_S,
        duration_s=_SECONDS,
        rounds=_ROUNDS,
        seed=request.seed,
    )
    report = run_bench(bench, progress=progress)
    if report.progress == "interrupted":
        raise KeyboardInterrupt
    return report


def _times(report: BenchReport) -> dict[str, float]:
    return {one.variant: one.latency.p50_ms for one in report.measured if one.latency is not None}
