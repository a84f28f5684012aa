"""What a governor costs each call, and what it holds under a load that comes and goes.

    python -m benchmarks.governor BUNDLE [--latency-ms MS] [--variant keep-0.70] [--threads 2] [--out bench.json]

BUNDLE has several keep ratios, such as of `ztdeploy build -m deit_t -k 0.85,0.7,0.6,0.5,0.4`. First the time that the
governor adds to a call, of engines that take no time; then `bench --governor` with the shipped load: one core is busy
for 10 of every 20 s. Static dense, a static variant and the governor replay it one after the other, 50 s each; with
loading, all takes about 3 minutes. The default target is 1.15 times what the p95 of dense is on the quiet machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.machine import describe_machine
from ztdeploy.cli.bench import show_report
from ztdeploy.target.adaptive.control import Control, Rung
from ztdeploy.target.adaptive.governed import GovernedRunner
from ztdeploy.target.adaptive.governor import Governor
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.measure.bench import run_bench
from ztdeploy.target.measure.bench_report import BenchReport, BenchRequest, write_report
from ztdeploy.target.measure.machine import trip_points
from ztdeploy.target.measure.replay_report import HELD

CALLS = 100_000
ABOVE_DENSE = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--latency-ms", type=float, help="by default 1.15 times the p95 of dense")
    parser.add_argument("--variant", default="keep-0.70", help="the static variant to compare with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--load", type=Path, help="by default the shipped one")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    overhead()
    target = arguments.latency_ms or ABOVE_DENSE * quiet_p95(arguments.bundle, arguments.threads)
    request = BenchRequest(
        bundle=arguments.bundle,
        variants=(arguments.variant,),
        threads=(arguments.threads,),
        governor=True,
        latency_ms=round(target, 1),
        load=arguments.load,
    )
    report = run_bench(request)
    show_report(report)
    if arguments.out is not None:
        write_report(report, arguments.out)
    conclude(report)


def overhead() -> None:
    """Microseconds that the rule takes in a call, on the best variant and below it, and one look at thermal zones."""
    rungs = [Rung("dense", 20.0, None), Rung("keep-0.70", 14.0, None), Rung("keep-0.50", 10.0, None)]
    for name, latency, limit in (("at the best variant", 20.0, 0), ("while it may go up", 26.0, 2)):
        control, now = Control(rungs, Governor(30), 0.0), count(step=1 / 40)
        control.limit(limit, "heat", "", 0.0)
        control.best = 0
        observe = partial(_observe, control, latency, now)
        print(f"the rule {name}: {microseconds(observe):.2f} us per call")
    zones = trip_points()
    spent = microseconds(lambda: [zone.now_c for zone in zones], 1000)
    print(f"a look at {len(zones)} thermal zones, every 2 s: {spent:.0f} us")


def _observe(control: Control, latency_ms: float, now: count[float]) -> None:
    control.observe(control.at, latency_ms, next(now))


def microseconds(call: Callable[[], object], calls: int = CALLS) -> float:
    """Of one call, on average."""
    before = time.perf_counter()
    for _ in range(calls):
        call()
    return 1e6 * (time.perf_counter() - before) / calls


def quiet_p95(bundle: Path, threads: int) -> float:
    """What the p95 of dense is now, by the governor's own warm-up; also says the others' and what switching takes."""
    began = time.perf_counter()
    runner = load(bundle, threads=threads, governor=Governor(10**6, strict=False))
    assert isinstance(runner, GovernedRunner)
    print(f"all engines opened and measured in {time.perf_counter() - began:.1f} s")
    for rung in runner.rungs:
        print(f"  {rung.variant} on {rung.threads} threads: p95 {rung.latency_ms:.2f} ms")
    engines = list(runner._open.values())[:2]
    turn = count()
    spent = microseconds(lambda: runner._activate(engines[next(turn) % 2]), 10_000)
    print(f"switching: {spent:.1f} us")
    runner.close()
    return runner.rungs[0].latency_ms


def conclude(report: BenchReport) -> None:
    """Whether the promise is kept: the governor holds where static engines fail, with few changes, and comes back."""
    assert report.replay is not None
    *static, governed = report.replay.runs
    promises = {
        f"p95 held in at least {100 * HELD:.0f} % of the seconds": (governed.held or 0) >= HELD,
        "static engines fail": all((run.held or 0) < HELD for run in static),
        "at most two changes for each change of the load": max(governed.changes) <= 2,
        "the best variant runs in the end": governed.last == governed.variants[0],
    }
    for promise, kept in promises.items():
        print(f"{'yes' if kept else 'NO '}  {promise}")


if __name__ == "__main__":
    main()
