"""The main job on one screen: a model and profiles in, a verified bundle out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ztdeploy.backends import backend_exists, get_backend, why_not_build
from ztdeploy.bundle import Bundle, check_output, new_bundle_folder, read_bundle, write_manifest
from ztdeploy.errors import ScheduleError
from ztdeploy.finalize import finalize_bundle
from ztdeploy.manifest import CalibrationRecord, Manifest, RangeRecord
from ztdeploy.preprocess_spec import Output
from ztdeploy.profile import HardwareProfile, override_keep_ratios, read_profile
from ztdeploy.schedule import (
    DEFAULT_METHOD,
    PruningSchedule,
    check_keep_ratio,
    default_schedule,
    read_schedule,
)

if TYPE_CHECKING:
    from ztdeploy.fidelity.data import EvalData
    from ztdeploy.gate import Gate, Judge
    from ztdeploy.models.loading import LoadedModel
    from ztdeploy.range_images import CalibrationImages

#: Told before each step: what comes, how many steps are done, how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuildRequest:
    """What a user asks for."""

    model: str
    profiles: tuple[str, ...]
    out: Path
    keep_ratios: tuple[float, ...] = ()  #: empty: the profiles' own, unless schedules are given
    schedules: tuple[Path, ...] = ()
    methods: tuple[str, ...] = (DEFAULT_METHOD,)  #: each at every keep ratio
    preset: str = "default"
    weights: Literal["pretrained", "random"] = "pretrained"
    checkpoint: Path | None = None
    image_size: int | None = None
    crop_pct: float | None = None  #: image size over resize; None: as the model was published
    class_names: Path | None = None  #: a file that names the classes of a head of one's own
    output: Output = "logits"
    text_head: Path | None = None  #: a file of text embeddings that make a tower's embedding into logits
    batch: int | None = None  #: fixes the batch of every graph
    force: bool = False
    gate: Gate | None = None  #: ships only variants that cost little on calibration images
    cache: Path | None = None  #: folder of traces to take from and add to; None: everything is traced

    @property
    def profiles_decide(self) -> bool:
        """Whether what is built is left to the profiles: where they name schedules, these."""
        unasked = not self.keep_ratios and not self.schedules
        return unasked and self.methods == (DEFAULT_METHOD,) and self.preset == "default"


def silent(_what: str, _done: int, _total: int) -> None:
    """The progress of a build that nobody watches."""


def build(request: BuildRequest, progress: Progress = silent, judge: Judge | None = None) -> Bundle:
    """Trace, prune, export, build engines, prove parity, and write one bundle.

    Args:
        judge: what is done with the finished folder where there is a gate; by default `gate.apply_gate`.

    Raises:
        ZtdeployError: see `ztdeploy.errors`; nothing is left behind at `request.out`.
    """
    profiles = [read_profile(name) for name in dict.fromkeys(request.profiles)]
    check_output(request.out, force=request.force)
    check_backends(profiles)
    for keep_ratio in request.keep_ratios:  # before PyTorch is imported, which takes seconds
        check_keep_ratio(keep_ratio)
    from ztdeploy.models.loading import load_model

    progress(f"loading {request.model}", 0, 1)
    model = load_model(
        request.model,
        weights=request.weights,
        checkpoint=request.checkpoint,
        image_size=request.image_size,
        crop_pct=request.crop_pct,
        class_names=request.class_names,
        output=request.output,
        text_head=request.text_head,
    )
    schedules = schedules_of(request, profiles, model)
    from ztdeploy.gate import apply_gate, check_gate

    evidence = None
    if request.gate is not None:
        classes = model.adapter.architecture.num_classes
        data = check_gate(request.gate, profiles, model.class_names, classes, model.output)
        progress("looking at calibration images", 0, 1)
        evidence = _look_at(data, model, schedules, profiles)
    from ztdeploy.assembly import Assembly
    from ztdeploy.traces import TraceStore

    cache = None if request.cache is None else TraceStore(request.cache)
    with new_bundle_folder(request.out, force=request.force) as folder:
        images = None if evidence is None else evidence.images
        work = Assembly(folder, model, profiles, schedules, batch=request.batch, cache=cache, calibration=images)
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
                work.build_engine(schedule, profile)
                done += 1
        draft = work.draft_manifest()
        for profile in profiles:
            for schedule in schedules:
                progress(f"proving {schedule.name} for {profile.name}", done + 1, total)
                draft = work.proof.added_to(draft, schedule, profile)
                done += 1
        write_manifest(folder, draft if evidence is None else evidence.added_to(draft))
        for profile in profiles:  # where the build runs on the device itself
            if profile not in work.buildable and why_not_build(profile) is None:
                finalize_bundle(folder, progress, profile=profile.name)
        if request.gate is not None:
            (judge or apply_gate)(folder, request.gate, progress)
    return read_bundle(request.out)


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
) -> _Evidence:
    """
    Raises:
        ImageError: nothing can be judged on these images.
        ModelError: an fp16 profile, and values that fp16 cannot hold.
    """
    from ztdeploy.calibration import look_at
    from ztdeploy.overflow import check_range, probe
    from ztdeploy.range_images import chosen_images

    seen, ranges = look_at(data, model.preprocess), dict[str, RangeRecord]()
    if any(profile.precision == "fp16" for profile in profiles):
        ranges = probe(model, schedules, seen.pixels, data.name)
        check_range(ranges, profiles)
    return _Evidence(seen.record, ranges, chosen_images(seen.paths, data.name))


def check_backends(profiles: list[HardwareProfile]) -> None:
    """Fail before anything is traced where engines could not be built in the end.

    Raises:
        ZtdeployError: a runtime is not installed, or cannot do what a profile asks for.
    """
    for profile in profiles:
        if not backend_exists(profile.backend):
            continue
        backend = get_backend(profile.backend)
        if backend.built_where == "anywhere":
            backend.check_can_build(profile)
        else:
            backend.check_profile(profile)


def schedules_of(request: BuildRequest, profiles: list[HardwareProfile], model: LoadedModel) -> list[PruningSchedule]:
    """The variants to build, the requested ones first; the dense model is always among them, as the reference.

    Raises:
        ScheduleError: a bad keep ratio, an unknown method, two variants of one name, or a block that isn't there.
    """
    from ztdeploy.schedule import plan

    architecture = model.adapter.architecture
    schedules = [read_schedule(path) for path in request.schedules]
    ratios: tuple[float, ...] = request.keep_ratios
    if request.profiles_decide:
        own = [schedule for profile in profiles for schedule in profile.schedules]
        schedules = [one for place, one in enumerate(own) if one not in own[:place]]
        ratios = tuple(r for profile in profiles if not profile.schedules for r in profile.keep_ratios)
    elif not schedules or request.keep_ratios:
        ratios = tuple(r for profile in profiles for r in override_keep_ratios(profile, request.keep_ratios))
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
