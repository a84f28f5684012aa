"""The process in which one engine is timed; nothing else runs in it.

Started by `measure.orders.Worker`. It says how it started, then answers each `TimingOrder` on standard input with a
`Timing`, and ends when its input does. `serve` and `reply` are for other such processes.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ztdeploy.target.adaptive.cascade import CascadeRunner
    from ztdeploy.target.measure.orders import Timing, TimingOrder
    from ztdeploy.target.runtime.runner import BundleRunner

T = TypeVar("T")
_started_ns = time.monotonic_ns()


def main() -> None:
    """Load one engine, say how long that took, then time calls as ordered until standard input ends."""
    answers = prepare()
    bundle, variant, profile, threads, batch, images = sys.argv[1:7]
    ordered_ns, count = int(sys.argv[7]) if sys.argv[7:] else None, int(threads) or None
    if images:
        from ztdeploy.target.adaptive.opening import load

        imported_ns = time.monotonic_ns()
        serve(
            answers,
            lambda: load(bundle, cascade=True, profile=profile, threads=count, verify=False),
            lambda runner: _call_on_images(runner, images, int(batch)),
            imported_ns=imported_ns,
            ordered_ns=ordered_ns,
            answered_by=lambda runner: runner.counts,
        )
        return
    from ztdeploy.target.runtime.runner import load_engine

    imported_ns = time.monotonic_ns()
    serve(
        answers,
        lambda: load_engine(bundle, variant=variant, profile=profile, threads=count, verify=False),
        lambda runner: _call_on_noise(runner, int(batch)),
        imported_ns=imported_ns,
        ordered_ns=ordered_ns,
    )


def _call_on_noise(runner: BundleRunner, batch: int) -> Callable[[], object]:
    """The call of an engine with static shapes, whose time does not depend on what the pixels are."""
    import numpy as np

    shape = runner.bundle.manifest.preprocess.shape
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8)
    return lambda: runner.infer(pixels)


def _call_on_images(runner: CascadeRunner, data: str, batch: int) -> Callable[[], object]:
    """The call of a cascade, with other images each time: all of them in a shuffled order, over and over. They are
    decoded and lie in memory, a batch at a time, so that a call takes nothing but the cascade.

    Raises:
        ImageError: none of them can be read.
    """
    import numpy as np

    from ztdeploy.core.errors import ImageError
    from ztdeploy.target.evaluate.data import Decoded, decode, limited, read_data
    from ztdeploy.target.measure.bench_report import MOST_IMAGES

    spec = runner.bundle.manifest.preprocess
    chosen = limited(read_data(Path(data), None, None, spec.channels), MOST_IMAGES)
    found = [decode(image.path, spec) for image in chosen.images]
    pixels = [image.pixels for image in found if isinstance(image, Decoded)]
    if not pixels:
        raise ImageError(f"no image of '{data}' can be read", "images to run the cascade on", f"{found[0]}")
    order = np.random.default_rng(0).permutation(len(pixels))
    whole = np.stack(pixels)[np.resize(order, -(-len(order) // batch) * batch)]
    batches = cycle([whole[start : start + batch] for start in range(0, len(whole), batch)])
    return lambda: runner.infer(next(batches))


def prepare() -> TextIO:
    """What such a process does first: end when its parent ends, leave Ctrl-C to it, and keep its output to itself.

    Returns:
        What the parent reads.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from ztdeploy.core.processes import end_with_parent, own_standard_output

    end_with_parent()
    return own_standard_output()


def serve(
    answers: TextIO,
    start: Callable[[], T],
    call_of: Callable[[T], Callable[[], object]],
    *,
    imported_ns: int,
    ordered_ns: int | None,
    answered_by: Callable[[T], tuple[int, ...]] = lambda _engine: (),
) -> None:
    """Load, call once, and say how long that took or why it failed; then time calls.

    Args:
        start: loads an engine; its time is reported.
        call_of: makes the call of the engine that is timed.
        imported_ns, ordered_ns: when imports ended, and when the process was ordered, by the monotonic clock.
        answered_by: how many images each stage of a cascade has answered so far.
    """
    from ztdeploy.core.records import from_json
    from ztdeploy.target.measure.bench_report import ColdStart
    from ztdeploy.target.measure.orders import TimingOrder

    started: list[tuple[Callable[[], object], Callable[[], tuple[int, ...]]]] = []

    def cold_start() -> ColdStart:
        begun_ns = time.monotonic_ns()
        engine = start()
        loaded_ns = time.monotonic_ns()
        call = call_of(engine)
        before_ns = time.monotonic_ns()
        call()
        first_ns = time.monotonic_ns() - before_ns
        started.append((call, lambda: answered_by(engine)))
        return ColdStart(
            process_ms=None if ordered_ns is None else _ms(_started_ns - ordered_ns),
            import_ms=_ms(imported_ns - _started_ns),
            load_ms=_ms(loaded_ns - begun_ns),
            first_ms=_ms(first_ns),
        )

    reply(answers, cold_start)
    for line in sys.stdin if started else ():
        reply(answers, lambda line=line: _obey(from_json(TimingOrder, line), *started[0]))  # type: ignore[misc]


def reply(answers: TextIO, answer: Callable[[], BaseModel]) -> None:
    """Say what a function answers, or which of our own errors it raises."""
    from ztdeploy.core.errors import ZtdeployError
    from ztdeploy.core.records import to_json
    from ztdeploy.target.measure.orders import Refusal

    try:
        line = to_json(answer())
    except ZtdeployError as error:
        line = to_json(Refusal.of(error))
    answers.write(line + "\n")
    answers.flush()


def _obey(order: TimingOrder, call: Callable[[], object], answered: Callable[[], tuple[int, ...]]) -> Timing:
    from ztdeploy.core.processes import peak_rss_mb
    from ztdeploy.target.measure.machine import jetson_gpu_clock, read_clocks, usable_cores
    from ztdeploy.target.measure.orders import Timing

    for _ in range(order.lead_in):
        call()
    before = answered()
    samples = _time(call, order)
    gpu = jetson_gpu_clock()
    return Timing(
        samples_ms=samples,
        peak_rss_mb=peak_rss_mb(),
        clock_mhz=max(read_clocks(usable_cores()).values(), default=None),
        gpu_clock_mhz=gpu[0] if gpu else None,
        answered=tuple(now - then for now, then in zip(answered(), before, strict=True)),
    )


def _time(call: Callable[[], object], order: TimingOrder) -> list[float]:
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


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 4)


if __name__ == "__main__":
    main()
