"""Runtimes, one file or folder each: a line in `BACKENDS`, or an entry point `ztdeploy.backends` of another package."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from ztdeploy.core.cache import installed_versions
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, ProfileError, did_you_mean
from ztdeploy.core.tables import with_entry_points

if TYPE_CHECKING:
    from ztdeploy.core.profile import HardwareProfile
    from ztdeploy.target.backends.base import Backend, Runner

#: `"name": "module:Class"`, where the class derives from `base.Backend` and `name` is what profiles call it.
BACKENDS: dict[str, str] = {
    "onnxruntime": "ztdeploy.target.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "ztdeploy.target.backends.openvino:OpenVinoBackend",
    "tensorrt": "ztdeploy.target.backends.tensorrt.backend:TensorRtBackend",
    "tensorrt-rtx": "ztdeploy.target.backends.tensorrt.rtx:TensorRtRtxBackend",
}


def backend_table() -> dict[str, str]:
    """`BACKENDS`, and what installed packages add to it."""
    return with_entry_points(BACKENDS, "ztdeploy.backends")


def get_backend(name: str) -> Backend:
    """The backend that built an engine.

    Raises:
        BundleError: this version does not have it.
        EnvironmentLacksError: its code cannot be imported.
    """
    reference = _reference(name)
    if reference is None:
        known = ", ".join(backend_table())
        raise BundleError(f"an engine of the backend '{name}'", f"one of: {known}", "upgrade ztdeploy")
    try:
        backend: Backend = resolve_name(reference)()
    except (ImportError, AttributeError) as error:
        package = "ztdeploy" if name in BACKENDS else f"what has '{reference}'"
        raise EnvironmentLacksError(
            f"the backend '{name}' cannot be imported ({error})", "its code and runtime", f"run: pip install {package}"
        ) from error
    return backend


def backend_of(profile: HardwareProfile) -> Backend:
    """The backend of a profile.

    Raises:
        ProfileError: there is no such backend.
        EnvironmentLacksError: as `get_backend`.
    """
    if _reference(profile.backend) is None:
        known = did_you_mean(profile.backend, list(backend_table()))
        raise ProfileError(f"backend '{profile.backend}'", "a known backend", known)
    return get_backend(profile.backend)


def _reference(name: str) -> str | None:
    """The "module:Class" of a backend. The slow search through installed packages is for names that are not ours."""
    return BACKENDS.get(name) or backend_table().get(name)


def runtime_versions() -> dict[str, str]:
    """The versions of all runtimes that are installed, by their packages."""
    packages = list[str]()
    for name in backend_table():
        with suppress(EnvironmentLacksError):
            packages += get_backend(name).distributions
    return installed_versions(*packages)


def load_graph(graph: Path, threads: int) -> Runner:
    """Run a graph without an engine in ONNX Runtime, for proofs and calibration.

    Raises:
        BundleError: ONNX Runtime refuses it.
    """
    from ztdeploy.target.backends import onnxruntime

    return onnxruntime.load_graph(graph, threads)


def load_noted(name: str, noted: Path, *, engine: Path, threads: int) -> Runner:
    """Run the graph with notes that belongs to an engine: in the backend's own runtime if possible, otherwise in ONNX
    Runtime.

    Raises:
        BundleError: the runtime refuses the graph.
    """
    from ztdeploy.target.backends.base import RunsNotes

    backend = get_backend(name)
    return (
        backend.load_noted(noted, engine=engine, threads=threads)
        if isinstance(backend, RunsNotes)
        else load_graph(noted, threads)
    )


def why_not_build(profile: HardwareProfile) -> str | None:
    """Why this machine cannot build a profile's engines; None if it can."""
    try:
        backend_of(profile).check_can_build(profile)
    except (EnvironmentLacksError, ProfileError) as error:
        return error.given
    return None


def why_not_run(profile: HardwareProfile) -> str | None:
    """Why this machine cannot run a profile's engines; None if it can."""
    try:
        backend_of(profile).check_can_run(profile)
    except ProfileError:
        return f"this version has no backend '{profile.backend}'"
    except EnvironmentLacksError as error:
        return error.given
    return None


def first_that_runs(profiles: Iterable[HardwareProfile]) -> tuple[HardwareProfile | None, str]:
    """The first profile whose engines this machine can run, and why it cannot run those before it.

    Returns:
        None where it can run none; the reasons in words, such as "jetson: no GPU; desktop: no GPU".
    """
    reasons = list[str]()
    for profile in profiles:
        reason = why_not_run(profile)
        if reason is None:
            return profile, "; ".join(reasons)
        reasons.append(f"{profile.name}: {reason}")
    return None, "; ".join(reasons)
