"""What the figures of a benchmark say, and what about the machine makes them worse than they look. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from ztdeploy.target.measure.bench_report import BenchReport, Caution, Comparison, ConfigurationReport, Outcome, Turn
from ztdeploy.target.measure.statistics import FEWEST_ROUNDS, Interval, bootstrap_interval, round_ratios

#: Others may use this share of the usable cores before it counts as noise worth a word.
_BUSY_SHARE = 0.05
_STOLEN_SHARE = 0.02
#: The kernel accounts in hundredths of a second: less time than this says nothing.
_SHORTEST_S = 1.0
#: Cores that others keep busy, from which on every further thread is likely to wait for one of them.
_BUSY_CORES = 0.2
#: A clock, or a speed, that falls by more than this during a run has been throttled.
_DROP = 0.1
#: Below this many calls a median is a guess.
_FEW_SAMPLES = 30
_GOVERNOR = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"


def compare(own: ConfigurationReport, reference: ConfigurationReport, *, seed: int) -> Comparison | None:
    """One configuration against another, over the rounds that both took part in; None where there are none."""
    ratios = round_ratios(reference.samples_by_round, own.samples_by_round)
    if not ratios:
        return None
    speedup, interval = median(ratios), bootstrap_interval(ratios, seed=seed)
    return Comparison(
        variant=own.variant,
        reference=reference.variant,
        batch=own.batch,
        threads=own.threads,
        speedup=speedup,
        interval=interval,
        ratios=tuple(ratios),
        work_ratio=reference.gmacs / own.gmacs,
        outcome=outcome_of(interval),
        verdict=_words(own, reference, speedup, interval, len(ratios)),
    )


def outcome_of(interval: Interval | None) -> Outcome:
    """An interval of a speed-up that ends at 1 or below shows that nothing is gained."""
    if interval is None:
        return "too few rounds"
    if interval.high <= 1:
        return "slower"
    return "no difference shown" if interval.contains(1) else "faster"


def _words(
    own: ConfigurationReport, reference: ConfigurationReport, speedup: float, interval: Interval | None, count: int
) -> str:
    rounds = f"{count} round{'s' if count > 1 else ''}"
    if interval is None:
        return (
            f"{own.variant} ran {speedup:.2f}x as fast as {reference.variant} at {own.setting}, in {rounds}: "
            f"too few to say more ({FEWEST_ROUNDS} are needed for an interval)"
        )
    digits = 3 if min(abs(interval.low - 1), abs(interval.high - 1)) < 0.01 else 2  # else 1.004 would read 1.00
    span = f"{speedup:.{digits}f}x ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
    where = f"{reference.variant} at {own.setting} ({rounds})"
    if interval.high <= 1:
        return f"pruning does not pay here: {own.variant} runs {span} as fast as {where}"
    if interval.contains(1):
        return (
            f"no difference between {own.variant} and {reference.variant} was shown at {own.setting}: "
            f"the interval of {span} includes 1 ({rounds})"
        )
    return f"{own.variant} is {span} faster than {where}"


def cautions(report: BenchReport, throttled_by: Sequence[str]) -> tuple[Caution, ...]:
    """All that makes the figures worse than they look, what matters most first.

    Args:
        report: without warnings.
        throttled_by: whatever held clocks down at the end of any round.
    """
    found = (
        _busy(report),
        _spinning(report),
        _stolen(report),
        _throttled(report, throttled_by),
        _slowed(report),
        _quota(report),
        _too_many_threads(report),
        _governor(report),
        _capped(report),
        _battery(report),
        _memory(report),
        _few_rounds(report),
        _few_samples(report),
    )
    return tuple(caution for caution in found if caution is not None)


def others_cores(configurations: Sequence[ConfigurationReport]) -> float | None:
    """How many cores others kept busy while these were measured; None where nobody knows, or it was too short."""
    return _mean_cores(configurations, lambda one: None if one.busy_cpu_s is None else one.busy_cpu_s - one.own_cpu_s)


def _mean_cores(
    configurations: Sequence[ConfigurationReport], seconds_of: Callable[[Turn], float | None]
) -> float | None:
    """Seconds that processors spent on something, over the turns that say how many, per second of these turns."""
    found = [(s, turn.wall_s) for one in configurations for turn in one.turns if (s := seconds_of(turn)) is not None]
    wall_s = sum(wall for _, wall in found)
    return max(0.0, sum(seconds for seconds, _ in found)) / wall_s if wall_s >= _SHORTEST_S else None


def _busy(report: BenchReport) -> Caution | None:
    during, before = others_cores(report.configurations), report.quiet_cores
    cores = len(report.machine.usable_cores)
    if max(during or 0, before or 0) <= _BUSY_SHARE * cores:
        return None
    parts = [f"{during:.1f} during the measurement"] if during is not None else []
    parts += [f"{before:.1f} before it"] if before is not None else []
    return Caution(
        kind="busy",
        message=f"other processes kept {' and '.join(parts)} of {_cores(cores)} busy",
        remedy="stop them (see 'top') and measure again; until then trust the speed-ups more than the times",
    )


def _spinning(report: BenchReport) -> Caution | None:
    """Threads of some runtimes wait in a loop: with a busy core in the team, all others wait for it at full load."""
    others = max(others_cores(report.configurations) or 0, report.quiet_cores or 0)
    threads, cores = _most_threads(report), len(report.machine.usable_cores)
    spins = report.bundle.backend == "onnxruntime"
    if not spins or threads < 2 or others < _BUSY_CORES or threads + others <= cores:
        return None
    return Caution(
        kind="spinning",
        message=f"{threads} threads on {_cores(cores)}, {others:.1f} of which others keep busy: "
        "the runtime's threads spin while they wait for each other, which then takes longer than with fewer",
        remedy=f"measure with --threads {max(1, min(threads - 1, int(cores - others)))}",
    )


def _stolen(report: BenchReport) -> Caution | None:
    stolen = _mean_cores(report.configurations, lambda turn: turn.stolen_s) or 0
    cores = len(report.machine.usable_cores)
    if stolen <= _STOLEN_SHARE * cores:
        return None
    return Caution(
        kind="stolen",
        message=f"the hypervisor gave {stolen:.2f} of {_cores(cores)} to other machines",
        remedy="measure on hardware of your own, or on an instance with dedicated cores",
    )


def _throttled(report: BenchReport, throttled_by: Sequence[str]) -> Caution | None:
    reasons = [f"held back by: {', '.join(throttled_by)}"] if throttled_by else []
    events = _more(report.before.throttle_events, report.after.throttle_events)
    if events:
        reasons.append(f"the processor throttled itself {events} times")
    turns = sorted(
        (turn for one in report.configurations for turn in one.turns), key=lambda one: (one.round, one.place)
    )
    clocks = {"clock": [t.clock_mhz for t in turns], "GPU's clock": [t.gpu_clock_mhz for t in turns]}
    for name, readings in clocks.items():
        ends = _ends([clock for clock in readings if clock])
        if ends is not None and ends[1] < (1 - _DROP) * ends[0]:
            reasons.append(f"the {name} fell from {ends[0]:.0f} to {ends[1]:.0f} MHz")
    if not reasons:
        return None
    hottest = max(report.after.temperatures_c.values(), default=None)
    heat = f", at {hottest:.0f} degrees Celsius" if hottest is not None else ""
    return Caution(
        kind="throttled",
        message=f"the machine was throttled: {'; '.join(reasons)}{heat}",
        remedy="cool it, check its power supply, let it rest between runs, or lock a clock that it can sustain",
    )


def _slowed(report: BenchReport) -> Caution | None:
    """The same work took longer at the end than at the beginning, whatever the clocks say."""
    both = (_ends([median(turn.samples_ms) for turn in one.turns]) for one in report.configurations)
    drifts = [ends[1] / ends[0] - 1 for ends in both if ends is not None]
    if not drifts or median(drifts) <= _DROP:
        return None
    return Caution(
        kind="slowed",
        message=f"the last rounds were {100 * median(drifts):.0f} % slower than the first",
        remedy="give a longer --warmup, look for heat and other load; speed-ups, taken round by round, still hold",
    )


def _quota(report: BenchReport) -> Caution | None:
    quota, threads, found, fewer = report.machine.quota_cores, _most_threads(report), [], "fewer --threads"
    if quota is not None and threads > quota:
        found.append(f"{threads} threads under a quota of {quota:g} cores")
        fewer = f"--threads {max(1, int(quota))}"
    stops = _more(report.before.quota_stops, report.after.quota_stops)
    if stops:
        found.append(f"the container's quota stopped it {stops} times")
    remedy = f"measure with {fewer}, or give the container more (docker run --cpus)"
    return Caution(kind="quota", message="; ".join(found), remedy=remedy) if found else None


def _too_many_threads(report: BenchReport) -> Caution | None:
    threads, cores = _most_threads(report), len(report.machine.usable_cores)
    if threads <= cores:
        return None
    return Caution(
        kind="threads",
        message=f"{threads} threads on {_cores(cores)}: they take turns",
        remedy=f"measure with --threads {cores} at most",
    )


def _governor(report: BenchReport) -> Caution | None:
    others = [name for name in report.machine.governors if name != "performance"]
    if not others:
        return None
    return Caution(
        kind="governor",
        message=f"clocks are not locked: they follow the load (governor {', '.join(others)})",
        remedy=f"run: {'sudo jetson_clocks' if report.machine.jetson else _GOVERNOR}",
    )


def _capped(report: BenchReport) -> Caution | None:
    allowed, highest = report.machine.allowed_clock_mhz, report.machine.highest_clock_mhz
    if allowed is None or highest is None or allowed >= (1 - _DROP) * highest:
        return None
    elsewhere = "raise scaling_max_freq, or choose a faster power profile"
    return Caution(
        kind="capped",
        message=f"clocks are limited to {allowed:.0f} of {highest:.0f} MHz",
        remedy="choose a faster mode with nvpmodel" if report.machine.jetson else elsewhere,
    )


def _battery(report: BenchReport) -> Caution | None:
    if not (report.before.on_battery or report.after.on_battery):
        return None
    return Caution(kind="battery", message="the machine runs from its battery", remedy="plug it in and measure again")


def _memory(report: BenchReport) -> Caution | None:
    """Every configuration's process is there all the time; a machine that swaps measures its disk."""
    needed = sum(one.peak_rss_mb or 0 for one in report.configurations)
    room = (report.before.memory_available_mb, report.machine.memory_limit_mb)
    free = min((megabytes for megabytes in room if megabytes is not None), default=needed)
    if needed <= free:
        return None
    return Caution(
        kind="memory",
        message=f"all configurations together take {needed:.0f} MB, and {free:.0f} MB were free",
        remedy="measure fewer of them at a time",
    )


def _few_rounds(report: BenchReport) -> Caution | None:
    rounds = max((len(one.turns) for one in report.configurations), default=0)
    if not report.comparisons or rounds >= FEWEST_ROUNDS:
        return None
    return Caution(
        kind="few rounds",
        message=f"{rounds} round{'s' if rounds > 1 else ''}: too few for an interval of the speed-up",
        remedy=f"measure with --rounds {FEWEST_ROUNDS} or more",
    )


def _few_samples(report: BenchReport) -> Caution | None:
    calls = [(one.latency.samples, f"{one.variant} at {one.setting}") for one in report.measured if one.latency]
    least, name = min(calls, key=lambda item: item[0], default=(_FEW_SAMPLES, ""))
    if least >= _FEW_SAMPLES:
        return None
    return Caution(kind="few samples", message=f"{name} was called {least} times", remedy="give a longer --duration")


def _most_threads(report: BenchReport) -> int:
    return max((one.threads or 1 for one in report.configurations), default=1)


def _more(before: int | None, after: int | None) -> int:
    """By how much a count grew; 0 where it is not known."""
    return 0 if before is None or after is None else max(0, after - before)


def _ends(values: Sequence[float]) -> tuple[float, float] | None:
    """Medians of the first and of the last third; None with fewer than six values."""
    third = len(values) // 3
    return (median(values[:third]), median(values[-third:])) if len(values) >= FEWEST_ROUNDS else None


def _cores(count: int) -> str:
    return "1 usable core" if count == 1 else f"{count} usable cores"
