"""Bundles that are built once: a finished one is kept, named after everything that decides its content."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ztdeploy.core.bundle import Bundle, read_bundle, sha256_of
from ztdeploy.core.cache import FIX, key_of
from ztdeploy.core.errors import BundleError, CheckpointError, EnvironmentLacksError, OutputError, ZtdeployError
from ztdeploy.core.files import remove_folder, write
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.locks import only_one
from ztdeploy.core.methods import DEFAULT_METHOD
from ztdeploy.core.profile import read_profile
from ztdeploy.core.progress import Progress
from ztdeploy.core.records import to_json
from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.backends import runtime_versions
from ztdeploy.target.backends.int8 import exact_here


@dataclass(frozen=True)
class Unbuilt:
    """A variant that could not be built."""

    variant: str
    error: ZtdeployError


def cached_bundle(request: BuildRequest, cache: Path, progress: Progress) -> Bundle:
    """The bundle of a request, every hash checked; built where there is none, or a damaged one.

    Args:
        request: its `out` and `cache` do not matter.
        cache: the folder of all caches.

    Raises:
        ZtdeployError: it cannot be built; nothing is left behind but traces.
    """
    key = bundle_key(request)
    folder = cache / "bundles" / key

    def waiting() -> None:
        progress("waiting for another process that builds the same", 0, 1)

    with only_one(folder.with_name(f"{key}.lock"), waiting, FIX):
        held = _sound(folder)
        if held is not None:
            return held
        remove_folder(folder, FIX)
        return _build(replace(request, out=folder), cache, progress)


def buildable_bundle(request: BuildRequest, cache: Path, progress: Progress) -> tuple[Bundle, tuple[Unbuilt, ...]]:
    """The same, without the variants that cannot be built; what they share with others is traced once all the same.

    Args:
        request: uniform keep ratios and methods.

    Returns:
        The bundle, and what is not in it.

    Raises:
        ZtdeployError: not even the dense model can be built, or this machine lacks something.
    """
    try:
        return cached_bundle(request, cache, progress), ()
    except (EnvironmentLacksError, OutputError):
        raise
    except ZtdeployError:
        dense = cached_bundle(replace(request, keep_ratios=(1.0,), methods=(DEFAULT_METHOD,)), cache, progress)
    schedules = uniform_schedules(request, dense.manifest.model.architecture)
    with scratch_folder(cache, FIX) as folder:
        files = _schedule_files(schedules, folder)
        unbuilt = _unbuildable(request, files, cache, progress)
        good = [file for file in files if file.stem not in {one.variant for one in unbuilt}]
        return (cached_bundle(_only(request, good), cache, progress) if good else dense), unbuilt


def _unbuildable(request: BuildRequest, files: Sequence[Path], cache: Path, progress: Progress) -> tuple[Unbuilt, ...]:
    """Which of these schedules fail, each tried alone."""
    found = []
    for file in files:
        try:
            _build(replace(_only(request, [file]), out=file.with_name("bundle"), force=True), cache, progress)
        except (EnvironmentLacksError, OutputError):
            raise
        except ZtdeployError as error:
            found.append(Unbuilt(file.stem, error))
    return tuple(found)


def bundle_key(request: BuildRequest) -> str:
    """What decides a bundle's content, but for when it was made.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ProfileError: no such profile.
    """
    from ztdeploy.host.models.sources import files_behind  # of the host half, which a sweep of a bundle does without

    model = request.model
    beside = {"checkpoint": None, "class_names": model.class_names, "text_head": model.text_head}
    return key_of(
        runtimes=runtime_versions(),
        model=model.model_dump(mode="json", exclude=set(beside)),
        files=[_file_key(path) for path in files_behind(model)],
        beside={name: _file_key(path) for name, path in beside.items() if path is not None},
        batch=request.batch,
        methods=request.methods,
        keep_ratios=request.keep_ratios,
        preset=request.preset,
        schedules=[_file_key(path) for path in request.schedules],
        profiles=[exact_here(read_profile(name)).model_dump(mode="json") for name in request.profiles],
    )


def uniform_schedules(request: BuildRequest, architecture: Architecture) -> list[PruningSchedule]:
    """One per method and keep ratio, but for the dense one."""
    return [
        default_schedule(ratio, architecture, method=method, preset=request.preset)
        for method in request.methods
        for ratio in request.keep_ratios
        if ratio != 1
    ]


def _only(request: BuildRequest, schedules: Sequence[Path]) -> BuildRequest:
    return replace(request, keep_ratios=(), methods=(DEFAULT_METHOD,), schedules=tuple(schedules))


def _schedule_files(schedules: Sequence[PruningSchedule], folder: Path) -> list[Path]:
    files = [folder / f"{schedule.name}.json" for schedule in schedules]
    for schedule, file in zip(schedules, files, strict=True):
        write(file, to_json(schedule, by_alias=True))
    return files


def _file_key(path: Path) -> list[str]:
    """A file's name, which a manifest repeats, and its content."""
    try:
        return [path.name, sha256_of(path)]
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read ({error.strerror})", "a file", "check the path") from error


def _sound(folder: Path) -> Bundle | None:
    """The bundle that lies there, if it is as it was built."""
    with suppress(BundleError):
        bundle = read_bundle(folder)
        bundle.verify_files()
        return bundle
    return None


def _build(request: BuildRequest, cache: Path, progress: Progress) -> Bundle:
    """Build into the cache; what is wrong with the folder is then the cache's fault."""
    try:
        return build(replace(request, cache=cache / "traces"), progress)
    except OutputError as error:
        raise OutputError(
            f"the cache cannot be used: {error.given}", "a writable folder with enough space", "give --cache DIR"
        ) from error
