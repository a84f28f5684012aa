"""An engine in memory that several threads use, and that is closed once none of them does."""

from __future__ import annotations

from threading import Lock

from ztdeploy.core.manifest import GraphRecord, VariantRecord
from ztdeploy.target.backends.base import Runner
from ztdeploy.target.runtime.interface import Interface


class OpenEngine:
    """All that a call must know of an engine, so that it needs to look nothing up while others switch.

    Calls enter and leave. Once retired, nobody enters any more, and whoever leaves last closes the engine.
    """

    def __init__(self, variant: VariantRecord, graph: GraphRecord, interface: Interface, runner: Runner) -> None:
        self.variant, self.graph, self.interface, self.runner = variant, graph, interface, runner
        self._lock, self._calls, self._retired = Lock(), 0, False

    def enter(self) -> bool:
        """Whether a call may use it; whoever got True must leave."""
        with self._lock:
            self._calls += not self._retired
            return not self._retired

    def leave(self) -> None:
        with self._lock:
            self._calls -= 1
            last = self._retired and not self._calls
        if last:
            self.runner.close()

    def retire(self) -> None:
        """Let no further call in, and close the engine when the last one has left. Once is enough."""
        with self._lock:
            last = not self._retired and not self._calls
            self._retired = True
        if last:
            self.runner.close()
