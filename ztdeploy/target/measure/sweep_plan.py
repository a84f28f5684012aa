"""Which configurations a sweep measures together, and what of an earlier sweep still answers that. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

from ztdeploy.core.bundle import WEIGHTS_FILE, Bundle
from ztdeploy.core.cascade import CASCADE, CascadeSetting
from ztdeploy.core.errors import InputError, did_you_mean
from ztdeploy.core.keep_ratio import check_keep_ratio
from ztdeploy.core.manifest import Fidelity, FidelityRecord, VariantRecord
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.setting import Setting
from ztdeploy.core.text import printable
from ztdeploy.target.measure.bench_report import BenchReport, BenchRequest, Failure
from ztdeploy.target.measure.machine import Machine
from ztdeploy.target.measure.plan import check_request
from ztdeploy.target.measure.sweep_report import BundleUsed, SweepReport, SweepRequest, VariantFacts
from ztdeploy.target.runtime.runner import engine_of

#: Processes that take turns with one another; each holds an engine in memory, and waits for all others.
MOST_AT_ONCE = 6
#: What a request asks for beside latencies, which stay the same without it.
BESIDE = ("details", "data", "limit")
#: About what starting a process takes, and looking at the machine before a group.
_START_S, _WATCH_S = 1.0, 0.6


@dataclass(frozen=True)
class Group:
    """Configurations that take turns with one another: dense, and as many others as wait beside it."""

    image_size: ImageSize
    dense: str
    request: BenchRequest  #: of one batch and one number of threads; dense comes by itself

    @property
    def configurations(self) -> tuple[str, ...]:
        cascade = (CASCADE,) if self.request.cascade else ()
        return tuple(dict.fromkeys((self.dense, *self.request.variants, *cascade)))

    @property
    def setting(self) -> Setting:
        return Setting(self.image_size, self.request.batches[0], next(iter(self.request.threads), None))

    @property
    def label(self) -> str:
        """Such as "keep-0.70, slice-keep-0.70 at 224 px, batch 1, 2 threads"."""
        return f"{', '.join(self.configurations[1:] or self.configurations)} at {self.setting}"

    @property
    def seconds(self) -> float:
        """How long it takes at least to measure."""
        each = self.request.warmup_s + (self.request.duration_s or 0) + _START_S
        return _WATCH_S + each * len(self.configurations)

    def is_answered_by(self, run: BenchReport) -> bool:
        """Whether an earlier run is what this group would measure, and all of it."""
        same = run.request == self.request.model_copy(update={"bundle": run.request.bundle})
        return same and run.bundle.image_size == self.image_size and run.progress == "complete" and not run.failures


def check_sweep(request: SweepRequest) -> None:
    """
    Raises:
        InputError: a value is out of range.
    """
    for ratio in request.keep_ratios:
        check_keep_ratio(ratio)
    check_request(BenchRequest(bundle=Path(), batches=request.batches, threads=request.threads, **_timing(request)))


def check_holds(request: SweepRequest, bundle: Bundle) -> None:
    """
    Raises:
        InputError: the bundle has no variant of a keep ratio or of a method that is asked for.
    """
    for ratio in request.keep_ratios:
        bundle.variants_at(ratio)
    known = {variant.schedule.method for variant in pruned_variants(bundle)}
    for method in request.methods:
        if method not in known:
            raise InputError(f"--method {method} of {bundle.root}", "a method in it", did_you_mean(method, known))


def pruned_variants(bundle: Bundle) -> list[VariantRecord]:
    return [variant for variant in bundle.manifest.variants if variant.plan.layers]


def chosen_variants(request: SweepRequest, bundle: Bundle) -> list[VariantRecord]:
    """What of a bundle is asked for, dense apart; by falling keep ratio, schedules without one last."""
    chosen = [
        variant
        for variant in pruned_variants(bundle)
        if (not request.keep_ratios or any(map(variant.has_ratio, request.keep_ratios)))
        and (not request.methods or variant.schedule.method in request.methods)
    ]
    return sorted(chosen, key=lambda variant: -(variant.keep_ratio or 0))


def swept_cascade(request: SweepRequest, bundle: Bundle, profile: str) -> CascadeSetting | None:
    """How the bundle's cascade decides, where it is part of the sweep: with images, and where no variants are chosen.

    Its latency depends on the images, since not all go through all stages.
    """
    cascade = bundle.manifest.cascade
    if request.data is None or request.keep_ratios or request.methods or cascade is None:
        return None
    return cascade.settings.get(profile)


def plan_groups(request: SweepRequest, bundles: Sequence[Bundle], profile: str) -> list[Group]:
    """By image size, batch, number of threads, and falling keep ratio; a cascade last."""
    groups = []
    for bundle in bundles:
        size, dense = bundle.manifest.preprocess.image_size, bundle.manifest.dense
        together = list(_together(chosen_variants(request, bundle))) or [(dense.name,)]
        smallest = dense.graphs[profile].batch or min(bundle.manifest.profiles[profile].batch.sizes)
        threads: list[tuple[int, ...]] = [(count,) for count in request.threads] or [()]
        planned: list[dict[str, Any]] = [{"variants": names} for names in together]
        if swept_cascade(request, bundle, profile):
            planned.append({"variants": (dense.name,), "cascade": True, "data": request.data})
        for batch, count, what in product(request.batches or (smallest,), threads, planned):
            own: dict[str, Any] = {**what, "batches": (batch,), "threads": count, **_timing(request)}
            groups.append(Group(size, dense.name, BenchRequest(bundle=bundle.root, profile=profile, **own)))
    return groups


def _timing(request: SweepRequest) -> dict[str, Any]:
    """What a benchmark is asked for as well."""
    return {name: getattr(request, name) for name in ("warmup_s", "duration_s", "rounds", "seed")}


def _together(variants: Sequence[VariantRecord]) -> Iterator[tuple[str, ...]]:
    """Names of variants that take turns; the dense one needs a place as well.

    All of one keep ratio stay together where they can, since they are compared with one another first; several ratios
    share a group, so that dense is not measured anew for each.
    """

    def same(variant: VariantRecord) -> tuple[float, str]:
        return (variant.keep_ratio, "") if variant.keep_ratio is not None else (0, variant.name)

    room, waiting = MOST_AT_ONCE - 1, list[str]()
    for _, alike in groupby(variants, key=same):
        names = [variant.name for variant in alike]
        parts = math.ceil(len(names) / room)
        for part in range(parts):
            own = names[part::parts]
            if len(waiting) + len(own) > room:
                yield tuple(waiting)
                waiting = []
            waiting += own
    if waiting:
        yield tuple(waiting)


def configurations_of(groups: Iterable[Group]) -> set[tuple[object, ...]]:
    """Each once: dense takes part in several groups."""
    return {(group.setting, name) for group in groups for name in group.configurations}


def empty_report(
    request: SweepRequest,
    bundles: Sequence[Bundle],
    profile: str,
    groups: Sequence[Group],
    failures: Sequence[Failure] = (),
) -> SweepReport:
    """All that is known before anything is measured."""
    return SweepReport(
        progress="running",
        request=request,
        variants=tuple(
            facts
            for bundle in bundles
            for facts in (
                *(_facts(bundle, variant, profile) for variant in _measured(request, bundle)),
                *_facts_of_cascade(bundle, swept_cascade(request, bundle, profile), profile),
            )
        ),
        runs=(),
        planned=len(configurations_of(groups)),
        failures=tuple(failures),
        bundles=tuple(_used(request, bundle, profile) for bundle in bundles),
    )


def _measured(request: SweepRequest, bundle: Bundle) -> list[VariantRecord]:
    return [bundle.manifest.dense, *chosen_variants(request, bundle)]


def _facts(bundle: Bundle, variant: VariantRecord, profile: str) -> VariantFacts:
    evaluated = bundle.fidelity(variant, profile)  # what an evaluation of the very engine left in the manifest
    return VariantFacts(
        name=variant.name,
        method=variant.schedule.method,
        keep_ratio=variant.keep_ratio,
        image_size=bundle.manifest.preprocess.image_size,
        gmacs=variant.gmacs,
        pruning_gmacs=variant.pruning_gmacs,
        tokens_per_block=variant.plan.tokens_per_block,
        fidelity=None if evaluated is None else fidelity_of(evaluated),
    )


def _facts_of_cascade(bundle: Bundle, setting: CascadeSetting | None, profile: str) -> list[VariantFacts]:
    if setting is None:
        return []
    size, cascade = bundle.manifest.preprocess.image_size, bundle.manifest.cascade
    evaluated = cascade.evaluations.get(profile) if cascade else None
    facts = VariantFacts(
        name=CASCADE,
        method=CASCADE,
        keep_ratio=None,
        image_size=size,
        gmacs=setting.gmacs,
        pruning_gmacs=0.0,
        tokens_per_block=(),
        fidelity=None if evaluated is None else fidelity_of(evaluated),
    )
    return [facts]


def fidelity_of(record: FidelityRecord) -> Fidelity:
    """What a sweep says of an evaluation."""
    return Fidelity(**record.model_dump(include=set(Fidelity.model_fields)))


def with_findings_of(report: SweepReport, earlier: SweepReport | None) -> SweepReport:
    """The report with what an earlier one, of the same engines on the same machine, knows and this one does not.

    That is where the time goes, and the fidelity of variants that were not evaluated now.
    """
    if earlier is None:
        return report
    known = {(one.name, one.image_size): one.fidelity for one in earlier.variants}
    variants = tuple(
        one if one.fidelity else one.model_copy(update={"fidelity": known.get((one.name, one.image_size))})
        for one in report.variants
    )
    found = {"variants": variants, "profiles": earlier.profiles, "staircases": earlier.staircases}
    return report.model_copy(update=found)


def _used(request: SweepRequest, bundle: Bundle, profile: str) -> BundleUsed:
    """The bundle, with a digest of what a measurement depends on; a bundle that was built again has the same."""
    files = {WEIGHTS_FILE}
    for variant in _measured(request, bundle):
        files |= set(engine_of(bundle, variant, profile).files)
    if profile in bundle.manifest.blocks:  # which the token staircase is measured on
        files.add(bundle.manifest.blocks[profile].file)
    setting = swept_cascade(request, bundle, profile)
    for piece in bundle.manifest.cascade.pieces if setting and bundle.manifest.cascade else ():
        files |= set(engine_of(bundle, piece, profile).files)
    hashes = {name: bundle.manifest.files[name].sha256 for name in sorted(files)}
    if setting is not None:
        hashes["thresholds"] = repr(setting.thresholds)
    return BundleUsed(
        image_size=bundle.manifest.preprocess.image_size,
        path=str(bundle.root),
        digest=hashlib.sha256(json.dumps(hashes).encode()).hexdigest(),
    )


def why_not_resumed(previous: SweepReport, now: SweepReport, machine: Machine) -> str | None:
    """What keeps an earlier sweep's runs from being part of this one; None where nothing does."""
    asked = [
        name.removesuffix("_s").replace("_", " ")
        for name in SweepRequest.model_fields
        if name not in BESIDE and getattr(previous.request, name) != getattr(now.request, name)
    ]
    if asked:
        return f"it was asked for with other values of {', '.join(asked)}"
    if {one.image_size: one.digest for one in previous.bundles} != {one.image_size: one.digest for one in now.bundles}:
        return "its engines or weights were others"
    there = next((run.machine for run in previous.runs), machine)
    was, now_is = (
        {**one.model_dump(), "gpus": [(gpu.name, gpu.driver) for gpu in one.gpus]}  # which have other clocks every time
        for one in (there, machine)
    )
    differing = [name.replace("_", " ") for name in was if was[name] != now_is[name]]
    if differing:
        return printable(f"it ran on another machine, or one set up otherwise: {', '.join(differing)}")
    return None


def kept_runs(previous: SweepReport, groups: Sequence[Group]) -> dict[int, BenchReport]:
    """Groups that need not be measured again, by position."""
    return {
        position: run for position, group in enumerate(groups) for run in previous.runs if group.is_answered_by(run)
    }
