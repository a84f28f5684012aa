"""Engines of TensorRT, built on the device that runs them, and of TensorRT-RTX, built anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.errors import BundleError, EngineMismatchError, EnvironmentLacksError, ProfileError, did_you_mean
from ztdeploy.core.manifest import Fingerprint, GraphRecord, plugin_kind
from ztdeploy.core.profile import HardwareProfile, Precision, TensorRtOptions
from ztdeploy.target.backends.base import BuiltEngine, BuiltWhere, Insight, MemoryMode, Plugins, Runner, check_precision
from ztdeploy.target.backends.onnxruntime import load_graph
from ztdeploy.target.backends.tensorrt.build import build_engine, check_memory
from ztdeploy.target.backends.tensorrt.cuda import device_label, open_device
from ztdeploy.target.backends.tensorrt.flavours import KNOWN_CAPABILITIES, TENSORRT, TENSORRT_RTX, Flavour
from ztdeploy.target.backends.tensorrt.order import BuildOrder
from ztdeploy.target.backends.tensorrt.plugins import ahead_of_time_plugins, load_plugins, plugin_library
from ztdeploy.target.backends.tensorrt.runner import TensorRtRunner


class TensorRtBackend:
    """Standard TensorRT: an engine runs on the kind of GPU and the version that built it, and nowhere else."""

    name, suffix = TENSORRT.name, ".engine"
    built_where: BuiltWhere = "device"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
    insight: Insight | None = None
    flavour: Flavour = TENSORRT

    def check_profile(self, profile: HardwareProfile) -> None:
        check_precision(self, profile)
        check_capabilities(profile)

    def check_can_build(self, profile: HardwareProfile) -> None:
        self.check_profile(profile)
        self.check_can_run(profile)

    def check_can_run(self, profile: HardwareProfile) -> None:
        self.flavour.load()
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
        options = options_of(profile)
        order = BuildOrder(
            flavour=self.flavour.name,
            graph=str(graph.absolute()),
            engine=str(out.absolute()),
            batches=self.batch_ranges(graph_record, profile),
            workspace_mib=check_memory(graph_record.weights_bytes, options.workspace_mib),
            compute_capabilities=options.compute_capabilities if self.flavour.capabilities else (),
            plugin_library=str(plugins.library) if plugins and plugins.library else None,
            ahead_of_time=plugins.ahead_of_time if plugins else None,
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

    def plugin_library(self) -> Plugins:
        return plugin_library(self.flavour.load().__version__)

    def ahead_of_time_plugins(self) -> Plugins:
        return ahead_of_time_plugins()

    def batch_ranges(self, graph: GraphRecord, profile: HardwareProfile) -> tuple[tuple[int, int, int], ...]:
        """An optimization profile for each batch size, which takes what lies above the next smaller one."""
        if graph.batch is not None:
            return ()
        sizes = profile.batch.sizes
        return tuple((low + 1, size, size) for low, size in zip((0, *sizes), sizes, strict=False))

    def load(
        self,
        engine: Path,
        fingerprint: Fingerprint,
        *,
        graph_sha256: str,
        weights: Path,
        threads: int,
        memory: MemoryMode,
    ) -> TensorRtRunner:
        trt = self.flavour.load()
        check_fingerprint(engine, fingerprint, graph_sha256, self.name, trt.__version__)
        self.check_device(engine, fingerprint)
        log = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(log)
        if fingerprint.plugins is not None and plugin_kind(fingerprint.plugins) == "library":
            load_plugins(runtime, trt.__version__, engine, fingerprint.plugins)
        loaded: Any = runtime.deserialize_cuda_engine(engine.read_bytes())
        if loaded is None:
            raise BundleError(
                f"{self.name} {trt.__version__} refuses '{engine}'",
                "an engine that it built",
                f"run: ztdeploy finalize {engine.parent.parent}",
            )
        return TensorRtRunner(trt, loaded, (runtime, log))

    def load_noted(self, noted: Path, *, engine: Path, threads: int) -> Runner:
        return load_graph(noted, threads)

    def check_device(self, engine: Path, fingerprint: Fingerprint) -> None:
        """
        Raises:
            EngineMismatchError: built for another GPU.
        """
        here = device_label(open_device())
        if fingerprint.device != here:
            raise _mismatch(engine, f"for {fingerprint.device}", here)


class TensorRtRtxBackend(TensorRtBackend):
    """TensorRT-RTX: portable engines for desktop GPUs, finished by the runtime where they are loaded."""

    name = TENSORRT_RTX.name
    built_where: BuiltWhere = "anywhere"
    flavour: Flavour = TENSORRT_RTX

    def check_profile(self, profile: HardwareProfile) -> None:
        super().check_profile(profile)
        wanted = options_of(profile).compute_capabilities
        unknown = [capability for capability in wanted if capability not in self.flavour.capabilities]
        if unknown or not wanted:
            raise ProfileError(
                f"profile '{profile.name}' asks {self.name} for compute capability {unknown[0] if unknown else 'none'}",
                f"one or more of: {', '.join(self.flavour.capabilities)}",
                "correct compute_capabilities under [tensorrt], or use the backend tensorrt on the device itself",
            )
        if "7.5" in wanted and profile.precision != "fp16":
            raise ProfileError(
                f"profile '{profile.name}' asks {self.name} for {profile.precision} on compute capability 7.5",
                "fp16, the only type that it has matrix products of for that GPU",
                'set precision = "fp16", or leave 7.5 out of compute_capabilities',
            )

    def check_can_build(self, profile: HardwareProfile) -> None:
        self.check_profile(profile)
        self.flavour.load()

    def batch_ranges(self, graph: GraphRecord, profile: HardwareProfile) -> tuple[tuple[int, int, int], ...]:
        """One range for all: kernels are chosen for the batch at hand when the engine runs."""
        sizes = profile.batch.sizes
        return () if graph.batch is not None else ((1, sizes[-1], sizes[-1]),)

    def check_device(self, engine: Path, fingerprint: Fingerprint) -> None:
        device = open_device()
        if f"sm_{device.capability.replace('.', '')}" not in fingerprint.device.split():
            raise _mismatch(engine, f"for {fingerprint.device}", device_label(device))


def options_of(profile: HardwareProfile) -> TensorRtOptions:
    return profile.tensorrt or TensorRtOptions()


def check_capabilities(profile: HardwareProfile) -> None:
    """
    Raises:
        ProfileError: a compute capability that nobody knows.
    """
    for capability in options_of(profile).compute_capabilities:
        if capability not in KNOWN_CAPABILITIES:
            raise ProfileError(
                f"profile '{profile.name}' has the compute capability '{capability}'",
                "one that NVIDIA sells",
                did_you_mean(capability, KNOWN_CAPABILITIES),
            )


def check_fingerprint(engine: Path, built: Fingerprint, graph_sha256: str, runtime: str, version: str) -> None:
    """
    Raises:
        EngineMismatchError: another graph, runtime or version.
    """
    if built.graph_sha256 != graph_sha256:
        raise _mismatch(engine, "from another graph", "an engine of this bundle's graph")
    if (built.runtime, built.runtime_version) != (runtime, version):
        raise _mismatch(engine, f"by {built.runtime} {built.runtime_version}", f"{runtime} {version}, which is here")


def _mismatch(engine: Path, built: str, expected: str) -> EngineMismatchError:
    return EngineMismatchError(
        f"engine '{engine.name}' was built {built}", expected, f"run: ztdeploy finalize {engine.parent.parent}"
    )
