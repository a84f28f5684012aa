"""Build engines on the machine that will run them, from the bundle and with its runtime only."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ztdeploy.core.bundle import (
    WEIGHTS_FILE,
    Bundle,
    check_signer,
    file_records,
    is_signed,
    new_manifest,
    read_bundle,
)
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, ParityError, failing
from ztdeploy.core.files import copy_file, make_folder, move, remove
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.locks import only_writer
from ztdeploy.core.manifest import (
    Candidate,
    CascadeStage,
    EngineRecord,
    FailedProfile,
    GraphRecord,
    PartRecord,
    plugin_kind,
)
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.core.progress import Progress
from ztdeploy.core.records import Record
from ztdeploy.core.signature import SecretKey
from ztdeploy.target.adaptive.pieces import chained_stage, engine_opener
from ztdeploy.target.backends import get_backend, why_not_build, why_not_run
from ztdeploy.target.backends.base import Plugins, TakesPlugins
from ztdeploy.target.backends.int8 import int8_note
from ztdeploy.target.bundle_readme import README, with_readme
from ztdeploy.target.measure.statistics import median_ratio, overall_median
from ztdeploy.target.measure.turns import take_turns
from ztdeploy.target.runtime.parity import check_golden, golden_pixels
from ztdeploy.target.runtime.runner import BundleRunner, opening

GRAPHS = "graphs"
_FIX = "copy the bundle with 'cp -rL', and finalize the copy"
ROUNDS, ITERATIONS = 9, 20


class FinalizeReport(Record):
    """The engines that were built, and those that were not."""

    rebuilt: tuple[str, ...]  #: engines, as "variant (profile)"
    chosen: dict[str, EngineRecord]  #: records of these engines, with the candidates that each was chosen from
    notes: tuple[str, ...]  #: profiles that were left out and plugins that were not used, with the reasons
    failed: tuple[FailedProfile, ...] = ()  #: profiles that keep their old engines


@dataclass(frozen=True, eq=False)
class Job:
    """One engine to build."""

    part: PartRecord  #: a variant, or a piece of the cascade
    profile: HardwareProfile

    @property
    def label(self) -> str:
        return f"{self.part.name.lstrip('_')} ({self.profile.name})"

    @property
    def key(self) -> tuple[str, str]:
        return self.part.name, self.profile.name

    @property
    def graph(self) -> GraphRecord:
        return self.part.graphs[self.profile.name]


def finalize_bundle(
    root: Path, progress: Progress, *, profile: str | None = None, signer: SecretKey | None = None
) -> FinalizeReport:
    """Build every engine that this machine can build from the bundle's graphs, prove it, and put it in place.

    Where a graph has a twin with plugin nodes, both are built and proved, and the faster one is kept. The old engines
    stay until all new engines of their profile are proved, and a profile that fails does not stop the others. When two
    processes finalize one bundle at once, the second waits for the first.

    Args:
        profile: build for this profile only; by default for all that this machine can build for.
        signer: signs the changed bundle; without it, a signature goes.

    Raises:
        BundleError: the bundle is damaged, or holds nothing to build.
        EnvironmentLacksError: this machine cannot build for the profile, or for any of them.
        InputError: a signature is demanded, and the signer is none of those who may sign.
        OutputError: the bundle cannot be written.
        ParityError: new engines of no profile reproduce the golden outputs; the bundle is left as it was.
    """
    read_bundle(root)  # refuses a folder that is no bundle before anything is locked
    with only_writer(root, lambda: progress("waiting for another process that writes to this bundle", 0, 1)):
        bundle = read_bundle(root)
        check_signer(bundle, signer)
        jobs, notes = jobs_of(bundle, profile)
        if signer is None and is_signed(bundle.root):
            notes.append(
                "the bundle's signature is gone: its manifest has changed; sign it again: ztdeploy sign BUNDLE"
            )
        bundle.verify_files(files_needed(bundle, jobs))
        make_folder(bundle.root / GRAPHS, _FIX, own=True)  # its files may be links, which are replaced
        with scratch_folder(bundle.root / GRAPHS, _FIX) as scratch:
            workshop, engines = Workshop(bundle, scratch, jobs, notes, progress), dict[Job, EngineRecord]()

            def make_all(profile: HardwareProfile) -> None:
                engines.update({job: workshop.make(job) for job in jobs if job.profile is profile})

            failed = failing({job.profile.name: job.profile for job in jobs}.values(), make_all)
            put_in_place(bundle, engines, scratch, signer)
    chosen = {job.label: engine for job, engine in engines.items()}
    records = tuple(FailedProfile.of(name, error) for name, error in failed.items())
    return FinalizeReport(rebuilt=tuple(chosen), chosen=chosen, notes=tuple(dict.fromkeys(notes)), failed=records)


def jobs_of(bundle: Bundle, profile: str | None) -> tuple[list[Job], list[str]]:
    """The engines to build here, and notes on profiles that are left out."""
    manifest = bundle.manifest
    profiles = [manifest.profiles[name] for name in ([bundle.profile_name(profile)] if profile else manifest.profiles)]
    reasons = {one.name: why_not_build(one) or why_not_run(one) for one in profiles}
    possible = [one for one in profiles if reasons[one.name] is None]
    notes = [f"profile '{name}': not built here: {reason}" for name, reason in reasons.items() if reason is not None]
    notes += filter(None, map(int8_note, possible))
    if not possible:
        raise EnvironmentLacksError(
            f"this machine can build none of the engines of {bundle.root} ({'; '.join(notes)})",
            "a machine that one of its profiles describes",
            "run it there, or build with --profile cpu as well",
        )
    return [Job(part, one) for one in possible for part in manifest.parts], notes  # a prefix before its tails


def files_needed(bundle: Bundle, jobs: list[Job]) -> list[str]:
    """All files but the engines to be replaced. They are checked first: a damaged file must not get a matching hash."""
    engines = [job.part.engines.get(job.profile.name) for job in jobs]
    replaced = {file for engine in engines if engine is not None for file in engine.files}
    needed = {WEIGHTS_FILE, *(file for job in jobs for file in job.graph.files)}
    return sorted(set(bundle.manifest.files) - replaced | needed)


@dataclass
class Workshop:
    """Builds, proves and compares engines in the scratch folder."""

    bundle: Bundle
    scratch: Path
    jobs: list[Job]
    notes: list[str]  #: is added to
    progress: Progress
    _compiled: dict[str, Plugins | None] = field(default_factory=dict)  #: by profile
    _made: dict[tuple[str, str], EngineRecord] = field(default_factory=dict)  #: by part and profile

    def make(self, job: Job) -> EngineRecord:
        """Build a job's engines, and leave the faster one in the scratch folder under its final name."""
        self._made[job.key] = made = self._faster(job)
        return made

    def _faster(self, job: Job) -> EngineRecord:
        plain, plugins = self._build(job, None), self._plugins(job)
        if plugins is None:
            return plain
        try:
            other = self._build(job, plugins)
        except (BundleError, EnvironmentLacksError, ParityError) as error:  # plugins are only an optimisation
            self.notes.append(f"{job.label}: the engine with plugins is left out: {error.given}")
            return plain
        faster, candidates = False, tuple[Candidate, ...]()
        try:
            faster, candidates = self._measure(job, plain, other)
        except EnvironmentLacksError as error:  # both engines at once take more memory than either
            self.notes.append(f"{job.label}: not measured, the plain engine is kept: {error.given}")
        if faster:
            move(self.bundle.root / other.file, self.bundle.root / plain.file)
        else:
            remove(self.bundle.root / other.file)
        return (other if faster else plain).model_copy(update={"file": plain.file, "candidates": candidates})

    def _plugins(self, job: Job) -> Plugins | None:
        """The compiled plugins, if the graph has plugin nodes and this machine can compile them."""
        if job.graph.plain_for:
            known = f"the plugins do not know its option {', '.join(job.graph.plain_for)}"
            self.notes.append(f"{job.label}: plain operators only: {known}")
        if job.graph.plugin_file is None:
            return None
        if job.profile.name not in self._compiled:
            self._compiled[job.profile.name] = self._compile(job.profile)
        return self._compiled[job.profile.name]

    def _compile(self, profile: HardwareProfile) -> Plugins | None:
        """The plugin library; None where it cannot be compiled."""
        backend = get_backend(profile.backend)
        if not isinstance(backend, TakesPlugins):
            return None
        try:
            return backend.plugin_library()
        except EnvironmentLacksError as error:
            self.notes.append(f"profile '{profile.name}': built without plugins: {error.given} ({error.fix})")
            return None

    def _build(self, job: Job, plugins: Plugins | None) -> EngineRecord:
        """Build one engine and compare it with the golden outputs."""
        kind = "" if plugins is None else " with plugins"
        source, backend = (
            job.graph.source(None if plugins is None else plugins.identity),
            get_backend(job.profile.backend),
        )
        assert source is not None
        self._say("building", job, kind)
        file = self.bundle.path(source)
        out = self.scratch / f"{job.part.name}.{job.profile.name}{kind.replace(' ', '-')}{backend.suffix}"
        if isinstance(backend, TakesPlugins):
            cache = self._timing_cache(job.profile)
            built = backend.build_with(file, job.graph, job.profile, out, plugins=plugins, timing_cache=cache)
        else:
            built = backend.build(file, job.graph, job.profile, out)
        engine = EngineRecord(
            profile=job.profile.name,
            backend=job.profile.backend,
            file=self._within(built.file),
            weights=None if built.weights is None else self._within(built.weights),
            fingerprint=built.fingerprint,
        )
        cascade = self.bundle.manifest.cascade
        if cascade is not None and job.part is cascade.prefix:  # gives no outputs; it is proved with its tails
            return engine
        self._say("proving", job, kind)
        with self._load(job, engine) as runner:
            parity = check_golden(runner.bundle, runner, runner.variant)
        return engine.model_copy(update={"parity": parity})

    def _say(self, what: str, job: Job, kind: str = "") -> None:
        self.progress(f"{what} {job.label}{kind}", self.jobs.index(job), len(self.jobs))

    def _timing_cache(self, profile: HardwareProfile) -> Path:
        """A copy of the bundle's timing cache, which this build may add to."""
        path = self.scratch / f"timing.{profile.name}.cache"
        known = self.bundle.manifest.timing_caches.get(profile.name)
        if known is not None and not path.exists():
            copy_file(self.bundle.path(known), path)
        return path

    def _load(self, job: Job, engine: EngineRecord) -> BundleRunner:
        """A runner of the bundle with another engine in place of its own; nothing on disk changes.

        A tail of the cascade runs behind the new prefix, as the stage's variant.
        """
        engines = {**self._made, job.key: engine}
        files = file_records(self.bundle.root, [file for one in engines.values() for file in one.files])
        manifest = self.bundle.manifest.with_engines(engines)
        candidate = Bundle(self.bundle.root, manifest.model_copy(update={"files": {**manifest.files, **files}}))
        profile = job.profile.name
        runner = BundleRunner(**opening(candidate, profile=profile, threads=None, memory="speed", verify=False))
        if not isinstance(job.part, CascadeStage):
            runner.switch(variant=job.part.name)
            return runner
        opened = engine_opener(candidate, profile, runner.threads)
        runner.adopt(job.part.variant, chained_stage(candidate, job.part.name, opened))
        return runner

    def _measure(self, job: Job, plain: EngineRecord, other: EngineRecord) -> tuple[bool, tuple[Candidate, ...]]:
        """Whether the other engine is faster than the plain one, and the measurements of both."""
        self._say("measuring", job)
        pixels = golden_pixels(self.bundle)[:1].repeat(job.profile.batch.sizes[0], axis=0)
        with ExitStack() as stack:
            runners = [stack.enter_context(self._load(job, one)) for one in (plain, other)]
            calls = [lambda runner=runner: runner.infer(pixels) for runner in runners]
            rounds = take_turns(calls, rounds=ROUNDS, iterations=ITERATIONS)
        candidates = tuple(
            Candidate(plugins=plugin_kind(engine.fingerprint.plugins), median_ms=overall_median(own))
            for engine, own in zip((plain, other), rounds, strict=True)
        )
        return median_ratio(*rounds) > 1, candidates

    def _within(self, path: Path) -> str:
        return path.relative_to(self.bundle.root).as_posix()


def put_in_place(
    bundle: Bundle, engines: dict[Job, EngineRecord], scratch: Path, signer: SecretKey | None = None
) -> None:
    """Move the finished engines from the scratch folder to the graphs, with a manifest and a README that name them.

    All other files keep the hashes that they had.
    """
    caches = {job.profile.name: f"timing.{job.profile.name}.cache" for job in engines}
    caches = {name: file for name, file in caches.items() if (scratch / file).exists()}
    made = [*(Path(file).name for engine in engines.values() for file in engine.files), *caches.values()]
    fresh = {f"{GRAPHS}/{name}": record for name, record in file_records(scratch, made).items()}  # not what failed
    moved = {
        job.key: engine.model_copy(
            update={
                name: file and f"{GRAPHS}/{Path(file).name}"
                for name, file in (("file", engine.file), ("weights", engine.weights))
            }
        )
        for job, engine in engines.items()
    }
    manifest = bundle.manifest.with_engines(moved)
    changes = {
        "files": {**manifest.files, **fresh},
        "timing_caches": {**manifest.timing_caches, **{name: f"{GRAPHS}/{file}" for name, file in caches.items()}},
    }
    manifest = with_readme(manifest.model_copy(update=changes), scratch)
    with new_manifest(bundle.root, manifest, signer):  # files that need space come first
        for name in made:
            move(scratch / name, bundle.root / GRAPHS / name)
        move(scratch / README, bundle.root / README)
