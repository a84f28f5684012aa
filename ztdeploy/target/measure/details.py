"""Where the time goes: operator profiles and token staircases of what a sweep has measured, a process for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.cascade import CASCADE
from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.processes import module_command
from ztdeploy.core.progress import Progress
from ztdeploy.target.backends import get_backend
from ztdeploy.target.backends.base import Insight
from ztdeploy.target.measure.bench_report import Failure
from ztdeploy.target.measure.details_worker import DetailsOrder
from ztdeploy.target.measure.orders import Worker
from ztdeploy.target.measure.sweep_report import OperatorProfile, Staircase, SweepReport

#: About what a profile and a staircase may take, beyond starting their process.
_PROFILE_S, _STAIRCASE_S = 2.0, 8.0


def measure_details(
    report: SweepReport,
    bundles: Sequence[Bundle],
    *,
    progress: Progress,
    save: Callable[[SweepReport], None],
) -> SweepReport:
    """Add what is not in the report yet; what was measured before stays whatever happens here.

    What cannot be looked into at all is a note in the report; what should have been and was not is a failure. On Ctrl-C
    the report holds what there is, and says "interrupted".

    Args:
        report: complete, as far as latency goes.
        save: called with the report so far after each item.
    """
    orders, notes = plan_details(report, bundles)
    report = report.model_copy(update={"notes": notes})
    there = {(one.setting, one.variant) for one in report.profiles} | {(one.setting, None) for one in report.staircases}
    missing = [order for order in orders if (order.setting, order.variant) not in there]
    try:
        for done, order in enumerate(missing):
            progress(f"looking into {order.label}", done, len(missing))
            report = _with_details(report, order)
            save(report.model_copy(update={"progress": "running"}))
    except KeyboardInterrupt:
        return report.model_copy(update={"progress": "interrupted"})
    return report


def _with_details(report: SweepReport, order: DetailsOrder) -> SweepReport:
    """The report with what comes out of an order."""
    try:
        found = look_into(order)
    except ZtdeployError as error:
        return report.model_copy(update={"failures": (*report.failures, Failure.of(error, order.label))})
    field = "staircases" if isinstance(found, Staircase) else "profiles"
    return report.model_copy(update={field: (*getattr(report, field), found)})


def plan_details(report: SweepReport, bundles: Sequence[Bundle]) -> tuple[list[DetailsOrder], tuple[str, ...]]:
    """A profile of every variant at the first batch and number of threads of each image size, where one run per variant
    says enough; a staircase at all of them, since its shape depends on both. And what cannot be had, in words.
    """
    orders, notes = list[DetailsOrder](), list[str]()
    for bundle in bundles:
        size = bundle.manifest.preprocess.image_size
        runs = [run for run in report.runs if run.bundle.image_size == size]
        if not runs:
            continue
        profile = runs[0].bundle.profile
        found = [one for run in runs for one in run.measured if one.variant != CASCADE]
        settings = list(dict.fromkeys((one.batch, one.threads) for one in found if one.threads is not None))
        backend = bundle.manifest.profiles[profile].backend
        if not isinstance(get_backend(backend), Insight):
            notes.append(f"at {size} px: the runtime of {backend} engines says nothing about their operators or blocks")
            continue
        if profile not in bundle.manifest.blocks:
            notes.append(
                f"at {size} px: no token staircase: the bundle has no blocks of their own to measure"
                " (it was built by an older version, or its blocks do more than turn tokens into tokens)"
            )
        for batch, threads in settings:
            names = dict.fromkeys(one.variant for one in found if (one.batch, one.threads) == (batch, threads))
            variants: list[str | None] = [*names] if (batch, threads) == settings[0] else []
            if profile in bundle.manifest.blocks:
                variants.append(None)
            orders += [details_order(bundle, profile, variant, batch, threads) for variant in variants]
    return orders, tuple(notes)


def details_order(bundle: Bundle, profile: str, variant: str | None, batch: int, threads: int) -> DetailsOrder:
    """
    Args:
        variant: to profile; None: measure the staircase.
    """
    return DetailsOrder(
        bundle=bundle.root,
        profile=profile,
        variant=variant,
        image_size=bundle.manifest.preprocess.image_size,
        batch=batch,
        threads=threads,
        seconds=_STAIRCASE_S if variant is None else _PROFILE_S,
    )


def look_into(order: DetailsOrder) -> OperatorProfile | Staircase:
    """Have an order carried out by a process of its own.

    Raises:
        ZtdeployError: what kept it from being carried out, or the process from living.
    """
    with Worker(order.variant or "the blocks", module_command("ztdeploy.target.measure.details_worker")) as worker:
        if order.variant is None:
            return worker.carry_out(order, Staircase)
        return worker.carry_out(order, OperatorProfile)
