"""Where compiled plugins lie, and how an engine gets them: compiled from the installed package, never from a bundle."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ztdeploy.core.errors import EnvironmentLacksError
from ztdeploy.target.backends.base import Plugins, mismatch
from ztdeploy.target.backends.tensorrt.cuda import open_device
from ztdeploy.target.plugins.library import build_library, check_library


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
            raise mismatch(engine, f"with the plugins '{identity}'", f"'{library.identity}', those of this ztdeploy")
    if not runtime.get_plugin_registry().load_library(str(path)):
        raise EnvironmentLacksError(
            f"the runtime refuses the plugin library '{path}'",
            "a library that registers",
            "delete it, and run 'ztdeploy finalize' again",
        )
