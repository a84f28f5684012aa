"""Building engines on the machine that will run them, with nothing but its runtime and the bundle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ztdeploy.core.bundle import WEIGHTS_FILE, Bundle, file_records, new_manifest, read_bundle
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, ParityError, ZtdeployError
from ztdeploy.core.faults import StepError, step_of, without
from ztdeploy.core.files import copy_file, move, own_folder, remove
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.locks import only_writer
from ztdeploy.core.manifest import Candidate, EngineRecord, FailedProfile, Manifest, VariantRecord, plugin_kind
from ztdeploy.core.progress import Progress
from ztdeploy.target.backends import get_backend, why_not_build, why_not_run
from ztdeploy.target.backends.base import Plugins
from ztdeploy.target.backends.int8 import int8_note
from ztdeploy.target.measure.alternating import medians, take_turns
from ztdeploy.target.measure.statistics import median_ratio
from ztdeploy.target.runtime.parity import check_golden, golden_pixels
from ztdeploy.target.runtime.runner import BundleRunner, load

GRAPHS = "graphs"
_FIX = "copy the bundle with 'cp -rL', and finalize the copy"
ROUNDS, ITERATIONS = 9, 20


class FinalizeReport(BaseModel):
    """What was built, and what was not."""

    model_config = ConfigDict(frozen=True)

    rebuilt: tuple[str, ...]  #: engines, as "variant (profile)"
    chosen: dict[str, EngineRecord]  #: the same, with what each was chosen from
    notes: tuple[str, ...]  #: profiles left out, plugins not used, and why
    failed: tuple[FailedProfile, ...] = ()  #: whose engines are the old ones


@dataclass(frozen=True, eq=False)
class Job:
    """One engine to make."""

    variant: VariantRecord
    profile: str

    @property
    def label(self) -> str:
        return f"{self.variant.name} ({self.profile})"


def finalize_bundle(root: Path, progress: Progress, *, profile: str | None = None) -> FinalizeReport:
    """Build every engine that this machine can build from the bundle's graphs, prove it, and put it in place.

    Where a graph has a twin with plugin nodes, both are built and proved, and the faster one is kept. The old engines
    stay until all new ones of their profile are proved; a profile that fails does not take the others with it. Of two
    that finalize one bundle at once, the second waits.

    Args:
        profile: build for this one only; by default for all that this machine can build for.

    Raises:
        BundleError: damaged, or without anything to build.
        EnvironmentLacksError: this machine cannot build for the profile, or for any of them.
        OutputError: the bundle cannot be written.
        ParityError: new engines of no profile reproduce the golden outputs; the bundle is left as it was.
    """
    read_bundle(root)  # says it if this is no bundle
    with only_writer(root, lambda: progress("waiting for another process that writes to this bundle", 0, 1)):
        return _finalize(read_bundle(root), progress, profile)


def _finalize(bundle: Bundle, progress: Progress, profile: str | None) -> FinalizeReport:
    jobs, notes = jobs_of(bundle, profile)
    bundle.verify_files(files_needed(bundle, jobs))
    own_folder(bundle.root / GRAPHS, _FIX)  # its files may be links, which are replaced
    with scratch_folder(bundle.root / GRAPHS, _FIX) as scratch:
        workshop = Workshop(bundle, scratch, notes)
        engines, failed = _made(workshop, jobs, progress)
        put_in_place(bundle, engines, scratch)
    chosen = {job.label: engine for job, engine in engines.items()}
    return FinalizeReport(
        rebuilt=tuple(chosen), chosen=chosen, notes=tuple(dict.fromkeys(workshop.notes)), failed=failed
    )


def _made(
    workshop: Workshop, jobs: list[Job], progress: Progress
) -> tuple[dict[Job, EngineRecord], tuple[FailedProfile, ...]]:
    """The engines of profiles for which all could be made, and the other profiles, whose old engines stay.

    Raises:
        ZtdeployError: there are only others; the first one's.
    """
    engines, failed = dict[Job, EngineRecord](), dict[str, ZtdeployError]()
    for done, job in enumerate(jobs):
        if job.profile in failed:
            continue
        try:
            with step_of(job.profile):
                engines[job] = workshop.make(job, partial(_tell, progress, done, len(jobs)))
        except StepError as fault:
            without(fault, failed, (one.profile for one in jobs))
    whole = {job: engine for job, engine in engines.items() if job.profile not in failed}
    return whole, tuple(FailedProfile.of(name, error) for name, error in failed.items())


def _tell(progress: Progress, done: int, total: int, what: str) -> None:
    progress(what, done, total)


def jobs_of(bundle: Bundle, profile: str | None) -> tuple[list[Job], list[str]]:
    """What to build here, and what not and why."""
    names = list(bundle.manifest.profiles) if profile is None else [bundle.profile_name(profile)]
    profiles = bundle.manifest.profiles
    reasons = {name: why_not_build(profiles[name]) or why_not_run(profiles[name]) for name in names}
    possible = [name for name, reason in reasons.items() if reason is None]
    notes = [f"profile '{name}': not built here: {reason}" for name, reason in reasons.items() if reason is not None]
    notes += filter(None, (int8_note(profiles[name]) for name in possible))
    if not possible:
        raise EnvironmentLacksError(
            f"this machine can build none of the engines of {bundle.root} ({'; '.join(notes)})",
            "a machine that one of its profiles describes",
            "run it there, or build with --profile cpu as well",
        )
    return [Job(variant, name) for name in possible for variant in bundle.manifest.variants], notes


def files_needed(bundle: Bundle, jobs: list[Job]) -> list[str]:
    """Everything but the engines that are about to be replaced; damage is never blessed."""
    old = [job.variant.engines[job.profile] for job in jobs if job.profile in job.variant.engines]
    replaced = {file for engine in old for file in engine.files}
    graphs = [job.variant.graphs[job.profile] for job in jobs]
    needed = {WEIGHTS_FILE, *(file for graph in graphs for file in graph.files)}
    return sorted(set(bundle.manifest.files) - replaced | needed)


class Workshop:
    """Builds, proves and compares engines in the scratch folder."""

    def __init__(self, bundle: Bundle, scratch: Path, notes: list[str]) -> None:
        self.bundle, self.scratch, self.notes = bundle, scratch, notes
        self._compiled: dict[str, Plugins | None] = {}

    def make(self, job: Job, progress: Callable[[str], None]) -> EngineRecord:
        """The better of a job's engines, in the scratch folder under its final name; all others are gone."""
        plugins = self._plugins(job)
        candidates = [self._build(job, None, progress)]
        if plugins is not None:
            candidates += self._build_with_plugins(job, plugins, progress)
        if len(candidates) == 1:
            return self._keep(job, candidates[0], candidates, ())
        progress(f"measuring {job.label}")
        try:
            milliseconds, chosen = self._measure(job, candidates)
        except EnvironmentLacksError as error:  # both engines at once take more memory than either
            self.notes.append(f"{job.label}: not measured, the plain engine is kept: {error.given}")
            return self._keep(job, candidates[0], candidates, ())
        figures = tuple(
            Candidate(plugins=plugin_kind(engine.fingerprint.plugins), median_ms=one)
            for engine, one in zip(candidates, milliseconds, strict=True)
        )
        return self._keep(job, candidates[chosen], candidates, figures)

    def _plugins(self, job: Job) -> Plugins | None:
        """The compiled plugins, if the graph has plugin nodes and this machine can compile any."""
        graph = job.variant.graphs[job.profile]
        if graph.plain_for:
            known = f"the plugins do not know its option {', '.join(graph.plain_for)}"
            self.notes.append(f"{job.label}: plain operators only: {known}")
        if graph.plugin_file is None:
            return None
        if job.profile not in self._compiled:
            self._compiled[job.profile] = self._compile(job.profile)
        return self._compiled[job.profile]

    def _compile(self, profile: str) -> Plugins | None:
        """The plugin library; where it cannot be had, ahead-of-time plugins, which need less."""
        backend = get_backend(self.bundle.manifest.profiles[profile].backend)
        reasons = []
        for compile_plugins in (backend.plugin_library, backend.ahead_of_time_plugins):
            try:
                return compile_plugins()
            except EnvironmentLacksError as error:
                reasons.append(f"{error.given} ({error.fix})")
        self.notes.append(f"profile '{profile}': built without plugins: {'; '.join(reasons)}")
        return None

    def _build_with_plugins(self, job: Job, plugins: Plugins, progress: Callable[[str], None]) -> list[EngineRecord]:
        """Nothing where it fails: plugins are an optimisation, and the plain engine is there. The note says why."""
        try:
            return [self._build(job, plugins, progress)]
        except (BundleError, EnvironmentLacksError, ParityError) as error:
            self.notes.append(f"{job.label}: the engine with plugins is left out: {error.given}")
            return []

    def _build(self, job: Job, plugins: Plugins | None, progress: Callable[[str], None]) -> EngineRecord:
        """Build one engine and hold it against the golden outputs."""
        kind = "" if plugins is None else " with plugins"
        graph, profile = job.variant.graphs[job.profile], self.bundle.manifest.profiles[job.profile]
        source = graph.source(None if plugins is None else plugins.identity)
        assert source is not None
        backend = get_backend(profile.backend)
        out = self.scratch / f"{job.variant.name}.{job.profile}{kind.replace(' ', '-')}{backend.suffix}"
        progress(f"building {job.label}{kind}")
        cache = self._timing_cache(job.profile)
        built = backend.build(self.bundle.path(source), graph, profile, out, plugins=plugins, timing_cache=cache)
        engine = EngineRecord(
            profile=job.profile,
            backend=profile.backend,
            file=self._within(out),
            weights=None if built.weights is None else self._within(built.weights),
            fingerprint=built.fingerprint,
        )
        progress(f"proving {job.label}{kind}")
        candidate = self._candidate(job, engine)
        with self._load(candidate, job) as runner:
            parity = check_golden(candidate, runner, job.variant)
        return engine.model_copy(update={"parity": parity})

    def _timing_cache(self, profile: str) -> Path | None:
        """What the bundle knows from earlier builds, copied to where this build may add to it."""
        if get_backend(self.bundle.manifest.profiles[profile].backend).built_where != "device":
            return None
        path = self.scratch / f"timing.{profile}.cache"
        known = self.bundle.manifest.timing_caches.get(profile)
        if known is not None and not path.exists():
            copy_file(self.bundle.path(known), path)
        return path

    def _candidate(self, job: Job, engine: EngineRecord) -> Bundle:
        """The bundle as it would be with this engine, in memory."""
        files = {**self.bundle.manifest.files, **file_records(self.bundle.root, engine.files)}
        manifest = self.bundle.manifest.model_copy(update={"files": files})
        return Bundle(self.bundle.root, with_engines(manifest, {job: engine}))

    def _load(self, candidate: Bundle, job: Job) -> BundleRunner:
        return load(candidate, variant=job.variant.name, profile=job.profile, verify=False)

    def _measure(self, job: Job, candidates: list[EngineRecord]) -> tuple[list[float], int]:
        """Median milliseconds of each, and which to keep: plugins only where they are faster."""
        batch = self.bundle.manifest.profiles[job.profile].batch.sizes[0]
        pixels = golden_pixels(self.bundle)[:1].repeat(batch, axis=0)
        with ExitStack() as stack:
            runners = [stack.enter_context(self._load(self._candidate(job, one), job)) for one in candidates]
            calls = [lambda runner=runner: runner.infer(pixels) for runner in runners]
            rounds = take_turns(calls, rounds=ROUNDS, iterations=ITERATIONS)
        plain, plugins = rounds
        return medians(rounds), int(median_ratio(plain, plugins) > 1)

    def _keep(
        self, job: Job, chosen: EngineRecord, all_built: list[EngineRecord], figures: tuple[Candidate, ...]
    ) -> EngineRecord:
        for engine in all_built:
            if engine is not chosen:
                remove(self.bundle.root / engine.file)
        suffix = get_backend(chosen.backend).suffix
        final = self.scratch / f"{job.variant.name}.{job.profile}{suffix}"
        move(self.bundle.root / chosen.file, final)
        return chosen.model_copy(update={"file": self._within(final), "candidates": figures})

    def _within(self, path: Path) -> str:
        return path.relative_to(self.bundle.root).as_posix()


def with_engines(manifest: Manifest, engines: dict[Job, EngineRecord]) -> Manifest:
    variants = tuple(
        variant.model_copy(
            update={
                "engines": {
                    **variant.engines,
                    **{job.profile: engine for job, engine in engines.items() if job.variant.name == variant.name},
                }
            }
        )
        for variant in manifest.variants
    )
    return manifest.model_copy(update={"variants": variants})


def put_in_place(bundle: Bundle, engines: dict[Job, EngineRecord], scratch: Path) -> None:
    """Move what was made beside the graphs, and let the manifest name it; other hashes stay as they were."""
    finished = {job.profile for job in engines}
    caches = {name: f"timing.{name}.cache" for name in finished if (scratch / f"timing.{name}.cache").exists()}
    made = [*(Path(file).name for engine in engines.values() for file in engine.files), *caches.values()]
    fresh = {f"graphs/{name}": record for name, record in file_records(scratch, made).items()}  # not what failed
    moved = {
        job: engine.model_copy(update={"file": _beside_graphs(engine.file), "weights": _beside_graphs(engine.weights)})
        for job, engine in engines.items()
    }
    manifest = with_engines(bundle.manifest, moved)
    missing = [line for line in manifest.missing if not any(line.startswith(f"profile '{name}':") for name in finished)]
    changes = {
        "files": {**manifest.files, **fresh},
        "missing": tuple(missing),
        "timing_caches": {**manifest.timing_caches, **{name: f"graphs/{file}" for name, file in caches.items()}},
    }
    with new_manifest(bundle.root, manifest.model_copy(update=changes)):  # what needs space comes first
        for name in made:
            move(scratch / name, bundle.root / GRAPHS / name)


def _beside_graphs(path: str | None) -> str | None:
    return path and f"{GRAPHS}/{Path(path).name}"
