"""What about the machine makes figures worse than they look, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from ztdeploy.target.measure.bench_report import Caution, ConfigurationReport, Turn
from ztdeploy.target.measure.environment import Machine, State
from ztdeploy.target.measure.statistics import FEWEST_ROUNDS
from ztdeploy.target.measure.verdict import setting

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


@dataclass(frozen=True)
class Facts:
    """All that cautions are made from."""

    machine: Machine
    before: State
    after: State
    quiet_cores: float | None  #: how many cores others kept busy before anything was started
    throttled_by: tuple[str, ...]  #: whatever held clocks down at the end of any round
    spins: bool  #: the runtime's threads wait for each other in a loop
    compares: bool
    configurations: tuple[ConfigurationReport, ...]

    @property
    def cores(self) -> int:
        return len(self.machine.usable_cores)


def cautions(facts: Facts) -> tuple[Caution, ...]:
    """Everything that is to be said, what matters most first."""
    rules: tuple[Callable[[Facts], Caution | None], ...] = (
        _busy,
        _spinning,
        _stolen,
        _throttled,
        _slowed,
        _quota,
        _too_many_threads,
        _governor,
        _capped,
        _battery,
        _memory,
        _few_rounds,
        _few_samples,
    )
    found = (rule(facts) for rule in rules)
    return tuple(caution for caution in found if caution is not None)


def others_cores(configurations: Sequence[ConfigurationReport]) -> float | None:
    """How many cores others kept busy while these were measured; None where nobody knows, or it was too short."""
    turns = [turn for one in configurations for turn in one.turns if turn.busy_cpu_s is not None]
    wall_s = sum(turn.wall_s for turn in turns)
    others_s = sum((turn.busy_cpu_s or 0) - turn.own_cpu_s for turn in turns)
    return max(0.0, others_s) / wall_s if wall_s >= _SHORTEST_S else None


def _busy(facts: Facts) -> Caution | None:
    during, limit = others_cores(facts.configurations), _BUSY_SHARE * facts.cores
    before = facts.quiet_cores
    if max(during or 0, before or 0) <= limit:
        return None
    parts = [f"{during:.1f} during the measurement"] if during is not None else []
    parts += [f"{before:.1f} before it"] if before is not None else []
    return Caution(
        kind="busy",
        message=f"other processes kept {' and '.join(parts)} of {_cores(facts.cores)} busy",
        remedy="stop them (see 'top') and measure again; until then trust the speed-ups more than the times",
    )


def _spinning(facts: Facts) -> Caution | None:
    """ONNX Runtime's threads wait in a loop: with a busy core in the team, all others wait for it at full load."""
    others = max(others_cores(facts.configurations) or 0, facts.quiet_cores or 0)
    threads = max((one.threads or 1 for one in facts.configurations), default=1)
    if not facts.spins or threads < 2 or others < _BUSY_CORES or threads + others <= facts.cores:
        return None
    fewer = max(1, min(threads - 1, int(facts.cores - others)))
    return Caution(
        kind="spinning",
        message=f"{threads} threads on {_cores(facts.cores)}, {others:.1f} of which others keep busy: "
        "ONNX Runtime's threads spin while they wait for each other, which then takes longer than with fewer",
        remedy=f"measure with --threads {fewer}",
    )


def _stolen(facts: Facts) -> Caution | None:
    turns = [turn for one in facts.configurations for turn in one.turns if turn.stolen_s is not None]
    wall_s = sum(turn.wall_s for turn in turns)
    stolen = sum(turn.stolen_s or 0 for turn in turns) / wall_s if wall_s >= _SHORTEST_S else 0
    if stolen <= _STOLEN_SHARE * facts.cores:
        return None
    return Caution(
        kind="stolen",
        message=f"the hypervisor gave {stolen:.2f} of {_cores(facts.cores)} to other machines",
        remedy="measure on hardware of your own, or on an instance with dedicated cores",
    )


def _throttled(facts: Facts) -> Caution | None:
    reasons = [f"held back by: {', '.join(facts.throttled_by)}"] if facts.throttled_by else []
    before, after = facts.before.throttle_events, facts.after.throttle_events
    if before is not None and after is not None and after > before:
        reasons.append(f"the processor throttled itself {after - before} times")
    turns = _turns_in_order(facts.configurations)
    clocks = {"clock": [t.clock_mhz for t in turns], "GPU's clock": [t.gpu_clock_mhz for t in turns]}
    for name, readings in clocks.items():
        ends = _ends([clock for clock in readings if clock])
        if ends is not None and ends[1] < (1 - _DROP) * ends[0]:
            reasons.append(f"the {name} fell from {ends[0]:.0f} to {ends[1]:.0f} MHz")
    if not reasons:
        return None
    hottest = max(facts.after.temperatures_c.values(), default=None)
    heat = f", at {hottest:.0f} degrees Celsius" if hottest is not None else ""
    return Caution(
        kind="throttled",
        message=f"the machine was throttled: {'; '.join(reasons)}{heat}",
        remedy="cool it, check its power supply, let it rest between runs, or lock a clock that it can sustain",
    )


def _slowed(facts: Facts) -> Caution | None:
    """The same work took longer at the end than at the beginning, whatever the clocks say."""
    drifts = []
    for one in facts.configurations:
        ends = _ends([median(turn.samples_ms) for turn in one.turns])
        if ends is not None:
            drifts.append(ends[1] / ends[0] - 1)
    if not drifts or median(drifts) <= _DROP:
        return None
    return Caution(
        kind="slowed",
        message=f"the last rounds were {100 * median(drifts):.0f} % slower than the first",
        remedy="give a longer --warmup, look for heat and other load; speed-ups, taken round by round, still hold",
    )


def _quota(facts: Facts) -> Caution | None:
    quota, found = facts.machine.quota_cores, []
    before, after = facts.before.quota_stops, facts.after.quota_stops
    most = max((one.threads or 1 for one in facts.configurations), default=1)
    if quota is not None and most > quota:
        found.append(f"{most} threads under a quota of {quota:g} cores")
    if before is not None and after is not None and after > before:
        found.append(f"the container's quota stopped it {after - before} times")
    if not found:
        return None
    fewer = f"--threads {max(1, int(quota))}" if quota is not None and most > quota else "fewer --threads"
    remedy = f"measure with {fewer}, or give the container more (docker run --cpus)"
    return Caution(kind="quota", message="; ".join(found), remedy=remedy)


def _too_many_threads(facts: Facts) -> Caution | None:
    most = max((one.threads or 1 for one in facts.configurations), default=1)
    if most <= facts.cores:
        return None
    return Caution(
        kind="threads",
        message=f"{most} threads on {_cores(facts.cores)}: they take turns",
        remedy=f"measure with --threads {facts.cores} at most",
    )


def _governor(facts: Facts) -> Caution | None:
    others = [name for name in facts.machine.governors if name != "performance"]
    if not others:
        return None
    return Caution(
        kind="governor",
        message=f"clocks are not locked: they follow the load (governor {', '.join(others)})",
        remedy=f"run: {'sudo jetson_clocks' if facts.machine.jetson else _GOVERNOR}",
    )


def _capped(facts: Facts) -> Caution | None:
    allowed, highest = facts.machine.allowed_clock_mhz, facts.machine.highest_clock_mhz
    if allowed is None or highest is None or allowed >= (1 - _DROP) * highest:
        return None
    return Caution(
        kind="capped",
        message=f"clocks are limited to {allowed:.0f} of {highest:.0f} MHz",
        remedy="choose a faster mode with nvpmodel"
        if facts.machine.jetson
        else "raise scaling_max_freq, or choose a faster power profile",
    )


def _battery(facts: Facts) -> Caution | None:
    if not (facts.before.on_battery or facts.after.on_battery):
        return None
    return Caution(kind="battery", message="the machine runs from its battery", remedy="plug it in and measure again")


def _memory(facts: Facts) -> Caution | None:
    """Every configuration's process is there all the time; a machine that swaps measures its disk."""
    needed = sum(one.peak_rss_mb or 0 for one in facts.configurations)
    room = [facts.before.memory_available_mb, facts.machine.memory_limit_mb]
    known = [megabytes for megabytes in room if megabytes is not None]
    if not known or needed <= min(known):
        return None
    return Caution(
        kind="memory",
        message=f"all configurations together take {needed:.0f} MB, and {min(known):.0f} MB were free",
        remedy="measure fewer of them at a time",
    )


def _few_rounds(facts: Facts) -> Caution | None:
    rounds = max((len(one.turns) for one in facts.configurations), default=0)
    if not facts.compares or rounds == 0 or rounds >= FEWEST_ROUNDS:
        return None
    return Caution(
        kind="few rounds",
        message=f"{rounds} round{'s' if rounds > 1 else ''}: too few for an interval of the speed-up",
        remedy=f"measure with --rounds {FEWEST_ROUNDS} or more",
    )


def _few_samples(facts: Facts) -> Caution | None:
    few = [one for one in facts.configurations if one.latency and one.latency.samples < _FEW_SAMPLES]
    if not few:
        return None
    least = min(few, key=lambda one: one.latency.samples if one.latency else 0)
    calls = least.latency.samples if least.latency else 0
    return Caution(
        kind="few samples",
        message=f"{least.variant} at {setting(least)} was called {calls} times",
        remedy="give a longer --duration",
    )


def _turns_in_order(configurations: Sequence[ConfigurationReport]) -> list[Turn]:
    turns = [turn for one in configurations for turn in one.turns]
    return sorted(turns, key=lambda turn: (turn.round, turn.place))


def _ends(values: Sequence[float]) -> tuple[float, float] | None:
    """Medians of the first and of the last third; None with fewer than six values."""
    third = len(values) // 3
    return (median(values[:third]), median(values[-third:])) if len(values) >= FEWEST_ROUNDS else None


def _cores(count: int) -> str:
    return "1 usable core" if count == 1 else f"{count} usable cores"
