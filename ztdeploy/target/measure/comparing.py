"""What the figures of a benchmark say, and what about the machine makes them worse than they look. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, median

from ztdeploy.target.backends import get_backend
from ztdeploy.target.measure.bench_report import BenchReport, Caution, Comparison, ConfigurationReport, Outcome, Turn
from ztdeploy.target.measure.statistics import (
    FEWEST_ROUNDS,
    Interval,
    bootstrap_interval,
    round_ratios,
    wilson_interval,
)

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
    """One configuration against another, over the rounds that both took part in; None where there are none.

    Calls of a cascade take different times, so its mean is what counts; of others the median.
    """
    ratios = round_ratios(reference.samples_by_round, own.samples_by_round, fmean if own.answered else median)
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
    rounds = f"{count} round{'s' if count > 1 else ''}{', by means' if own.answered else ''}"
    if interval is None:
        return (
            f"{own.variant} ran {speedup:.2f}x as fast as {reference.variant} at {own.setting}, in {rounds}: "
            f"too few to say more ({FEWEST_ROUNDS} are needed for an interval)"
        )
    digits = 3 if min(abs(interval.low - 1), abs(interval.high - 1)) < 0.01 else 2  # else 1.004 would read 1.00
    span = f"{speedup:.{digits}f}x ({interval:.{digits}f})"
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
    machine = (_load(report), _heat(report, throttled_by), _limits(report), _power(report))
    rules = (*machine, _extent(report), _images(report))
    return tuple(Caution(kind=kind, message=message, remedy=remedy) for rule in rules for kind, message, remedy in rule)


#: What is said: its kind, what is wrong, and what to do about it.
_Said = Iterator[tuple[str, str, str]]


def _load(report: BenchReport) -> _Said:
    """What else the processor did."""
    during, before = others_cores(report.configurations), report.quiet_cores
    cores, threads, others = len(report.machine.usable_cores), _most_threads(report), max(during or 0, before or 0)
    if others > _BUSY_SHARE * cores:
        parts = [f"{during:.1f} during the measurement"] if during is not None else []
        parts += [f"{before:.1f} before it"] if before is not None else []
        yield (
            "busy",
            f"other processes kept {' and '.join(parts)} of {_cores(cores)} busy",
            "stop them (see 'top') and measure again; until then trust the speed-ups more than the times",
        )
    # Threads of some runtimes wait in a loop: with a busy core in the team, all others wait for it at full load.
    if get_backend(report.bundle.backend).spins and threads > 1 and others >= _BUSY_CORES and threads + others > cores:
        yield (
            "spinning",
            f"{threads} threads on {_cores(cores)}, {others:.1f} of which others keep busy: "
            "the runtime's threads spin while they wait for each other, which then takes longer than with fewer",
            f"measure with --threads {max(1, min(threads - 1, int(cores - others)))}",
        )
    stolen = _mean_cores(report.configurations, lambda turn: turn.stolen_s) or 0
    if stolen > _STOLEN_SHARE * cores:
        yield (
            "stolen",
            f"the hypervisor gave {stolen:.2f} of {_cores(cores)} to other machines",
            "measure on hardware of your own, or on an instance with dedicated cores",
        )


def _heat(report: BenchReport, throttled_by: Sequence[str]) -> _Said:
    """What slowed the processor down in the course of the measurement."""
    reasons = [f"held back by: {', '.join(throttled_by)}"] if throttled_by else []
    if events := _more(report.before.throttle_events, report.after.throttle_events):
        reasons.append(f"the processor throttled itself {events} times")
    turns = sorted((turn for one in report.configurations for turn in one.turns), key=lambda t: (t.round, t.place))
    clocks = {"clock": [t.clock_mhz for t in turns], "GPU's clock": [t.gpu_clock_mhz for t in turns]}
    for name, readings in clocks.items():
        ends = _ends([clock for clock in readings if clock])
        if ends is not None and ends[1] < (1 - _DROP) * ends[0]:
            reasons.append(f"the {name} fell from {ends[0]:.0f} to {ends[1]:.0f} MHz")
    hottest = max(report.after.temperatures_c.values(), default=None)
    if reasons:
        yield (
            "throttled",
            f"the machine was throttled: {'; '.join(reasons)}"
            + (f", at {hottest:.0f} degrees Celsius" if hottest is not None else ""),
            "cool it, check its power supply, let it rest between runs, or lock a clock that it can sustain",
        )
    both = (_ends([median(turn.samples_ms) for turn in one.turns]) for one in report.configurations)
    drifts = [ends[1] / ends[0] - 1 for ends in both if ends is not None]
    if drifts and median(drifts) > _DROP:
        yield (
            "slowed",
            f"the last rounds were {100 * median(drifts):.0f} % slower than the first",
            "give a longer --warmup, look for heat and other load; speed-ups, taken round by round, still hold",
        )


def _limits(report: BenchReport) -> _Said:
    """How many cores and threads there were."""
    quota, threads, cores = report.machine.quota_cores, _most_threads(report), len(report.machine.usable_cores)
    found, fewer = [], "fewer --threads"
    if quota is not None and threads > quota:
        found.append(f"{threads} threads under a quota of {quota:g} cores")
        fewer = f"--threads {max(1, int(quota))}"
    if stops := _more(report.before.quota_stops, report.after.quota_stops):
        found.append(f"the container's quota stopped it {stops} times")
    if found:
        remedy = f"measure with {fewer}, or give the container more (docker run --cpus)"
        yield "quota", "; ".join(found), remedy
    if threads > cores:
        message = f"{threads} threads on {_cores(cores)}: they take turns"
        yield "threads", message, f"measure with --threads {cores} at most"


def _power(report: BenchReport) -> _Said:
    """How fast the processor was allowed to be."""
    machine = report.machine
    others = [name for name in machine.governors if name != "performance"]
    if others:
        yield (
            "governor",
            f"clocks are not locked: they follow the load (governor {', '.join(others)})",
            f"run: {'sudo jetson_clocks' if machine.jetson else _GOVERNOR}",
        )
    allowed, highest = machine.allowed_clock_mhz, machine.highest_clock_mhz
    if allowed is not None and highest is not None and allowed < (1 - _DROP) * highest:
        elsewhere = "raise scaling_max_freq, or choose a faster power profile"
        yield (
            "capped",
            f"clocks are limited to {allowed:.0f} of {highest:.0f} MHz",
            "choose a faster mode with nvpmodel" if machine.jetson else elsewhere,
        )
    if report.before.on_battery or report.after.on_battery:
        yield "battery", "the machine runs from its battery", "plug it in and measure again"


def _extent(report: BenchReport) -> _Said:
    """Whether too much was measured at once, or too little."""
    # Every configuration's process is there all the time, and a machine that swaps measures its disk.
    needed = sum(one.peak_rss_mb or 0 for one in report.configurations)
    room = (report.before.memory_available_mb, report.machine.memory_limit_mb)
    free = min((megabytes for megabytes in room if megabytes is not None), default=needed)
    if needed > free:
        message = f"all configurations together take {needed:.0f} MB, and {free:.0f} MB were free"
        yield "memory", message, "measure fewer of them at a time"
    rounds = max((len(one.turns) for one in report.configurations), default=0)
    if report.comparisons and rounds < FEWEST_ROUNDS:
        message = f"{rounds} round{'s' if rounds > 1 else ''}: too few for an interval of the speed-up"
        yield "few rounds", message, f"measure with --rounds {FEWEST_ROUNDS} or more"
    calls = [(one.latency.samples, f"{one.variant} at {one.setting}") for one in report.measured if one.latency]
    least, name = min(calls, key=lambda item: item[0], default=(_FEW_SAMPLES, ""))
    if least < _FEW_SAMPLES:
        yield "few samples", f"{name} was called {least} times", "give a longer --duration"


def _images(report: BenchReport) -> _Said:
    """Whether a cascade ran on images as it was calibrated on: its latency and its bound depend on them."""
    own = next((one for one in report.configurations if one.answered), None)
    if own is None or report.cascade is None:
        return
    expected, calibrated = report.cascade.shares[1], report.cascade.guarantee
    share = own.reached[1] / own.reached[0]
    images = min(report.cascade.images, own.reached[0])  # which is how many different ones were seen at most
    likely = wilson_interval(round(expected * calibrated.images), calibrated.images)
    if wilson_interval(round(share * images), images).low > likely.high:
        yield (
            "unlike images",
            f"{100 * share:.0f} % of the images of '{report.cascade.data}' went on from the cascade's first stage,"
            f" where {100 * expected:.0f} % were expected: they are unlike '{calibrated.data}', on which it was"
            " calibrated, and its bound on agreement is not promised for them",
            "build again with --calib and images like these",
        )


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
