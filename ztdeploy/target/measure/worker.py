"""The process in which one engine is timed; nothing else runs in it.

Started by `measure.latency`; reads one `protocol.Order` per line on standard input, answers with one `protocol.Answer`,
and ends when its input does. Several ONNX Runtime sessions in one process spin against each other, so every
configuration has a process of its own.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from ztdeploy.target.measure.protocol import Answer, Order

T = TypeVar("T")
_started_ns = time.monotonic_ns()


def main() -> None:
    """Load one engine, say how long that took, then time calls as ordered until standard input ends."""
    answers = prepare()
    bundle, variant, profile, threads, batch, *ordered_ns = sys.argv[1:]
    import numpy as np

    from ztdeploy.target.runtime.runner import BundleRunner, load

    imported_ns = time.monotonic_ns()

    def start() -> BundleRunner:
        return load(bundle, variant=variant, profile=profile, threads=int(threads) or None, verify=False)

    def call_of(runner: BundleRunner) -> Callable[[], object]:
        shape = runner.bundle.manifest.preprocess.shape
        # The time of an engine with static shapes does not depend on what the pixels are.
        pixels = np.random.default_rng(0).integers(0, 256, (int(batch), *shape), dtype=np.uint8)
        return lambda: runner.infer(pixels)

    serve(answers, start, call_of, imported_ns=imported_ns, ordered_ns=int(ordered_ns[0]) if ordered_ns else None)


def prepare() -> TextIO:
    """What a worker does first: leave Ctrl-C to its parent, which closes our input, and keep its output to itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from ztdeploy.core.processes import own_standard_output

    return own_standard_output()


def serve(
    answers: TextIO,
    start: Callable[[], T],
    call_of: Callable[[T], Callable[[], object]],
    *,
    imported_ns: int,
    ordered_ns: int | None,
) -> None:
    """Speak `measure.protocol`: load, call once, say how long that took or why it failed; then time calls.

    Args:
        start: loads an engine; its time is reported.
        call_of: makes the call that is timed of it.
        imported_ns, ordered_ns: when imports ended, and when the process was ordered, by the monotonic clock.
    """
    from ztdeploy.core.errors import ZtdeployError
    from ztdeploy.core.records import from_json, to_json
    from ztdeploy.target.measure.protocol import ColdStart, Hello, Order, Refusal

    begun_ns = time.monotonic_ns()
    try:
        engine = start()
        loaded_ns = time.monotonic_ns()
        call = call_of(engine)
        before_ns = time.monotonic_ns()
        call()
        first_ns = time.monotonic_ns() - before_ns
    except ZtdeployError as error:
        refusal = Refusal(kind=type(error).__name__, given=error.given, expected=error.expected, fix=error.fix)
        _say(answers, to_json(Hello(refusal=refusal)))
        return
    ready = ColdStart(
        process_ms=None if ordered_ns is None else _ms(_started_ns - ordered_ns),
        import_ms=_ms(imported_ns - _started_ns),
        load_ms=_ms(loaded_ns - begun_ns),
        first_ms=_ms(first_ns),
    )
    _say(answers, to_json(Hello(ready=ready)))
    for line in sys.stdin:
        _say(answers, to_json(_obey(from_json(Order, line), call)))


def _obey(order: Order, call: Callable[[], object]) -> Answer:
    from ztdeploy.core.processes import peak_rss_mb
    from ztdeploy.target.measure.board import jetson_gpu_clock
    from ztdeploy.target.measure.environment import read_clocks, usable_cores
    from ztdeploy.target.measure.protocol import Answer

    for _ in range(order.lead_in):
        call()
    samples = _time(call, order)
    gpu = jetson_gpu_clock()
    return Answer(
        samples_ms=samples,
        peak_rss_mb=peak_rss_mb(),
        clock_mhz=max(read_clocks(usable_cores()).values(), default=None),
        gpu_clock_mhz=gpu[0] if gpu else None,
    )


def _time(call: Callable[[], object], order: Order) -> list[float]:
    """Milliseconds per call."""
    samples: list[float] = []
    now = time.monotonic_ns()
    until = now + int(1e9 * (order.seconds or 0))
    while len(samples) < (order.iterations or 1) or (order.iterations is None and now < until):
        before = time.monotonic_ns()
        call()
        now = time.monotonic_ns()
        samples.append(_ms(now - before))
    return samples


def _say(answers: TextIO, line: str) -> None:
    answers.write(line + "\n")
    answers.flush()


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 4)


if __name__ == "__main__":
    main()
