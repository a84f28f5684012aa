"""Where compiled plugins lie, and how an engine gets them: compiled from the installed package, never from a bundle."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from ztdeploy.core.errors import EngineMismatchError, EnvironmentLacksError
from ztdeploy.core.manifest import AHEAD_OF_TIME
from ztdeploy.target.backends.base import AheadOfTime, Plugins
from ztdeploy.target.backends.tensorrt.cuda import open_device
from ztdeploy.target.plugins.ahead_of_time import import_tensorrt
from ztdeploy.target.plugins.library import build_library, check_library
from ztdeploy.target.plugins.ptx import compile_ptx


def cache_folder() -> Path:
    """A folder of the user's own, outside every bundle."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ztdeploy" / "plugins"


def plugin_library(tensorrt_version: str) -> Plugins:
    """The plugins for the GPU at hand, compiled now or before.

    Args:
        tensorrt_version: of the runtime that will load them. A library is bound to one major version.

    Raises:
        EnvironmentLacksError: something that compiling takes is missing, or the headers are another version's.
    """
    path = build_library(cache_folder(), compute_capability=open_device().capability)
    check_library(path, tensorrt_major=int(tensorrt_version.split(".")[0]))
    return Plugins(path.name, library=path)


def ahead_of_time_plugins() -> Plugins:
    """The plugins as PTX that the GPU's driver reads.

    Raises:
        EnvironmentLacksError: TensorRT is older than 10.9, or no NVRTC is at hand that writes such PTX.
    """
    import_tensorrt()
    device = open_device()
    target = AheadOfTime(f"sm_{device.capability.replace('.', '')}", newest_ptx(device.driver))
    ptx = compile_ptx(target.sm, max_isa=target.max_isa).text
    return Plugins(f"{AHEAD_OF_TIME} {hashlib.sha256(ptx.encode()).hexdigest()[:16]}", ahead_of_time=target)


def compiled_before(tensorrt_version: str, identity: str) -> Path | None:
    """A library that this user compiled. The identity comes from a bundle: it chooses among our own files only.

    Raises:
        EnvironmentLacksError: it is of another version.
    """
    path = cache_folder() / identity
    if not re.fullmatch(r"libztdeploy_plugins-sm\d+-[0-9a-f]{16}\.so", identity) or not path.is_file():
        return None
    check_library(path, tensorrt_major=int(tensorrt_version.split(".")[0]))
    return path


def newest_ptx(cuda: str) -> tuple[int, int]:
    """The newest PTX ISA that a driver for a CUDA version reads, from NVIDIA's table of PTX releases."""
    major, minor = (int(part) for part in cuda.split("."))
    if major != 12:
        return major - 4, minor
    return 8, minor if minor < 6 else minor - 1


def load_plugins(runtime: Any, tensorrt_version: str, engine: Path, identity: str) -> None:
    """Register the plugins that an engine was built with; those that were compiled before take no compiler.

    Raises:
        EngineMismatchError: the installed package has others.
        EnvironmentLacksError: they cannot be compiled or loaded.
    """
    path = compiled_before(tensorrt_version, identity)
    if path is None:
        library = plugin_library(tensorrt_version)
        path = library.library
        if library.identity != identity:
            raise EngineMismatchError(
                f"engine '{engine.name}' was built with the plugins '{identity}'",
                f"'{library.identity}', those of this ztdeploy",
                f"run: ztdeploy finalize {engine.parent.parent}",
            )
    if not runtime.get_plugin_registry().load_library(str(path)):
        raise EnvironmentLacksError(
            f"the runtime refuses the plugin library '{path}'",
            "a library that registers",
            "delete it, and run 'ztdeploy finalize' again",
        )
