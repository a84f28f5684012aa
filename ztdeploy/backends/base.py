"""What every backend offers: build an engine from a graph, load an engine, run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from ztdeploy.manifest import Fingerprint, GraphRecord
from ztdeploy.profile import HardwareProfile

#: "speed": each open engine repacks its weights for its kernels. "shared": all open engines read one copy.
MemoryMode = Literal["speed", "shared"]
Array = NDArray[Any]


@dataclass(frozen=True)
class BuiltEngine:
    """A fresh engine on disk; weights that did not fit inside it lie in `weights`, if anywhere."""

    file: Path
    weights: Path | None
    fingerprint: Fingerprint


class Runner(Protocol):
    """An engine in memory."""

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; returns when the outputs are ready, by the graph's output names."""

    def close(self) -> None:
        """Give the engine's memory back."""


class Backend(Protocol):
    """One runtime."""

    name: str

    def build(self, graph: Path, graph_record: GraphRecord, profile: HardwareProfile, out: Path) -> BuiltEngine:
        """Build an engine for a graph, written to `out`."""

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
