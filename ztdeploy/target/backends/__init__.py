"""Runtimes, one file each behind one small protocol; one line here, one extra in pyproject.toml."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from ztdeploy.core.errors import BundleError, EnvironmentLacksError, ProfileError, did_you_mean

if TYPE_CHECKING:
    from ztdeploy.core.profile import HardwareProfile
    from ztdeploy.target.backends.base import Backend

BACKENDS: dict[str, str] = {
    "onnxruntime": "ztdeploy.target.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "ztdeploy.target.backends.openvino:OpenVinoBackend",
    "tensorrt": "ztdeploy.target.backends.tensorrt.backend:TensorRtBackend",
    "tensorrt-rtx": "ztdeploy.target.backends.tensorrt.backend:TensorRtRtxBackend",
}

#: Backends that profiles may name and that this version cannot build engines for yet.
PLANNED: dict[str, str] = {}


def backend_exists(name: str) -> bool:
    """Whether engines can be built; False where the backend is only planned.

    Raises:
        ProfileError: nobody knows such a backend.
    """
    if name not in BACKENDS and name not in PLANNED:
        raise ProfileError(f"backend '{name}'", "a known backend", did_you_mean(name, [*BACKENDS, *PLANNED]))
    return name in BACKENDS


def get_backend(name: str) -> Backend:
    """The backend that built an engine.

    Raises:
        BundleError: this version does not have it.
    """
    if name not in BACKENDS:
        raise BundleError(f"an engine of the backend '{name}'", f"one of: {', '.join(BACKENDS)}", "upgrade ztdeploy")
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)()
    return backend


def why_not_build(profile: HardwareProfile) -> str | None:
    """What keeps this machine from building a profile's engines; None where nothing does."""
    if profile.backend not in BACKENDS:
        return f"{PLANNED.get(profile.backend, profile.backend)} cannot be built by this version"
    try:
        get_backend(profile.backend).check_can_build(profile)
    except (EnvironmentLacksError, ProfileError) as error:
        return error.given
    return None


def why_not_run(profile: HardwareProfile) -> str | None:
    """What keeps this machine from running a profile's engines; None where nothing does."""
    if profile.backend not in BACKENDS:
        return f"this version has no backend '{profile.backend}'"
    try:
        get_backend(profile.backend).check_can_run(profile)
    except EnvironmentLacksError as error:
        return error.given
    return None


def first_that_runs(profiles: Iterable[HardwareProfile]) -> tuple[HardwareProfile | None, str]:
    """The first profile whose engines this machine can run, and what keeps it from running those before it.

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
