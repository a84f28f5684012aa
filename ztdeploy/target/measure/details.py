"""Where the time goes: operator profiles and token staircases of what a sweep has measured, a process for each."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import BundleError, ZtdeployError
from ztdeploy.core.folders import scratch_file
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.processes import module_command, module_environment
from ztdeploy.core.records import from_json, to_json
from ztdeploy.target.backends import get_backend
from ztdeploy.target.measure.bench import Step
from ztdeploy.target.measure.bench_report import Failure
from ztdeploy.target.measure.details_worker import DetailsAnswer, DetailsOrder
from ztdeploy.target.measure.latency import refused, stopped
from ztdeploy.target.measure.sweep_report import SweepReport

#: About what one item may take, beyond starting its process.
PROFILE_S, STAIRCASE_S = 2.0, 8.0


@dataclass(frozen=True)
class Item:
    """One thing to measure."""

    image_size: ImageSize
    batch: int
    threads: int
    variant: str | None  #: None: the staircase of the setting
    order: DetailsOrder

    @property
    def label(self) -> str:
        what = "the token staircase" if self.variant is None else f"the operators of {self.variant}"
        plural = "s" if self.threads > 1 else ""
        return f"{what} at {self.image_size} px, batch {self.batch}, {self.threads} thread{plural}"

    def is_in(self, report: SweepReport) -> bool:
        setting = (self.image_size, self.batch, self.threads)
        if self.variant is None:
            return any((one.image_size, one.batch, one.threads) == setting for one in report.staircases)
        key = (*setting, self.variant)
        return any((one.image_size, one.batch, one.threads, one.variant) == key for one in report.profiles)


def with_details_of(report: SweepReport, earlier: SweepReport | None) -> SweepReport:
    """The report with what an earlier one, of the same engines on the same machine, knows of where the time goes."""
    if earlier is None:
        return report
    return report.model_copy(update={"profiles": earlier.profiles, "staircases": earlier.staircases})


def measure_details(
    report: SweepReport,
    bundles: Sequence[Bundle],
    *,
    progress: Step,
    save: Callable[[SweepReport], None],
) -> SweepReport:
    """Add what is not in the report yet; what was measured before stays whatever happens here.

    What cannot be looked into at all is a note in the report; what should have been and was not is a failure. On Ctrl-C
    the report holds what there is, and says "interrupted".

    Args:
        report: complete, as far as latency goes.
        save: called with the report so far after each item.
    """
    items, notes = plan_details(report, bundles)
    report = report.model_copy(update={"notes": notes})
    missing = [item for item in items if not item.is_in(report)]
    try:
        for done, item in enumerate(missing):
            progress(f"looking into {item.label}", done, len(missing))
            report = _add(report, item)
            save(report.model_copy(update={"progress": "running"}))
    except KeyboardInterrupt:
        return report.model_copy(update={"progress": "interrupted"})
    return report


def _add(report: SweepReport, item: Item) -> SweepReport:
    try:
        answer = ask(item.order)
    except ZtdeployError as error:
        failure = Failure(message=f"{item.label}: {error}", exit_code=error.exit_code)
        return report.model_copy(update={"failures": (*report.failures, failure)})
    if answer.profile is not None:
        return report.model_copy(update={"profiles": (*report.profiles, answer.profile)})
    assert answer.staircase is not None
    return report.model_copy(update={"staircases": (*report.staircases, answer.staircase)})


def plan_details(report: SweepReport, bundles: Sequence[Bundle]) -> tuple[list[Item], tuple[str, ...]]:
    """A profile of every variant at the first batch and number of threads of each image size, where one run per variant
    says enough; a staircase at all of them, since its shape depends on both. And what cannot be had, in words.
    """
    items, notes = list[Item](), list[str]()
    for bundle in bundles:
        size = bundle.manifest.preprocess.image_size
        runs = [run for run in report.runs if run.bundle.image_size == size]
        if not runs:
            continue
        profile = runs[0].bundle.profile
        found = [one for run in runs for one in run.measured]
        settings = list(dict.fromkeys((one.batch, one.threads) for one in found if one.threads is not None))
        backend = bundle.manifest.profiles[profile].backend
        if get_backend(backend).insight is None:
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
            items += [_item(bundle, profile, variant, batch, threads) for variant in variants]
    return items, tuple(notes)


def _item(bundle: Bundle, profile: str, variant: str | None, batch: int, threads: int) -> Item:
    order = DetailsOrder(
        bundle=bundle.root,
        profile=profile,
        variant=variant,
        batch=batch,
        threads=threads,
        seconds=STAIRCASE_S if variant is None else PROFILE_S,
    )
    return Item(bundle.manifest.preprocess.image_size, batch, threads, variant, order)


def ask(order: DetailsOrder) -> DetailsAnswer:
    """Have an order carried out by a process of its own.

    Raises:
        ZtdeployError: what kept it from being carried out, or the process from living.
    """
    name = order.variant or "the blocks"
    with scratch_file() as words:
        child = subprocess.Popen(
            module_command("ztdeploy.target.measure.details_worker", to_json(order)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            env=module_environment(),
        )
        try:
            text, _ = child.communicate()
        except BaseException:
            child.kill()
            child.wait()
            raise
        if child.returncode != 0:
            raise stopped(name, child.returncode, words)
    try:
        answer = from_json(DetailsAnswer, text)
    except ValidationError as error:
        raise BundleError(f"an answer about '{name}' that is none", "figures", "report this as a bug") from error
    if answer.refusal is not None:
        raise refused(name, answer.refusal)
    return answer
