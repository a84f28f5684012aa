"""What is asked of the process that builds an engine, and what it answers; both travel as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ztdeploy.target.backends.base import AheadOfTime

#: Why no engine came out. "memory" is worth another try with less workspace.
Failure = Literal["parse", "plugin", "capability", "memory", "build"]


class BuildOrder(BaseModel):
    """One engine to build. Paths are absolute."""

    model_config = ConfigDict(frozen=True)

    flavour: str
    graph: str
    engine: str
    batches: tuple[tuple[int, int, int], ...]  #: smallest, best and largest batch per optimization profile; () if fixed
    workspace_mib: int
    compute_capabilities: tuple[str, ...] = ()  #: empty: the GPU at hand
    plugin_library: str | None = None
    ahead_of_time: AheadOfTime | None = None
    timing_cache: str | None = None  #: read where it exists, and written


class BuildAnswer(BaseModel):
    """What the process has to say, if it lives to say it."""

    model_config = ConfigDict(frozen=True)

    failure: Failure | None = None
    messages: tuple[str, ...] = ()  #: the runtime's errors, in its order
    runtime_version: str = ""
    device: str = ""
    seconds: float = 0.0
    peak_rss_mb: float = 0.0
