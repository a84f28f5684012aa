"""Measuring what a budget in time is predicted from: a few engines, and a block at every number of tokens.

Done once per machine, profile and model, and kept in the cache; so are the bundles that it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.cache import cache_errors, key_of
from ztdeploy.core.errors import EnvironmentLacksError, InputError
from ztdeploy.core.files import read_text, write
from ztdeploy.core.profile import HardwareProfile, read_profile
from ztdeploy.core.progress import Progress, parts
from ztdeploy.core.records import from_json, to_json
from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.jobs.build import BuildRequest
from ztdeploy.jobs.bundle_cache import cached_bundle
from ztdeploy.jobs.tune.cost import DENSE, Price, fit, price_of
from ztdeploy.jobs.tune.space import Point, fitted
from ztdeploy.report.tune.records import GmacsCost, LatencyCost, Measured, TuneRequest
from ztdeploy.target.backends import backend_of, runtime_versions, why_not_run
from ztdeploy.target.backends.base import Insight
from ztdeploy.target.measure.bench import run_bench
from ztdeploy.target.measure.bench_report import BenchReport, BenchRequest
from ztdeploy.target.measure.details import details_order, look_into
from ztdeploy.target.measure.machine import read_machine, usable_cores
from ztdeploy.target.measure.sweep_report import Staircase

#: What engines are measured at, as shares of the baseline's compute; each with layers in many blocks, and in few.
_SHARES = (0.85, 0.7, 0.55)
_SECONDS, _ROUNDS, _WARM_UP_S = 2.0, 10, 0.5


def measured_cost(request: TuneRequest, model: LoadedModel, cache: Path, progress: Progress) -> LatencyCost:
    """The cost model of this machine; measured where the cache holds none.

    Raises:
        EnvironmentLacksError: engines of the profile do not run here, or say nothing about their blocks.
        ZtdeployError: they cannot be built or measured.
    """
    profile, architecture = _profile(request), model.adapter.architecture
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
        architecture=architecture.model_dump(mode="json"),
        methods=request.methods,
        machine=read_machine().model_dump(mode="json", exclude={"gpus"}),
    )
    kept = cache / "latency" / f"{key}.json"
    try:
        return from_json(LatencyCost, read_text(kept))
    except (InputError, ValidationError):
        found = _measure(request, architecture, cache, progress)
    with cache_errors(cache):
        write(kept, to_json(found))
    return found


def measure_winners(
    request: TuneRequest, schedules: Sequence[PruningSchedule], predict: Price, cache: Path, progress: Progress
) -> tuple[Measured, ...]:
    """Engines of what was found, built and measured, against what was predicted of them."""
    stages = parts(progress, {"build": 2, "measure": 1})
    times = _times(_timed(request, _bundle(request, schedules, cache, stages["build"]), stages["measure"]))
    return tuple(
        Measured(schedule=one.name, predicted_ms=predict(one), measured_ms=times[one.name])
        for one in schedules
        if one.name in times
    )


def _measure(request: TuneRequest, architecture: Architecture, cache: Path, progress: Progress) -> LatencyCost:
    probes = _probes(request.methods, architecture)
    stages = parts(progress, {"build": 4, "measure": 2, "blocks": 1})
    bundle = _bundle(request, probes, cache, stages["build"])
    report = _timed(request, bundle, stages["measure"])
    setting = report.configurations[0]
    stages["blocks"]("measuring a block at every number of tokens", 0, 1)
    threads = setting.threads or len(usable_cores())
    staircase = look_into(details_order(bundle, _profile(request).name, None, setting.batch, threads))
    assert isinstance(staircase, Staircase)
    return fit(staircase, probes, _times(report), request.methods, architecture)


def _probes(methods: Sequence[str], architecture: Architecture) -> list[PruningSchedule]:
    """Schedules that tell apart what a layer costs from what its tokens cost."""
    price, depth = price_of(GmacsCost(), architecture), architecture.depth
    dense = price(DENSE)
    points = [Point(method=method, first=max(1, depth // 3), every=1) for method in methods]
    points += [Point(method=method, first=max(1, depth // 4), every=max(2, depth // 4)) for method in methods]
    found = [
        fitted(point, architecture, price, share * dense, f"probe-{point.method}-{point.every}-{100 * share:.0f}")
        for share in _SHARES
        for point in points
    ]
    return [one for one in found if one is not None]


def _profile(request: TuneRequest) -> HardwareProfile:
    assert request.profile is not None
    return read_profile(request.profile)


def _bundle(request: TuneRequest, schedules: Sequence[PruningSchedule], cache: Path, progress: Progress) -> Bundle:
    assert request.profile is not None
    build = BuildRequest(
        model=request.model,
        profiles=(request.profile,),
        out=Path(),  # the cache's own
        schedules=tuple(schedules),
    )
    return cached_bundle(build, cache, progress)


def _timed(request: TuneRequest, bundle: Bundle, progress: Progress) -> BenchReport:
    bench = BenchRequest(
        bundle=bundle.root,
        all_variants=True,
        profile=_profile(request).name,
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
