"""The main job on one screen: a model and profiles in, a verified bundle out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from ztdeploy.core.bundle import Bundle, new_bundle_folder, read_bundle, write_manifest
from ztdeploy.core.errors import ScheduleError, StepError, ZtdeployError, failing, step_of, without
from ztdeploy.core.files import make_folder, remove, remove_folder
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.manifest import AdaptedProfile, EngineRecord, FailedProfile
from ztdeploy.core.methods import method_named
from ztdeploy.core.plan import Variant
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.progress import Progress, parts, silent
from ztdeploy.core.schedule import Architecture
from ztdeploy.core.signature import check_nothing_demanded
from ztdeploy.jobs.request import BuildRequest as BuildRequest
from ztdeploy.jobs.request import Judge
from ztdeploy.target.adaptive.calibrate import check_enough
from ztdeploy.target.backends import backend_of, why_not_build
from ztdeploy.target.backends.int8 import exact_here
from ztdeploy.target.finalize import finalize_bundle

if TYPE_CHECKING:
    from ztdeploy.host.models.loading import LoadedModel
    from ztdeploy.host.traces import TraceStore
    from ztdeploy.host.tracing import TraceMemory
    from ztdeploy.jobs.calibration import Evidence


#: About how long each step takes as compared with the others; the last two are of a build with calibration images.
SHARES = {"load": 8.0, "export": 5.0, "write": 1.0, "build": 1.0, "prove": 0.5, "look": 5.0, "judge": 10.0}


def build(request: BuildRequest, progress: Progress = silent, judge: Judge | None = None) -> Bundle:
    """Trace, prune, export, build engines, prove parity, and write one bundle.

    A profile that fails does not keep the others from being built: the bundle is made without it, and says so
    (`failed` in its manifest).

    Args:
        judge: what is done with the finished folder where there is a gate; by default `gate.apply_gate`.

    Raises:
        ZtdeployError: see `ztdeploy.core.errors`; nothing is left behind at `request.out`. Where every profile failed,
            this is the error of the first.
    """
    check_nothing_demanded()
    asked = request.read_profiles()
    profiles = [exact_here(profile) for profile in asked]
    request.check()
    failed = check_backends(profiles)
    from ztdeploy.host.models.loading import load_model

    stages = _stages(request, len(profiles), progress)
    stages["load"](f"loading {request.model.name}", 0, 1)
    model, evidence = load_model(request.model, request.module, request.backbone), None
    left = _left(profiles, failed)
    variants = variants_of(request, left, model.adapter.architecture)
    if request.gate is not None:
        from ztdeploy.jobs.calibration import check_gate, look_at_images

        images = check_gate(request.gate, left, model)
        if request.cascade is not None:
            check_enough(len(images.images), request.cascade)
        stages["look"]("looking at calibration images", 0, 1)
        evidence, unfit = look_at_images(images, model, variants, left)
        failed |= unfit
    store = trace_store(request.cache, again=len(left) > 1)
    job = _Job(request, model, evidence, _adapted(asked, profiles), store, stages, judge)
    with new_bundle_folder(request.out, force=request.force) as folder:
        while True:
            try:
                job.attempt(folder, _left(profiles, failed), failed)
                break
            except StepError as fault:
                without(fault, failed, [profile.name for profile in profiles])
                stages["make"](f"building again without {', '.join(fault.profiles)}", 0, 1)
                for path in folder.iterdir():
                    remove_folder(path) if path.is_dir() else remove(path)
    return read_bundle(request.out)


def _stages(request: BuildRequest, profiles: int, progress: Progress) -> dict[str, Progress]:
    """The progress of each stage; how many variants there are is known for sure once the model is loaded."""
    variants = 1 + max(1, len(request.keep_ratios) * len(request.methods) + len(request.schedules))
    making = variants * (SHARES["export"] + profiles * (SHARES["build"] + SHARES["prove"])) + SHARES["write"]
    look, judge = (SHARES["look"], SHARES["judge"]) if request.gate else (0.0, 1.0)
    return parts(progress, {"load": SHARES["load"], "look": look, "make": making, "judge": judge})


@dataclass(frozen=True)
class _Job:
    """What every attempt at a bundle needs."""

    request: BuildRequest
    model: LoadedModel
    evidence: Evidence | None
    adapted: Mapping[str, AdaptedProfile]  #: by profile
    store: TraceStore | TraceMemory
    stages: Mapping[str, Progress]
    judge: Judge | None

    def attempt(self, folder: Path, profiles: list[HardwareProfile], failed: Mapping[str, ZtdeployError]) -> None:
        """Make a bundle for these profiles.

        Raises:
            StepError: one of them fails; the folder then is of no use.
        """
        from ztdeploy.host.calibration import built_in_images
        from ztdeploy.host.proof import Proof
        from ztdeploy.host.tracing import Tracer
        from ztdeploy.jobs.cascade import calibrate_cascade, cascade_record
        from ztdeploy.jobs.chain import chain_of
        from ztdeploy.jobs.engines import build_engine
        from ztdeploy.jobs.golden import golden_images, write_golden
        from ztdeploy.jobs.graphs import Graphs
        from ztdeploy.jobs.manifest import documented, draft_manifest
        from ztdeploy.target.runtime.preprocess import load_pixels

        model, evidence = self.model, self.evidence
        variants = variants_of(self.request, profiles, model.adapter.architecture)
        here = [profile for profile in profiles if backend_of(profile).built_where == "anywhere"]
        each = SHARES["export"] + len(here) * SHARES["build"] + len(profiles) * SHARES["prove"]
        steps = _Steps(self.stages["make"], len(variants) * each + SHARES["write"])
        make_folder(folder / "graphs")
        images = golden_images(model, folder / "golden")
        pixels = load_pixels(images, model.preprocess)
        calibration = built_in_images(images) if evidence is None else evidence.images
        chain = chain_of(variants, model) if self.request.cascade else None
        graphs = Graphs(folder, Tracer(model, pixels, self.store), profiles, calibration, self.request.batch, chain)
        for variant in variants:
            with steps.step("export", f"exporting {variant.schedule.name}"):
                graphs.export(variant)
        with steps.step("write", "writing weights"):
            graphs.write()
        engines = dict[tuple[str, str], EngineRecord]()
        for profile, part in product(here, graphs.parts):
            with steps.step("build", f"building {part.lstrip('_')} for {profile.name}", profile.name):
                engines[part, profile.name] = build_engine(graphs, part, profile)
        golden = write_golden(folder, images, pixels, model.preprocess, variants)
        records = tuple(FailedProfile.of(name, error) for name, error in failed.items())
        adapted = tuple(self.adapted[profile.name] for profile in profiles if profile.name in self.adapted)
        cascade = None if chain is None else cascade_record(graphs, chain, engines)
        draft = draft_manifest(graphs, variants, engines, golden, cascade)
        draft = draft.model_copy(update={"failed": records, "adapted": adapted})
        proof = Proof(folder, model, pixels)
        for profile, variant in product(profiles, variants):
            with steps.step("prove", f"proving {variant.schedule.name} for {profile.name}", profile.name):
                draft = proof.added_to(draft, variant.schedule, profile)
        for profile in profiles if cascade is not None else ():
            with step_of(profile.name):
                draft = proof.of_pieces(draft, profile)
        write_manifest(folder, documented(folder, draft if evidence is None else evidence.added_to(draft)))
        self._finish(folder, [profile for profile in profiles if profile not in here])
        if self.request.cascade is not None:
            calibrate_cascade(folder, self.request, self.stages["judge"])

    def _finish(self, folder: Path, elsewhere: Sequence[HardwareProfile]) -> None:
        """Build the engines of boards if this machine is that board, and hold all engines against the gate.

        Args:
            elsewhere: profiles whose engines only the device itself can build.
        """
        from ztdeploy.jobs.gate import apply_gate

        for profile in elsewhere:
            if why_not_build(profile) is None:
                with step_of(profile.name):
                    finalize_bundle(folder, self.stages["judge"], profile=profile.name)
        if self.request.gate is not None and self.model.activation != "none":
            (self.judge or apply_gate)(folder, self.request.gate, self.stages["judge"])


@dataclass
class _Steps:
    """The steps of an attempt, each of which says what it does."""

    progress: Progress
    total: float
    done: float = 0

    @contextmanager
    def step(self, kind: str, what: str, *profiles: str) -> Iterator[None]:
        """One step, which fails for the given profiles alone; without any, it says itself for which.

        Args:
            kind: of `SHARES`.
        """
        self.progress(what, self.done, self.total)
        with step_of(*profiles) if profiles else nullcontext():
            yield
        self.done += SHARES[kind]


def trace_store(cache: Path | None, *, again: bool) -> TraceStore | TraceMemory:
    """Where traces are kept: in a folder, or in memory where another attempt may want them again."""
    from ztdeploy.host.traces import TraceStore
    from ztdeploy.host.tracing import TraceMemory

    return TraceMemory(keep=again) if cache is None else TraceStore(cache)


def check_backends(profiles: Sequence[HardwareProfile]) -> dict[str, ZtdeployError]:
    """Find out before anything is traced where engines could not be built in the end.

    Returns:
        By profile: a runtime is not installed, or this machine lacks something else.

    Raises:
        ProfileError: a profile asks for what its runtime can do on no machine.
        ZtdeployError: this machine lacks something for each of them; the error of the first.
    """

    def check(profile: HardwareProfile) -> None:
        backend = backend_of(profile)
        (backend.check_can_build if backend.built_where == "anywhere" else backend.check_profile)(profile)

    return failing(profiles, check)


def variants_of(
    request: BuildRequest, profiles: Sequence[HardwareProfile], architecture: Architecture
) -> list[Variant]:
    """The variants to build, the requested ones first; the baseline is always among them.

    Raises:
        ScheduleError: a bad keep ratio, an unknown method, two variants of one name, or a block that does not exist.
    """
    schedules, ratios = list(request.schedules), request.keep_ratios
    if request.profiles_decide:
        schedules = list(dict.fromkeys(schedule for profile in profiles for schedule in profile.schedules))
        ratios = tuple(r for profile in profiles if not profile.schedules for r in profile.keep_ratios)
    elif not schedules and not ratios:
        ratios = tuple(r for profile in profiles for r in profile.keep_ratios)
    asked = bool(request.keep_ratios)
    uniform = [
        default_schedule(ratio, architecture, method=method, preset=request.preset)
        for method in dict.fromkeys(request.methods)
        for ratio in dict.fromkeys(ratios if asked else _own_ratios(method, ratios))
    ]
    schedules += {schedule.name: schedule for schedule in uniform}.values()  # the baseline is the same for all methods
    variants = [Variant.of(schedule, architecture) for schedule in schedules]
    if all(variant.plan.layers for variant in variants):
        variants.append(Variant.of(default_schedule(1.0, architecture), architecture))
    names = [variant.schedule.name for variant in variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ScheduleError(f"two variants named '{twice}'", "unique names", "set 'name' in the schedule files")
    return variants


def _own_ratios(method: str, ratios: Sequence[float]) -> Sequence[float]:
    """The ratio that a method was trained for, where no other is asked for; else those of the profiles."""
    trained = method_named(method).trained
    return ratios if trained is None or not ratios else (trained.keep_ratio,)


def _left(profiles: Sequence[HardwareProfile], failed: Mapping[str, ZtdeployError]) -> list[HardwareProfile]:
    return [profile for profile in profiles if profile.name not in failed]


def _adapted(asked: Sequence[HardwareProfile], built: Sequence[HardwareProfile]) -> dict[str, AdaptedProfile]:
    """The profiles whose weights have fewer bits than asked for, by name."""
    change = "weights of 7 bits instead of 8"
    reason = "the processor here has no 8-bit dot products, and its kernels lose sums of products with 8 bits"
    names = [profile.name for profile, other in zip(asked, built, strict=True) if profile != other]
    return {name: AdaptedProfile(profile=name, change=change, reason=reason) for name in names}
