"""The backend seam: facts about a runtime, and functions that build, load and run its engines.

A new backend takes one file with a class that derives from `Backend`, one line in the table `backends.BACKENDS`, and an
extra in pyproject.toml that installs its runtime. Abilities of only some runtimes are protocols of their own below;
code that needs one asks `isinstance(backend, Insight)`. No code outside this folder compares a backend's name.
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
#: "board": of operators that the oldest TensorRT of boards reads. "turing": of products that Turing GPUs have. "rows":
#: linear layers take the rows of all images at once.
GraphForm = Literal["plain", "board", "turing", "rows"]
Array = NDArray[Any]


@dataclass(frozen=True)
class BuiltEngine:
    """A fresh engine on disk; `weights` holds weights that did not fit inside it."""

    file: Path
    weights: Path | None
    fingerprint: Fingerprint


@dataclass(frozen=True)
class StoredEngine:
    """An engine on disk to load, and the facts that it is checked against."""

    file: Path
    fingerprint: Fingerprint  #: what it was bound to when it was built
    graph_sha256: str  #: the digest of the graph that lies beside it now
    weights: Path  #: the bundle's shared weights file


@dataclass(frozen=True)
class TensorFacts:
    """An input or output of an engine, as the runtime reports it."""

    name: str
    dtype: str  #: NumPy's name of the type, or the runtime's own where NumPy has none
    shape: tuple[int | None, ...]  #: None: any length


@dataclass(frozen=True)
class Signature:
    """An engine's inputs and outputs, as the runtime reports them."""

    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]


@dataclass(frozen=True)
class InTriton:
    """How Triton Inference Server's back end of a runtime, which has the backend's name, runs models."""

    model: str = "model.onnx"  #: what the file of a model is called
    takes_engines: bool = False  #: it runs engines as they were built on the machine; otherwise graphs
    kind: Literal["KIND_CPU", "KIND_GPU"] = "KIND_CPU"  #: where instances run
    joins: bool = True  #: it runs batches of any size up to the largest; otherwise it would fill all up to the largest
    threads: str = ""  #: the parameter for the number of threads; "": there is none
    parameters: tuple[tuple[str, str], ...] = ()
    optimization_profiles: int = 0  #: of an engine, all of which an instance has to load; 0: engines have none
    notes: tuple[str, ...] = ()  #: what differs from the engine in the bundle


class Runner(Protocol):
    """An engine in memory. Any thread may call it; where the runtime cannot run calls in parallel, they wait."""

    @property
    def signature(self) -> Signature:
        """The engine's inputs and outputs, as the runtime reports them."""

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; returns when the outputs are ready, by the graph's output names.

        Raises:
            BundleError: the runtime cannot run the engine with these inputs.
        """

    def close(self) -> None:
        """Free the engine's memory."""


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`."""

    subject: str
    state: Literal["ok", "missing", "note"]
    found: str
    remedy: str = ""


class Backend(ABC):
    """One runtime. Its differences from others are data; the defaults suit most runtimes."""

    name: ClassVar[str]  #: its name in profiles and in the table
    module: ClassVar[str]  #: the runtime's Python module
    suffix: ClassVar[str]  #: suffix of an engine's file
    extra: ClassVar[str] = ""  #: ztdeploy's extra that installs the runtime; "": there is none
    distributions: ClassVar[tuple[str, ...]] = ()  #: packages whose versions builds and measurements are recorded with
    built_where: ClassVar[BuiltWhere] = "anywhere"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    activations: ClassVar[tuple[str, ...]] = ()  #: the kinds of int8 activations that it runs, see `Int8Options`
    #: For int8 activations by row: numbers of neighbouring values of a token that may share a scale. Fewer are slower.
    row_groups: ClassVar[tuple[int, ...]] = ()
    threaded: ClassVar[bool] = True  #: engines run on the CPU and take a number of threads
    shares_weights: ClassVar[bool] = False  #: engines without weights of their own read the bundle's weights file
    concurrent: ClassVar[bool] = False  #: one engine runs calls from several threads side by side
    spins: ClassVar[bool] = False  #: threads of an engine that wait for each other keep their cores busy
    fused_attention: ClassVar[bool] = False  #: it has the operator that `fused_attention_from` asks for
    tensorrt_operators: ClassVar[bool] = False  #: graphs may only use operators that TensorRT has
    trtexec: ClassVar[bool] = False  #: people may build its engines by hand with trtexec, on boards without Python

    def runtime(self) -> Any:
        """Import the runtime.

        Raises:
            MissingExtraError: it is not installed.
            EnvironmentLacksError: it is installed, but its libraries cannot be loaded.
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
        """A context for the import of the runtime."""
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
        """A cheap check ahead of tracing.

        Raises:
            EnvironmentLacksError: this machine cannot build such engines.
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
        """The checks of `doctor` for this runtime, by subject."""
        return {f"backend {self.name}": self.examine}

    def examine(self) -> Finding:
        """The lines of `doctor` about the runtime on this machine."""
        subject = f"backend {self.name}"
        try:
            return Finding(subject, "ok", self.describe())
        except MissingExtraError as error:
            return Finding(subject, "note", "not installed", error.fix.removeprefix("run: "))
        except EnvironmentLacksError as error:
            return Finding(subject, "missing", error.given, error.fix)

    def describe(self) -> str:
        """The runtime's version and abilities on this machine, in a few words; raises as `runtime`."""
        return self.version()

    def in_triton(self, profile: HardwareProfile) -> InTriton | None:
        """How Triton runs a profile's engines or graphs; None where it cannot."""
        return None

    def fingerprint(self, graph_sha256: str) -> Fingerprint:
        """The fingerprint of an engine that is built here for the CPU."""
        device = f"cpu-{platform.machine()}"
        return Fingerprint(graph_sha256=graph_sha256, runtime=self.name, runtime_version=self.version(), device=device)

    def check_fingerprint(self, engine: StoredEngine) -> None:
        """Compare an engine's graph and runtime version with those here; the device is not compared.

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
    """A backend whose own runtime runs graphs with notes; for other backends ONNX Runtime runs them."""

    def load_noted(self, noted: Path, *, engine: Path, threads: int) -> Runner:
        """Run an engine's graph with its notes as outputs, as similar to the engine as possible without building
        another.

        Raises:
            BundleError: the runtime refuses the graph.
        """


@runtime_checkable
class RunsInServers(Protocol):
    """A backend whose runtime computes a graph as its options say; other runtimes compute it as it is."""

    def server_options(self, engine: Path, threads: int) -> dict[str, str | int]:
        """The options with which a server computes as an engine of the bundle does.

        Raises:
            BundleError: the file is no engine.
        """

    def load_as_served(self, graph: Path, *, engine: Path, threads: int) -> Runner:
        """Run an exported graph as a server with these options does.

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
    """A backend whose engines may hold compiled plugins, and whose builds measure kernels."""

    def plugin_library(self) -> Plugins:
        """The compiled plugins that graphs with plugin nodes need.

        Raises:
            EnvironmentLacksError: this machine cannot compile them.
        """

    def library_of(self, identity: str) -> Path:
        """Where the compiled plugins of an engine's fingerprint lie, once this user has compiled them."""

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
            plugins: the compiled plugins of the graph's plugin nodes.
            timing_cache: measurements of earlier builds; it is read if it exists, and written.
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
    """One call, as the runtime reports it."""

    ms: float  #: as a whole
    nodes: tuple[NodeRun, ...]  #: in the order in which they ran, one after the other


class ProfiledRunner(Runner, Protocol):
    """An engine that measures the time of each of its nodes, which slows it down."""

    def finish(self) -> tuple[ProfiledCall, ...]:
        """Free the engine's memory, and return its calls in their order.

        Raises:
            EnvironmentLacksError: the runtime's report has an unknown form.
        """


@runtime_checkable
class Insight(Protocol):
    """A backend whose runtime reports the time of each node."""

    def load_profiled(self, engine: StoredEngine, *, threads: int, folder: Path) -> ProfiledRunner:
        """Load an engine as `Backend.load` does; the runtime may leave files in `folder`.

        Raises:
            EngineMismatchError: as `Backend.load`.
        """

    def load_graph(self, graph: Path, *, threads: int) -> Runner:
        """Run a graph without an engine, optimised like one; its axes may be dynamic.

        Raises:
            BundleError: the runtime refuses the graph.
        """


# -------------------- what backends share


def widest_group(widths: Sequence[int], groups: tuple[int, ...]) -> int:
    """The largest of a backend's `row_groups` that divides the inputs of all int8 products: activations of the others
    would stay fp32, which is right and slow; so it is where none does."""
    return next((group for group in groups if not any(width % group for width in widths)), groups[-1])


def refused(runtime: str, error: Exception) -> BundleError:
    """The error of a refused call. The runtime's own classes hardly distinguish damage from lack of memory."""
    return BundleError(
        f"{runtime} cannot run the engine: {first_line(error)}",
        "an engine as built, and memory for so many images",
        "give fewer images at a time, or run: ztdeploy verify",
    )


def mismatch(engine: Path, built: str, expected: str) -> EngineMismatchError:
    """The error of an engine that was built for something else."""
    return EngineMismatchError(
        f"engine '{engine.name}' was built {built}", expected, f"run: ztdeploy finalize {engine.parent.parent}"
    )
