"""What the measuring process and a worker say to each other, one line of JSON at a time."""

from __future__ import annotations

from pydantic import Field

from ztdeploy.core.records import Record


class ColdStart(Record):
    """From nothing to the first result, in milliseconds; one start, with files in the page cache or not, as it was."""

    process_ms: float | None  #: from the order to start a process to the first line of Python; None: nobody said when
    import_ms: float  #: of NumPy, the runtime and ztdeploy
    load_ms: float  #: of the engine, its hashes not checked
    first_ms: float  #: the first call, which may still allocate

    @property
    def total_ms(self) -> float:
        return (self.process_ms or 0.0) + self.import_ms + self.load_ms + self.first_ms


class Refusal(Record):
    """Why a worker could not load its engine: one of our own errors."""

    kind: str  #: the name of its class
    given: str
    expected: str
    fix: str


class Hello(Record):
    """A worker's first line: one of the two."""

    ready: ColdStart | None = None
    refusal: Refusal | None = None


class Order(Record):
    """Time calls: a number of them, or for some seconds but at least one."""

    iterations: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, ge=0)
    lead_in: int = Field(default=0, ge=0)  #: calls ahead of these that are not counted


class Answer(Record):
    """What came out of an order."""

    samples_ms: list[float]
    peak_rss_mb: float  #: since the worker started, megabytes of 10^6 bytes
    clock_mhz: float | None  #: of the fastest usable core, right after the last call
    gpu_clock_mhz: float | None  #: likewise, on a Jetson
