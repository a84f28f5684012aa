"""Where compiled plugins lie, and how an engine gets them: compiled from the installed package, never from a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ztdeploy.backends.base import PluginLibrary
from ztdeploy.backends.tensorrt.cuda import open_device
from ztdeploy.errors import EngineMismatchError, EnvironmentLacksError
from ztdeploy.plugins.library import build_library, check_library


def cache_folder() -> Path:
    """A folder of the user's own, outside every bundle."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ztdeploy" / "plugins"


def plugin_library(tensorrt_version: str) -> PluginLibrary:
    """The plugins for the GPU at hand, compiled now or before.

    Args:
        tensorrt_version: of the runtime that will load them. A library is bound to one major version.

    Raises:
        EnvironmentLacksError: something that compiling takes is missing, or the headers are another version's.
    """
    path = build_library(cache_folder(), compute_capability=open_device().capability)
    check_library(path, tensorrt_major=int(tensorrt_version.split(".")[0]))
    return PluginLibrary(path, path.name)


def load_plugins(runtime: Any, tensorrt_version: str, engine: Path, identity: str) -> None:
    """Register the plugins that an engine was built with.

    Raises:
        EngineMismatchError: the installed package has others.
        EnvironmentLacksError: they cannot be compiled or loaded.
    """
    library = plugin_library(tensorrt_version)
    if library.identity != identity:
        raise EngineMismatchError(
            f"engine '{engine.name}' was built with the plugins '{identity}'",
            f"'{library.identity}', those of this ztdeploy",
            f"run: ztdeploy finalize {engine.parent.parent}",
        )
    if not runtime.get_plugin_registry().load_library(str(library.path)):
        raise EnvironmentLacksError(
            f"the runtime refuses the plugin library '{library.path}'",
            "a library that registers",
            "delete it, and run 'ztdeploy finalize' again",
        )
