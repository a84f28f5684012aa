"""What a backend is: facts about a runtime, and how to build an engine of a graph, load it and run it.

A new backend takes one file with a class that derives from `Backend`, one line in the table `backends.BACKENDS`, and an
extra in pyproject.toml that installs its runtime. What only some runtimes have is a protocol of its own below; code
that needs it asks `isinstance(backend, Insight)`. No code outside this folder compares a backend's name.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from numpy.typing import NDArray

from ztdeploy.core.errors import (
    BundleError,
    EngineMismatchError,
    EnvironmentLacksError,
    MissingExtraError,
    ProfileError,
)
from ztdeploy.core.manifest import Fingerprint, GraphRecord
from ztdeploy.core.processor import Processor, processor
from ztdeploy.core.profile import HardwareProfile, Int8Options, Precision
from ztdeploy.core.text import first_line

#: "speed": each open engine repacks its weights for its kernels. "shared": all open engines read one copy.
MemoryMode = Literal["speed", "shared"]
#: "anywhere": engines for other machines can be built, too. "device": only the machine that runs them can build them.
BuiltWhere = Literal["anywhere", "device"]
#: "board": of operators that the oldest TensorRT of boards reads. "turing": of products that Turing GPUs have.
GraphForm = Literal["plain", "board", "turing"]
Array = NDArray[Any]


@dataclass(frozen=True)
class BuiltEngine:
    """A fresh engine on disk; weights that did not fit inside it lie in `weights`, if anywhere."""

    file: Path
    weights: Path | None
    fingerprint: Fingerprint


@dataclass(frozen=True)
class StoredEngine:
    """An engine on disk that is to be loaded, and what it is checked against."""

    file: Path
    fingerprint: Fingerprint  #: what it was bound to when it was built
    graph_sha256: str  #: the digest of the graph that lies beside it now
    weights: Path  #: the bundle's shared weights file


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
class Finding:
    """What `doctor` says about one thing on this machine."""

    subject: str
    state: Literal["ok", "missing", "note"]
    found: str
    remedy: str = ""


class Backend(ABC):
    """One runtime. What distinguishes it from others is data; the defaults are what most runtimes are like."""

    name: ClassVar[str]  #: what profiles call it: the name of its line in the table
    module: ClassVar[str]  #: the runtime's Python module
    suffix: ClassVar[str]  #: of an engine's file
    extra: ClassVar[str] = ""  #: of ztdeploy, which installs the runtime; "": ztdeploy does not come with one
    distributions: ClassVar[tuple[str, ...]] = ()  #: packages whose versions builds and measurements are recorded with
    built_where: ClassVar[BuiltWhere] = "anywhere"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    activations: ClassVar[tuple[str, ...]] = ()  #: the kinds of int8 activations that it runs, see `Int8Options`
    #: Of int8 activations by row: how many neighbouring values of a token may share a scale. The fewer, the slower.
    row_groups: ClassVar[tuple[int, ...]] = ()
    threaded: ClassVar[bool] = True  #: engines run on the CPU, in as many threads as they are told
    shares_weights: ClassVar[bool] = False  #: engines without weights of their own read the bundle's weights file
    concurrent: ClassVar[bool] = False  #: one engine runs calls from several threads side by side
    spins: ClassVar[bool] = False  #: threads of an engine that wait for each other keep their cores busy
    fused_attention: ClassVar[bool] = False  #: it has the operator that `fused_attention_from` asks for
    tensorrt_operators: ClassVar[bool] = False  #: graphs must do with the operators that TensorRT has
    trtexec: ClassVar[bool] = False  #: people build its engines by hand with trtexec, on boards without Python

    def runtime(self) -> Any:
        """Import the runtime.

        Raises:
            MissingExtraError: it is not installed.
            EnvironmentLacksError: it is, but its libraries cannot be loaded.
        """
        if self.extra and find_spec(self.module) is None:
            raise MissingExtraError(self.module, self.extra, f"the backend {self.name}")
        try:
            with self.importing():
                return import_module(self.module)
        except (ImportError, OSError) as error:
            package = f"ztdeploy[{self.extra}]" if self.extra else (*self.distributions, self.module)[0]
            raise EnvironmentLacksError(
                f"'{self.module}' cannot be loaded ({error})",
                "its libraries beside it",
                f"run: pip install --force-reinstall '{package}'",
            ) from error

    def version(self) -> str:
        """The runtime's version, which engines are bound to; raises as `runtime`."""
        return str(self.runtime().__version__).partition("-")[0]

    def importing(self) -> AbstractContextManager[object]:
        """What must be so while the runtime is imported."""
        return nullcontext()

    def processor(self) -> Processor:
        """The processor here, as the runtime's kernels see it."""
        return processor()

    def graph_form(self, profile: HardwareProfile) -> GraphForm:
        """The form of graph that a profile's engines are built from."""
        return "plain"

    def check_profile(self, profile: HardwareProfile) -> None:
        """
        Raises:
            ProfileError: the runtime cannot do what the profile asks for, on any machine.
        """
        if profile.precision not in self.precisions:
            raise ProfileError(
                f"profile '{profile.name}' asks for {profile.precision} with the backend {self.name}",
                f"precision {' or '.join(self.precisions)}",
                "set 'precision' in the profile, or choose another backend",
            )
        if profile.precision == "int8" and (profile.int8 or Int8Options()).activations not in self.activations:
            raise ProfileError(
                f"profile '{profile.name}' asks for other int8 activations than the backend {self.name} has",
                f"int8.activations {' or '.join(self.activations)}",
                "set 'activations' under [int8] in the profile, or choose another backend",
            )
        if profile.fused_attention_from is not None and not self.fused_attention:
            raise ProfileError(
                f"profile '{profile.name}' sets fused_attention_from with the backend {self.name}",
                "a backend that has one operator for attention, such as onnxruntime",
                "leave 'fused_attention_from' out of the profile, or choose another backend",
            )

    def check_can_build(self, profile: HardwareProfile) -> None:
        """Cheap, and before anything is traced.

        Raises:
            EnvironmentLacksError: this machine lacks what building takes.
            ProfileError: as `check_profile`.
        """
        self.check_profile(profile)
        self.runtime()

    def check_can_run(self, profile: HardwareProfile) -> None:
        """
        Raises:
            EnvironmentLacksError: this machine cannot run such engines.
        """
        self.runtime()

    def probes(self) -> dict[str, Callable[[], Finding]]:
        """What `doctor` looks at for this runtime, by the subject of what each finds."""
        return {f"backend {self.name}": self.examine}

    def examine(self) -> Finding:
        """What `doctor` says about the runtime on this machine."""
        subject = f"backend {self.name}"
        try:
            return Finding(subject, "ok", self.describe())
        except MissingExtraError as error:
            return Finding(subject, "note", "not installed", error.fix.removeprefix("run: "))
        except EnvironmentLacksError as error:
            return Finding(subject, "missing", error.given, error.fix)

    def describe(self) -> str:
        """The runtime's version, and what it can do on this machine, in a few words; raises as `runtime`."""
        return self.version()

    def fingerprint(self, graph_sha256: str) -> Fingerprint:
        """What an engine is bound to that is built here for the CPU."""
        device = f"cpu-{platform.machine()}"
        return Fingerprint(graph_sha256=graph_sha256, runtime=self.name, runtime_version=self.version(), device=device)

    def check_fingerprint(self, engine: StoredEngine) -> None:
        """Compare what an engine was built from and by with what is here, but for the device.

        Raises:
            EngineMismatchError: another runtime version, or another graph.
        """
        built, version = engine.fingerprint, self.version()
        if built.graph_sha256 != engine.graph_sha256:
            raise mismatch(engine.file, "from another graph", "an engine of this bundle's graph")
        if (built.runtime, built.runtime_version) != (self.name, version):
            found = f"by {built.runtime} {built.runtime_version}"
            raise mismatch(engine.file, found, f"{self.name} {version}, which is installed here")

    @abstractmethod
    def build(self, graph: Path, graph_record: GraphRecord, profile: HardwareProfile, out: Path) -> BuiltEngine:
        """Build an engine for a graph, written to `out`."""

    @abstractmethod
    def load(self, engine: StoredEngine, *, threads: int, memory: MemoryMode) -> Runner:
        """Load an engine.

        Raises:
            EngineMismatchError: built by another runtime version, for another device, or from another graph.
        """


# -------------------- what only some backends have


@runtime_checkable
class RunsNotes(Protocol):
    """Its own runtime runs a graph with notes. Of other backends, ONNX Runtime does."""

    def load_noted(self, noted: Path, *, engine: Path, threads: int) -> Runner:
        """Run an engine's graph with its notes as outputs, as much as the engine does as is possible without building
        another.

        Raises:
            BundleError: the runtime refuses the graph.
        """


@dataclass(frozen=True)
class Plugins:
    """The compiled plugins of the installed package."""

    identity: str  #: of the sources and versions that they were compiled from; goes into the fingerprint
    library: Path


@runtime_checkable
class TakesPlugins(Protocol):
    """Its engines may hold compiled plugins, and building one measures kernels."""

    def plugin_library(self) -> Plugins:
        """The compiled plugins that graphs with plugin nodes need.

        Raises:
            EnvironmentLacksError: this machine cannot compile them.
        """

    def build_with(
        self,
        graph: Path,
        graph_record: GraphRecord,
        profile: HardwareProfile,
        out: Path,
        *,
        plugins: Plugins | None,
        timing_cache: Path | None,
    ) -> BuiltEngine:
        """Build an engine as `Backend.build` does.

        Args:
            plugins: what the graph's plugin nodes need.
            timing_cache: what earlier builds measured; read where it exists, and written.
        """


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


@runtime_checkable
class Insight(Protocol):
    """The runtime says where time goes."""

    def load_profiled(self, engine: StoredEngine, *, threads: int, folder: Path) -> ProfiledRunner:
        """Load an engine as `Backend.load` does; the runtime may leave files in `folder`.

        Raises:
            EngineMismatchError: as `Backend.load`.
        """

    def load_graph(self, graph: Path, *, threads: int) -> Runner:
        """Run a graph of which no engine was built, optimised as an engine is; its axes may be dynamic.

        Raises:
            BundleError: the runtime refuses the graph.
        """


# -------------------- what backends share


def widest_group(widths: Sequence[int], groups: tuple[int, ...]) -> int:
    """The largest of a backend's `row_groups` that divides the inputs of all int8 products: activations of the others
    would stay fp32, which is right and slow; so it is where none does."""
    return next((group for group in groups if not any(width % group for width in widths)), groups[-1])


def refused(runtime: str, error: Exception) -> BundleError:
    """The error of a call that a runtime refused. Its own classes tell damage and lack of memory badly apart."""
    return BundleError(
        f"{runtime} cannot run the engine: {first_line(error)}",
        "an engine as built, and memory for so many images",
        "give fewer images at a time, or run: ztdeploy verify",
    )


def mismatch(engine: Path, built: str, expected: str) -> EngineMismatchError:
    """The error of an engine that was built otherwise than is expected here."""
    return EngineMismatchError(
        f"engine '{engine.name}' was built {built}", expected, f"run: ztdeploy finalize {engine.parent.parent}"
    )
