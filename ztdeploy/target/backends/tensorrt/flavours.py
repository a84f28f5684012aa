"""The two runtimes, and how each is imported."""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ztdeploy.core.errors import EnvironmentLacksError, MissingExtraError
from ztdeploy.core.files import link
from ztdeploy.core.folders import scratch_folder

#: GPUs that any supported TensorRT or TensorRT-RTX has ever built for, by their compute capability.
KNOWN_CAPABILITIES: dict[str, str] = {
    "7.5": "Turing: GeForce RTX 20, T4",
    "8.0": "Ampere: A100",
    "8.6": "Ampere: GeForce RTX 30, A10",
    "8.7": "Ampere: Jetson Orin",
    "8.9": "Ada: GeForce RTX 40, L4",
    "9.0": "Hopper: H100",
    "10.0": "Blackwell: B200",
    "10.3": "Blackwell: B300",
    "11.0": "Blackwell: Jetson Thor",
    "12.0": "Blackwell: GeForce RTX 50",
    "12.1": "Blackwell: GB10",
}


@dataclass(frozen=True)
class Flavour:
    """One of the two runtimes."""

    name: str  #: the backend's
    module: str
    extra: str
    capabilities: tuple[str, ...]  #: what engines can be built for without a GPU; empty: only for the GPU at hand
    prepare: Callable[[], None]  #: what must happen before the import

    def load(self) -> Any:
        """Import the runtime.

        Raises:
            MissingExtraError: it is not installed.
            EnvironmentLacksError: it is, but its libraries cannot be loaded.
        """
        if find_spec(self.module) is None:
            raise MissingExtraError(self.module, self.extra, f"the backend {self.name}")
        try:
            self.prepare()
            return import_module(self.module)
        except (ImportError, OSError) as error:
            raise EnvironmentLacksError(
                f"'{self.module}' cannot be loaded ({error})",
                "its libraries beside it",
                f"run: pip install --force-reinstall 'ztdeploy[{self.extra}]'",
            ) from error


def _preload_rtx() -> None:
    """Load TensorRT-RTX's two libraries from a folder where each also bears its unversioned name.

    The wheel ships only `libtensorrt_rtx.so.1`. The ONNX parser opens `libtensorrt_rtx.so` as soon as it meets a
    plugin node, and where that does not exist it ends the process instead of raising an error.
    """
    spec = find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations:
        return  # a system-wide installation, whose libraries have both names
    libraries = Path(next(iter(spec.submodule_search_locations)))
    folder = ExitStack()
    private = folder.enter_context(scratch_folder())
    atexit.register(folder.close)
    core, parser = "libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so"
    for name in (core, parser):
        versioned = next(libraries.glob(f"{name}.*"), None)
        if versioned is None:
            raise OSError(f"'{libraries}' holds no {name}")
        link(versioned, private / versioned.name)
        link(versioned, private / name)
    for name in (core, parser):  # the parser needs the core
        ctypes.CDLL(str(next(private.glob(f"{name}.*"))), ctypes.RTLD_GLOBAL)


def _nothing() -> None:
    """The board's own TensorRT is installed whole."""


TENSORRT = Flavour("tensorrt", "tensorrt", "tensorrt", (), _nothing)
TENSORRT_RTX = Flavour(
    "tensorrt-rtx",
    "tensorrt_rtx_bindings",
    "tensorrt-rtx",
    ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    _preload_rtx,
)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, TENSORRT_RTX)}
