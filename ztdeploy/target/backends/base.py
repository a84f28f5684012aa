"""What every backend offers: build an engine from a graph, load an engine, run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from ztdeploy.core.errors import BundleError, EngineMismatchError, ProfileError
from ztdeploy.core.manifest import Fingerprint, GraphRecord
from ztdeploy.core.profile import HardwareProfile, Int8Options, Precision
from ztdeploy.core.text import first_line

#: "speed": each open engine repacks its weights for its kernels. "shared": all open engines read one copy.
MemoryMode = Literal["speed", "shared"]
#: "anywhere": engines for other machines can be built, too. "device": only the machine that runs them can build them.
BuiltWhere = Literal["anywhere", "device"]
Array = NDArray[Any]


@dataclass(frozen=True)
class BuiltEngine:
    """A fresh engine on disk; weights that did not fit inside it lie in `weights`, if anywhere."""

    file: Path
    weights: Path | None
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Plugins:
    """The compiled plugins of the installed package."""

    identity: str  #: of the sources and versions that they were compiled from; goes into the fingerprint
    library: Path | None = None
    ahead_of_time: AheadOfTime | None = None


@dataclass(frozen=True)
class AheadOfTime:
    """Plugins as PTX inside the engine, instead of a library."""

    sm: str  #: such as "sm_87"
    max_isa: tuple[int, int]  #: the newest PTX that the device's driver reads


@dataclass(frozen=True)
class TensorFacts:
    """What a runtime says of an input or output of an engine."""

    name: str
    dtype: str  #: as NumPy calls it, or the runtime's own word for what NumPy has no type for
    shape: tuple[int | None, ...]  #: None: any length


@dataclass(frozen=True)
class Signature:
    """What a runtime says of an engine's inputs and outputs."""

    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]


class Runner(Protocol):
    """An engine in memory. Any thread may call it; calls that its runtime cannot run side by side wait for another."""

    @property
    def signature(self) -> Signature:
        """What the engine takes and gives, by the runtime's own account."""

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; returns when the outputs are ready, by the graph's output names.

        Raises:
            BundleError: the runtime cannot run the engine on that.
        """

    def close(self) -> None:
        """Give the engine's memory back."""


@dataclass(frozen=True)
class NodeRun:
    """One node of an engine in one call."""

    name: str  #: of the graph's node, or one that the runtime made up for nodes that it merged
    operator: str
    ms: float
    inputs: tuple[tuple[int, ...], ...]  #: shapes
    outputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ProfiledCall:
    """One call, by the runtime's own account."""

    ms: float  #: as a whole
    nodes: tuple[NodeRun, ...]  #: in the order in which they ran, one after the other


class ProfiledRunner(Runner, Protocol):
    """An engine that takes the time of each of its nodes, which slows it down."""

    def finish(self) -> tuple[ProfiledCall, ...]:
        """Give the engine's memory back, and say what its calls did, in their order.

        Raises:
            EnvironmentLacksError: the runtime's account is not one that this version can read.
        """


class Insight(Protocol):
    """What a runtime can say about where time goes."""

    def load_profiled(
        self, engine: Path, fingerprint: Fingerprint, *, graph_sha256: str, threads: int, folder: Path
    ) -> ProfiledRunner:
        """Load an engine as `Backend.load` does; the runtime may leave files in `folder`.

        Raises:
            EngineMismatchError: as `Backend.load`.
        """

    def load_graph(self, graph: Path, *, threads: int) -> Runner:
        """Run a graph of which no engine was built, optimised as an engine is; its axes may be dynamic.

        Raises:
            BundleError: the runtime refuses the graph.
        """


class Backend(Protocol):
    """One runtime."""

    name: str
    suffix: str  #: of an engine's file
    built_where: BuiltWhere
    precisions: tuple[Precision, ...]

    @property
    def insight(self) -> Insight | None:
        """What looks into such engines; None where nothing can."""

    def check_profile(self, profile: HardwareProfile) -> None:
        """
        Raises:
            ProfileError: the runtime cannot do what the profile asks for, on any machine.
        """

    def check_can_build(self, profile: HardwareProfile) -> None:
        """Cheap, and before anything is traced.

        Raises:
            EnvironmentLacksError: this machine lacks what building takes.
            ProfileError: as `check_profile`.
        """

    def check_can_run(self, profile: HardwareProfile) -> None:
        """
        Raises:
            EnvironmentLacksError: this machine cannot run such engines.
        """

    def plugin_library(self) -> Plugins:
        """The compiled plugins that graphs with plugin nodes need.

        Raises:
            EnvironmentLacksError: this machine cannot compile them.
        """

    def ahead_of_time_plugins(self) -> Plugins:
        """The same as PTX, for graphs with nodes for such plugins.

        Raises:
            EnvironmentLacksError: the runtime or this machine's NVRTC is too old for it, or not there.
        """

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
        """Build an engine for a graph, written to `out`.

        Args:
            plugins: what the graph's plugin nodes need.
            timing_cache: what earlier builds measured; read and written where the runtime measures while it builds.
        """

    def load(
        self,
        engine: Path,
        fingerprint: Fingerprint,
        *,
        graph_sha256: str,
        weights: Path,
        threads: int,
        memory: MemoryMode,
    ) -> Runner:
        """Load an engine.

        Args:
            engine: its file.
            fingerprint: what it was bound to when it was built.
            graph_sha256: the digest of the graph that the bundle holds for it.
            weights: the bundle's shared weights file.

        Raises:
            EngineMismatchError: built by another runtime version, for another device, or from another graph.
        """

    def load_noted(self, noted: Path, *, engine: Path, threads: int) -> Runner:
        """Run an engine's graph with its notes as outputs, as much as the engine does as is possible without building
        another: in its own runtime, or else in ONNX Runtime.

        Raises:
            BundleError: the runtime refuses the graph.
        """


def refused(runtime: str, error: Exception) -> BundleError:
    """The error of a call that a runtime refused. Its own classes tell damage and lack of memory badly apart."""
    return BundleError(
        f"{runtime} cannot run the engine: {first_line(error)}",
        "an engine as built, and memory for so many images",
        "give fewer images at a time, or run: ztdeploy verify",
    )


def check_precision(backend: Backend, profile: HardwareProfile) -> None:
    """
    Raises:
        ProfileError: the profile asks for a precision that the backend has no engines for.
    """
    if profile.precision not in backend.precisions:
        raise ProfileError(
            f"profile '{profile.name}' asks for {profile.precision} with the backend {backend.name}",
            f"precision {' or '.join(backend.precisions)}",
            "set 'precision' in the profile, or choose another backend",
        )


def check_activations(backend: Backend, profile: HardwareProfile, kinds: tuple[str, ...]) -> None:
    """
    Args:
        kinds: of `Int8Options.activations` that the backend has engines for.

    Raises:
        ProfileError: the profile asks for int8 activations of the other kind.
    """
    if profile.precision == "int8" and (profile.int8 or Int8Options()).activations not in kinds:
        raise ProfileError(
            f"profile '{profile.name}' asks for other int8 activations than the backend {backend.name} has",
            f"int8.activations {' or '.join(kinds)}",
            "set 'activations' under [int8] in the profile, or choose another backend",
        )


def check_fingerprint(engine: Path, built: Fingerprint, here: Fingerprint) -> None:
    """For engines that hold on every CPU: the device is not compared.

    Raises:
        EngineMismatchError: another runtime version, or another graph.
    """
    if built.graph_sha256 != here.graph_sha256:
        raise EngineMismatchError(
            f"engine '{engine.name}' was built from another graph",
            "an engine of this bundle's graph",
            f"run: ztdeploy finalize {engine.parent.parent}",
        )
    if (built.runtime, built.runtime_version) != (here.runtime, here.runtime_version):
        raise EngineMismatchError(
            f"engine '{engine.name}' was built by {built.runtime} {built.runtime_version}",
            f"{here.runtime} {here.runtime_version}, which is installed here",
            f"run: ztdeploy finalize {engine.parent.parent}",
        )
