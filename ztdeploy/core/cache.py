"""The cache of what takes long to make: where it lies, and the names of its entries.

An entry is named after everything that decides its content, so it is never out of date; its readers check it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ztdeploy.core.errors import OutputError
from ztdeploy.core.files import reason_of
from ztdeploy.core.profile import data_folder
from ztdeploy.version import __version__

VARIABLE = "ZTDEPLOY_CACHE"
#: The packages whose versions decide what a build makes; each backend names those of its own runtime.
_TOOLS = ("torch", "timm", "onnx", "onnx-ir", "onnxscript", "onnx-graphsurgeon", "numpy", "pillow")
#: The remedy for a cache that cannot be written.
FIX = f"give --cache DIR, or set {VARIABLE}"


def cache_folder(given: Path | None = None) -> Path:
    """The folder given, or `ZTDEPLOY_CACHE`, or a folder below `XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        OutputError: no cache is named, and there is no home folder, as for a container's arbitrary user.
    """
    if given is not None:
        return given.absolute()
    if named := os.environ.get(VARIABLE):
        return Path(named).absolute()
    return users_folder("XDG_CACHE_HOME", ".cache", "the cache", FIX)


def users_folder(variable: str, usual: str, purpose: str, fix: str) -> Path:
    """Our folder below one that the environment names, or below the usual one of the home folder.

    The library platformdirs is not used: it follows a relative `XDG_CACHE_HOME`, and names `~` where there is no home.

    Raises:
        OutputError: neither is there.
    """
    shared = Path(os.environ.get(variable, ""))
    if shared.is_absolute():  # a relative one is to be ignored
        return shared / "ztdeploy"
    try:
        return Path.home() / usual / "ztdeploy"
    except RuntimeError as error:
        raise OutputError(f"this user has no home folder for {purpose}", "HOME to be set", fix) from error


def key_of(**facts: object) -> str:
    """The sha256 of some facts, of ztdeploy's own files, and of the versions of its tools.

    Args:
        facts: values that JSON can hold; the order of names does not matter.
    """
    everything = {"facts": facts, "tools": tool_versions(), "source": source_digest()}
    return hashlib.sha256(json.dumps(everything, sort_keys=True, allow_nan=False).encode()).hexdigest()


def tool_versions() -> dict[str, str]:
    """Versions of what a build is made with, read without importing any of it."""
    return {"ztdeploy": __version__, "python": platform.python_version(), **installed_versions(*_TOOLS)}


def installed_versions(*names: str) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    versions = {}
    for name in names:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


@cache
def source_digest() -> str:
    """The sha256 of all files of this package and of the plugins, since results depend on the code that makes them."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for folder in (package, data_folder("plugins")):
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Turn the error of a cache that cannot be written into one that says how to choose another."""
    try:
        yield
    except (OSError, OutputError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = reason_of(cause) if isinstance(cause, OSError) else str(error)
        raise OutputError(
            f"the cache '{folder}' cannot be used: {reason}",
            "a writable folder with enough space",
            f"free space there, {FIX}",
        ) from error
