"""Engines of TensorRT, built on the device that runs them, and what TensorRT and TensorRT-RTX have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, ProfileError, did_you_mean
from ztdeploy.core.manifest import Fingerprint, GraphRecord
from ztdeploy.core.profile import HardwareProfile, TensorRtOptions
from ztdeploy.target.backends.base import (
    Backend,
    BuiltEngine,
    Finding,
    GraphForm,
    InTriton,
    MemoryMode,
    Plugins,
    StoredEngine,
    mismatch,
)
from ztdeploy.target.backends.tensorrt.build import build_engine, check_memory
from ztdeploy.target.backends.tensorrt.cuda import KNOWN_CAPABILITIES, device_label, open_device
from ztdeploy.target.backends.tensorrt.plugins import cache_folder, load_plugins, plugin_library
from ztdeploy.target.backends.tensorrt.runner import TensorRtRunner
from ztdeploy.target.backends.tensorrt.worker import BuildOrder
from ztdeploy.target.plugins.library import what_is_missing


class EitherTensorRt(Backend):
    """Their Python interfaces differ by little more than a name."""

    suffix = ".engine"
    precisions = ("fp32", "fp16", "bf16")
    threaded = False
    tensorrt_operators = True
    #: The compute capabilities that engines can be built for without such a GPU; (): only for the GPU at hand.
    buildable: ClassVar[tuple[str, ...]] = ()

    def probes(self) -> dict[str, Callable[[], Finding]]:
        return {"gpu": examine_gpu, **super().probes()}

    def check_profile(self, profile: HardwareProfile) -> None:
        super().check_profile(profile)
        for capability in options_of(profile).compute_capabilities:
            if capability not in KNOWN_CAPABILITIES:
                raise ProfileError(
                    f"profile '{profile.name}' has the compute capability '{capability}'",
                    "one that NVIDIA sells",
                    did_you_mean(capability, KNOWN_CAPABILITIES),
                )

    def check_can_run(self, profile: HardwareProfile) -> None:
        self.runtime()
        capabilities, device = options_of(profile).compute_capabilities, open_device()
        if capabilities and device.capability not in capabilities:
            raise EnvironmentLacksError(
                f"the GPU here is a {device.name} (compute capability {device.capability})",
                f"{' or '.join(capabilities)}, as profile '{profile.name}' says",
                "run this on such a device, or use a profile that suits this one",
            )

    def build(
        self,
        graph: Path,
        graph_record: GraphRecord,
        profile: HardwareProfile,
        out: Path,
        *,
        plugins: Plugins | None = None,
        timing_cache: Path | None = None,
    ) -> BuiltEngine:
        """See `base.Backend`, and `base.TakesPlugins` for what TensorRT itself takes besides."""
        options = options_of(profile)
        order = BuildOrder(
            backend=self.name,
            graph=str(graph.absolute()),
            engine=str(out.absolute()),
            batches=self.batch_ranges(graph_record, profile),
            workspace_mib=check_memory(graph_record.weights_bytes, options.workspace_mib),
            compute_capabilities=options.compute_capabilities if self.buildable else (),
            plugin_library=None if plugins is None else str(plugins.library),
            timing_cache=None if timing_cache is None else str(timing_cache.absolute()),
        )
        answer = build_engine(order)
        fingerprint = Fingerprint(
            graph_sha256=sha256_of(graph),
            runtime=self.name,
            runtime_version=answer.runtime_version,
            device=answer.device,
            plugins=None if plugins is None else plugins.identity,
        )
        return BuiltEngine(out, None, fingerprint)

    def batch_ranges(self, graph: GraphRecord, profile: HardwareProfile) -> tuple[tuple[int, int, int], ...]:
        """An optimization profile for each batch size, which takes what lies above the next smaller one.

        Returns:
            The smallest, best and largest batch of each; none where the graph fixes the batch.
        """
        if graph.batch is not None:
            return ()
        sizes = profile.batch.sizes
        return tuple((low + 1, size, size) for low, size in zip((0, *sizes), sizes, strict=False))

    def load(self, engine: StoredEngine, *, threads: int, memory: MemoryMode) -> TensorRtRunner:
        trt = self.runtime()
        self.check_fingerprint(engine)
        self.check_device(engine)
        log = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(log)
        if engine.fingerprint.plugins is not None:
            load_plugins(runtime, trt.__version__, engine.file, engine.fingerprint.plugins)
        loaded: Any = runtime.deserialize_cuda_engine(engine.file.read_bytes())
        if loaded is None:
            raise BundleError(
                f"{self.name} {trt.__version__} refuses '{engine.file}'",
                "an engine that it built",
                f"run: ztdeploy finalize {engine.file.parent.parent}",
            )
        return TensorRtRunner(trt, loaded, (runtime, log))

    def check_device(self, engine: StoredEngine) -> None:
        """
        Raises:
            EngineMismatchError: built for another GPU.
        """
        here = device_label(open_device())
        if engine.fingerprint.device != here:
            raise mismatch(engine.file, f"for {engine.fingerprint.device}", here)


class TensorRtBackend(EitherTensorRt):
    """Standard TensorRT: an engine runs on the kind of GPU and the version that built it, and nowhere else."""

    name = module = extra = "tensorrt"
    distributions = ("tensorrt",)
    built_where = "device"
    trtexec = True

    def graph_form(self, profile: HardwareProfile) -> GraphForm:
        return "board"

    def check_can_build(self, profile: HardwareProfile) -> None:
        self.check_profile(profile)
        self.check_can_run(profile)

    build_with = EitherTensorRt.build

    def in_triton(self, profile: HardwareProfile) -> InTriton | None:
        ranges = len(profile.batch.sizes) if profile.batch.dynamic else 0
        return InTriton(model="model.plan", takes_engines=True, kind="KIND_GPU", optimization_profiles=ranges)

    def library_of(self, identity: str) -> Path:
        return cache_folder() / identity

    def plugin_library(self) -> Plugins:
        """See `base.TakesPlugins`."""
        return plugin_library(self.version())

    def probes(self) -> dict[str, Callable[[], Finding]]:
        return {**super().probes(), "compiling plugins": examine_compilers}

    def examine(self) -> Finding:
        found, remedy = super().examine(), "device bundles are built without it; run 'ztdeploy finalize' on the board"
        if found.state == "note":
            return replace(found, remedy=remedy)
        if found.state == "ok":
            try:
                open_device()
            except EnvironmentLacksError as error:
                return replace(found, state="note", found=f"{self.version()}, but {error.given}", remedy=remedy)
        return found

    def describe(self) -> str:
        return f"{self.version()}; builds for the GPU here"


def examine_compilers() -> Finding:
    """What `finalize` compiles the plugin library with."""
    subject, missing = "compiling plugins", what_is_missing()
    if missing:
        return Finding(subject, "note", f"lacks {'; '.join(missing)}", "only needed on a board, by finalize")
    return Finding(subject, "ok", "CMake, nvcc and TensorRT's headers")


def examine_gpu() -> Finding:
    """The GPU that engines would run on."""
    try:
        device = open_device()
    except EnvironmentLacksError as error:
        return Finding("gpu", "note", error.given, "only needed to run GPU engines, not to build for desktop GPUs")
    found = f"{device.name}, compute capability {device.capability}, driver for CUDA {device.driver}"
    return Finding("gpu", "ok", found)


def options_of(profile: HardwareProfile) -> TensorRtOptions:
    return profile.tensorrt or TensorRtOptions()
