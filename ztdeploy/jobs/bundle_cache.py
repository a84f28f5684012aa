"""Bundles that are built once: a finished one is kept, named after everything that decides its content."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from ztdeploy.core.bundle import Bundle, read_bundle, sha256_of
from ztdeploy.core.cache import FIX, key_of
from ztdeploy.core.errors import (
    BundleError,
    CheckpointError,
    EnvironmentLacksError,
    InputError,
    OutputError,
    ZtdeployError,
)
from ztdeploy.core.files import remove_folder
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.locks import only_one
from ztdeploy.core.methods import DEFAULT_METHOD
from ztdeploy.core.progress import Progress
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.jobs.build import build
from ztdeploy.jobs.request import BuildRequest
from ztdeploy.target.backends import runtime_versions
from ztdeploy.target.backends.int8 import exact_here

_log = logging.getLogger(__name__)


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
        with suppress(BundleError, InputError):  # damaged, or not there
            bundle = read_bundle(folder)
            bundle.verify_files()
            _log.debug("the cache has the bundle %s", folder)
            return bundle
        remove_folder(folder, FIX)
        return _build(replace(request, out=folder), cache, progress)


def buildable_bundle(request: BuildRequest, cache: Path, progress: Progress) -> tuple[Bundle, tuple[Unbuilt, ...]]:
    """The bundle of a request without the variants that cannot be built; each variant is tried alone to find them.

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
        only = replace(request, keep_ratios=(), methods=(DEFAULT_METHOD,))
        dense = cached_bundle(replace(only, keep_ratios=(1.0,)), cache, progress)
    architecture, good, unbuilt = dense.manifest.model.architecture, list[PruningSchedule](), list[Unbuilt]()
    with scratch_folder(cache, FIX) as folder:
        for method, ratio in product(request.methods, request.keep_ratios):
            schedule = default_schedule(ratio, architecture, method=method, preset=request.preset)
            try:
                _build(replace(only, schedules=(schedule,), out=folder / "bundle", force=True), cache, progress)
                good.append(schedule)
            except (EnvironmentLacksError, OutputError):
                raise
            except ZtdeployError as error:
                unbuilt.append(Unbuilt(schedule.name, error))
    bundle = cached_bundle(replace(only, schedules=tuple(good)), cache, progress) if good else dense
    return bundle, tuple(unbuilt)


def bundle_key(request: BuildRequest) -> str:
    """A digest of everything that decides a bundle's content, but for the time when it was made.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ProfileError: no such profile.
    """
    from ztdeploy.host.models.sources import files_behind  # of the host half, which a sweep of a bundle does without

    model = request.model
    named = {name: getattr(model, name) for name in ("class_names", "text_head")}
    beside = {name: path for name, path in named.items() if isinstance(path, Path)}
    return key_of(
        runtimes=runtime_versions(),
        model=model.model_dump(mode="json", exclude={"checkpoint", *beside}),
        files=[_file_key(path) for path in files_behind(model)],
        beside={name: _file_key(path) for name, path in beside.items()},
        batch=request.batch,
        methods=request.methods,
        keep_ratios=request.keep_ratios,
        preset=request.preset,
        schedules=[schedule.model_dump(mode="json") for schedule in request.schedules],
        profiles=[exact_here(profile).model_dump(mode="json") for profile in request.read_profiles()],
    )


def _file_key(path: Path) -> list[str]:
    """A file's name, which a manifest repeats, and its content."""
    try:
        return [path.name, sha256_of(path)]
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read ({error.strerror})", "a file", "check the path") from error


def _build(request: BuildRequest, cache: Path, progress: Progress) -> Bundle:
    """Build into the cache; what is wrong with the folder is then the cache's fault."""
    try:
        return build(replace(request, cache=cache / "traces"), progress)
    except OutputError as error:
        raise OutputError(
            f"the cache cannot be used: {error.given}", "a writable folder with enough space", "give --cache DIR"
        ) from error
