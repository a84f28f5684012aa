"""TensorRT-RTX: portable engines for desktop GPUs, finished by the runtime where they are loaded."""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from ztdeploy.core.errors import ProfileError
from ztdeploy.core.files import link
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.manifest import GraphRecord
from ztdeploy.core.profile import HardwareProfile
from ztdeploy.target.backends.base import GraphForm, StoredEngine, mismatch
from ztdeploy.target.backends.tensorrt.backend import EitherTensorRt, options_of
from ztdeploy.target.backends.tensorrt.cuda import device_label, open_device

TURING = "7.5"


class TensorRtRtxBackend(EitherTensorRt):
    """Engines for the kinds of GPU that a profile names, built on any machine."""

    name = extra = "tensorrt-rtx"
    module = "tensorrt_rtx_bindings"
    distributions = ("tensorrt-rtx-cu13-libs",)
    buildable = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")

    def importing(self) -> AbstractContextManager[object]:
        return _libraries()

    def graph_form(self, profile: HardwareProfile) -> GraphForm:
        return "turing" if TURING in options_of(profile).compute_capabilities else "plain"

    def check_profile(self, profile: HardwareProfile) -> None:
        super().check_profile(profile)
        wanted = options_of(profile).compute_capabilities
        unknown = [capability for capability in wanted if capability not in self.buildable]
        if unknown or not wanted:
            raise ProfileError(
                f"profile '{profile.name}' asks {self.name} for compute capability {unknown[0] if unknown else 'none'}",
                f"one or more of: {', '.join(self.buildable)}",
                "correct compute_capabilities under [tensorrt], or use the backend tensorrt on the device itself",
            )
        if TURING in wanted and profile.precision != "fp16":
            raise ProfileError(
                f"profile '{profile.name}' asks {self.name} for {profile.precision} on compute capability {TURING}",
                "fp16, the only type that it has matrix products of for that GPU",
                f'set precision = "fp16", or leave {TURING} out of compute_capabilities',
            )

    def describe(self) -> str:
        return f"{self.version()}; builds for compute capabilities {', '.join(self.buildable)}"

    def batch_ranges(self, graph: GraphRecord, profile: HardwareProfile) -> tuple[tuple[int, int, int], ...]:
        """One range for all: kernels are chosen for the batch at hand when the engine runs."""
        sizes = profile.batch.sizes
        return () if graph.batch is not None else ((1, sizes[-1], sizes[-1]),)

    def check_device(self, engine: StoredEngine) -> None:
        device = open_device()
        if f"sm_{device.capability.replace('.', '')}" not in engine.fingerprint.device.split():
            raise mismatch(engine.file, f"for {engine.fingerprint.device}", device_label(device))


@contextmanager
def _libraries() -> Iterator[None]:
    """Load TensorRT-RTX's two libraries from a folder where each also bears its unversioned name.

    The wheel ships only `libtensorrt_rtx.so.1`. The ONNX parser opens `libtensorrt_rtx.so` as soon as it meets a
    plugin node, and where that does not exist it ends the process instead of raising an error.
    """
    spec = find_spec("tensorrt_rtx_libs")
    if spec is not None and spec.submodule_search_locations:  # a system-wide installation has both names
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
    yield
