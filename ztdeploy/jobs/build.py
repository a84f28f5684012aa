"""The main job on one screen: a model and profiles in, a verified bundle out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ztdeploy.core.bundle import Bundle, check_output, new_bundle_folder, read_bundle, write_manifest
from ztdeploy.core.errors import ScheduleError, StepError, ZtdeployError, step_of, without
from ztdeploy.core.files import remove, remove_folder
from ztdeploy.core.keep_ratio import check_keep_ratio, default_schedule
from ztdeploy.core.manifest import AdaptedProfile, CalibrationRecord, FailedProfile, Manifest, RangeRecord
from ztdeploy.core.methods import DEFAULT_METHOD
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.profile import HardwareProfile, read_profile
from ztdeploy.core.progress import Progress, silent
from ztdeploy.core.schedule import PruningSchedule, read_schedule
from ztdeploy.target.backends import backend_of, why_not_build
from ztdeploy.target.backends.int8 import exact_here
from ztdeploy.target.finalize import finalize_bundle

if TYPE_CHECKING:
    from ztdeploy.host.models.loading import LoadedModel
    from ztdeploy.host.range_images import CalibrationImages
    from ztdeploy.host.traces import Trace
    from ztdeploy.jobs.gate import Gate, Judge
    from ztdeploy.target.evaluate.data import EvalData


@dataclass(frozen=True)
class BuildRequest:
    """What a user asks for."""

    model: ModelSource
    profiles: tuple[str, ...]
    out: Path
    keep_ratios: tuple[float, ...] = ()  #: empty: the profiles' own, unless schedules are given
    schedules: tuple[Path, ...] = ()
    methods: tuple[str, ...] = (DEFAULT_METHOD,)  #: each at every keep ratio
    preset: str = "default"
    batch: int | None = None  #: fixes the batch of every graph
    force: bool = False
    gate: Gate | None = None  #: ships only variants that cost little on calibration images
    cache: Path | None = None  #: folder of traces to take from and add to; None: everything is traced

    @property
    def profiles_decide(self) -> bool:
        """Whether what is built is left to the profiles: where they name schedules, these."""
        unasked = not self.keep_ratios and not self.schedules
        return unasked and self.methods == (DEFAULT_METHOD,) and self.preset == "default"


def build(request: BuildRequest, progress: Progress = silent, judge: Judge | None = None) -> Bundle:
    """Trace, prune, export, build engines, prove parity, and write one bundle.

    A profile that fails does not take the others with it: the bundle is that of the others, and names it (`failed`).

    Args:
        judge: what is done with the finished folder where there is a gate; by default `gate.apply_gate`.

    Raises:
        ZtdeployError: see `ztdeploy.core.errors`; nothing is left behind at `request.out`. Where every profile failed,
            the first one's error.
    """
    asked = [read_profile(name) for name in dict.fromkeys(request.profiles)]
    profiles = [exact_here(profile) for profile in asked]
    check_output(request.out, force=request.force)
    failed = check_backends(profiles)
    for keep_ratio in request.keep_ratios:  # before PyTorch is imported, which takes seconds
        check_keep_ratio(keep_ratio)
    from ztdeploy.host.models.loading import load_model

    progress(f"loading {request.model.name}", 0, 1)
    model = load_model(request.model)
    left = _left(profiles, failed)
    schedules_of(request, left, model)  # wrong ones are known before anything is looked at
    from ztdeploy.jobs.gate import check_gate

    evidence = None
    if request.gate is not None:
        classes = model.adapter.architecture.num_classes
        channels = model.preprocess.channels
        given = model.output, model.activation
        data = check_gate(request.gate, left, model.class_names, classes, *given, channels=channels)
        progress("looking at calibration images", 0, 1)
        evidence, unfit = _look_at(data, model, schedules_of(request, left, model), left)
        failed |= unfit
    work = _Work(request, model, evidence, adapted_records(asked, profiles), progress, judge, len(left) > 1)
    with new_bundle_folder(request.out, force=request.force) as folder:
        while True:
            try:
                work.attempt(folder, _left(profiles, failed), failed)
                break
            except StepError as fault:
                without(fault, failed, [profile.name for profile in profiles])
                progress(f"building again without {', '.join(fault.profiles)}", 0, 1)
                _empty(folder)
    return read_bundle(request.out)


@dataclass
class _Work:
    """What every attempt at a bundle needs."""

    request: BuildRequest
    model: LoadedModel
    evidence: _Evidence | None
    adapted: dict[str, AdaptedProfile]
    progress: Progress
    judge: Judge | None
    again: bool  #: whether there may be a second attempt, without a profile that failed
    held: dict[str, Trace] = field(default_factory=dict)  #: what no attempt traces again

    def attempt(self, folder: Path, profiles: list[HardwareProfile], failed: Mapping[str, ZtdeployError]) -> None:
        """A bundle for these profiles.

        Raises:
            StepError: one of them fails; the folder then is of no use.
        """
        from ztdeploy.host.traces import TraceStore
        from ztdeploy.jobs.assembly import Assembly, documented
        from ztdeploy.jobs.gate import apply_gate

        request, progress, evidence = self.request, self.progress, self.evidence
        schedules = schedules_of(request, profiles, self.model)
        work = Assembly(
            folder,
            self.model,
            profiles,
            schedules,
            batch=request.batch,
            cache=None if request.cache is None else TraceStore(request.cache),
            held=self.held if self.again else None,
            calibration=None if evidence is None else evidence.images,
        )
        total, done = len(schedules) * (1 + len(work.buildable) + len(profiles)) + 1, 0
        for schedule in schedules:
            progress(f"exporting {schedule.name}", done, total)
            work.export(schedule)
            done += 1
        progress("writing weights", done, total)
        work.write_graphs()
        for profile in work.buildable:
            for schedule in schedules:
                progress(f"building {schedule.name} for {profile.name}", done + 1, total)
                with step_of(profile.name):
                    work.build_engine(schedule, profile)
                done += 1
        adapted = [record for name, record in self.adapted.items() if name in {profile.name for profile in profiles}]
        records = [FailedProfile.of(name, error) for name, error in failed.items()]
        draft = work.draft_manifest(records, adapted)
        for profile in profiles:
            for schedule in schedules:
                progress(f"proving {schedule.name} for {profile.name}", done + 1, total)
                with step_of(profile.name):
                    draft = work.proof.added_to(draft, schedule, profile)
                done += 1
        write_manifest(folder, documented(folder, draft if evidence is None else evidence.added_to(draft)))
        for profile in profiles:  # where the build runs on the device itself
            if profile not in work.buildable and why_not_build(profile) is None:
                with step_of(profile.name):
                    finalize_bundle(folder, progress, profile=profile.name)
        if request.gate is not None and self.model.activation != "none":
            (self.judge or apply_gate)(folder, request.gate, progress)


def _left(profiles: list[HardwareProfile], failed: Mapping[str, ZtdeployError]) -> list[HardwareProfile]:
    return [profile for profile in profiles if profile.name not in failed]


def adapted_records(asked: list[HardwareProfile], built: list[HardwareProfile]) -> dict[str, AdaptedProfile]:
    """What a manifest says of profiles whose weights have fewer bits than asked for, by profile."""
    change = "weights of 7 bits instead of 8"
    reason = "the processor here has no 8-bit dot products, and its kernels lose sums of products with 8 bits"
    pairs = zip(asked, built, strict=True)
    names = [profile.name for profile, other in pairs if profile != other]
    return {name: AdaptedProfile(profile=name, change=change, reason=reason) for name in names}


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        remove_folder(path) if path.is_dir() else remove(path)


@dataclass(frozen=True)
class _Evidence:
    """What calibration images say before anything is built."""

    calibration: CalibrationRecord
    ranges: dict[str, RangeRecord]  #: by variant
    images: CalibrationImages  #: for the ranges of int8 activations

    def added_to(self, manifest: Manifest) -> Manifest:
        variants = tuple(
            variant.model_copy(update={"fp16_range": self.ranges.get(variant.name)}) for variant in manifest.variants
        )
        return manifest.model_copy(update={"calibration": self.calibration, "variants": variants})


def _look_at(
    data: EvalData, model: LoadedModel, schedules: list[PruningSchedule], profiles: list[HardwareProfile]
) -> tuple[_Evidence, dict[str, ZtdeployError]]:
    """
    Returns:
        What was found, and by profile why some cannot be built: values that fp16 cannot hold.

    Raises:
        ImageError: nothing can be judged on these images.
        ModelError: no other profiles are left.
    """
    from ztdeploy.host.calibration import look_at
    from ztdeploy.host.overflow import check_range, probe
    from ztdeploy.host.range_images import chosen_images

    seen, ranges = look_at(data, model.preprocess), dict[str, RangeRecord]()
    if any(profile.precision == "fp16" for profile in profiles):
        ranges = probe(model, schedules, seen.pixels, data.name)
    unfit = _failing(profiles, lambda profile: check_range(ranges, [profile]))
    return _Evidence(seen.record, ranges, chosen_images(seen.paths, data.name)), unfit


def check_backends(profiles: list[HardwareProfile]) -> dict[str, ZtdeployError]:
    """Find out before anything is traced where engines could not be built in the end.

    Returns:
        By profile: a runtime is not installed, or this machine lacks something else.

    Raises:
        ProfileError: a profile asks for what its runtime can do on no machine.
        ZtdeployError: this machine lacks what each of them needs; the first one's.
    """

    def check(profile: HardwareProfile) -> None:
        backend = backend_of(profile)
        if backend.built_where == "anywhere":
            backend.check_can_build(profile)
        else:
            backend.check_profile(profile)

    return _failing(profiles, check)


def _failing(profiles: list[HardwareProfile], check: Callable[[HardwareProfile], None]) -> dict[str, ZtdeployError]:
    """The errors of those that do not pass.

    Raises:
        ZtdeployError: none passes; the first one's.
    """
    failed = dict[str, ZtdeployError]()
    for profile in profiles:
        try:
            with step_of(profile.name):
                check(profile)
        except StepError as fault:
            without(fault, failed, [one.name for one in profiles])
    return failed


def schedules_of(request: BuildRequest, profiles: list[HardwareProfile], model: LoadedModel) -> list[PruningSchedule]:
    """The variants to build, the requested ones first; the dense model is always among them, as the reference.

    Raises:
        ScheduleError: a bad keep ratio, an unknown method, two variants of one name, or a block that isn't there.
    """
    from ztdeploy.core.plan import plan

    architecture = model.adapter.architecture
    schedules = [read_schedule(path) for path in request.schedules]
    ratios: tuple[float, ...] = request.keep_ratios
    if request.profiles_decide:
        own = [schedule for profile in profiles for schedule in profile.schedules]
        schedules = [one for place, one in enumerate(own) if one not in own[:place]]
        ratios = tuple(r for profile in profiles if not profile.schedules for r in profile.keep_ratios)
    elif not schedules or request.keep_ratios:
        ratios = request.keep_ratios or tuple(r for profile in profiles for r in profile.keep_ratios)
    uniform = [
        default_schedule(r, architecture, method=method, preset=request.preset)
        for method in dict.fromkeys(request.methods)
        for r in dict.fromkeys(ratios)
    ]
    schedules += {schedule.name: schedule for schedule in uniform}.values()  # the dense one is the same for all methods
    if all(plan(schedule, architecture).layers for schedule in schedules):
        schedules.append(default_schedule(1.0, architecture))
    names = [schedule.name for schedule in schedules]
    for schedule in schedules:
        plan(schedule, architecture)
        if names.count(schedule.name) > 1:
            raise ScheduleError(
                f"two variants named '{schedule.name}'", "unique names", "set 'name' in the schedule files"
            )
    return schedules
