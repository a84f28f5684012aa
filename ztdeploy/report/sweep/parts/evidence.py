"""What the figures stand on: failures, warnings, the machine, and how to read it all."""

from __future__ import annotations

from ztdeploy.report.kit.figure import beside, notes, plots, section
from ztdeploy.report.kit.markup import Markup, fragment
from ztdeploy.report.kit.numbers import short
from ztdeploy.report.kit.sheet import Column, table
from ztdeploy.report.sweep.panels import View
from ztdeploy.report.sweep.plots.noise import steadiness
from ztdeploy.report.sweep.trust import Warned, all_failures, warned
from ztdeploy.target.measure.bench_report import BenchReport, Failure
from ztdeploy.target.measure.machine import Machine, State

NOTES = {
    "Latency": "One call at a time: pixels in memory in, answers out. p50 to p99 are percentiles of all calls; one "
    "that the number of calls cannot tell from the maximum is left out. Half of the calls lie within MAD around p50.",
    "Speed-up": "The baseline and the variant take turns in rounds. Per round, the baseline's median over the "
    "variant's; then the median of the rounds. The interval is a bootstrap over rounds. A ratio of two p50 may differ: "
    "it mixes rounds.",
    "Less work": "GMACs of the baseline over those of the variant, pruning not counted: what the speed-up would be if "
    "only these took time. Below the dashed line, something else does.",
    "Controls": "'slice' keeps the first tokens and 'random' any; neither looks at them. They show what choosing "
    "costs, and what it is worth. They are never recommended.",
    "Recommendation": "The fastest variant whose interval lies above 1 and that agrees with the baseline often enough. "
    "Without fidelity nothing is recommended: speed says nothing about answers.",
    "Cold start": "One start of a process up to its first answer. Peak: that process's resident memory at its highest.",
}


def failures(view: View) -> Markup | None:
    """None where nothing failed."""
    columns: list[Column[Failure]] = [
        Column("what happened", lambda one: one.message, kind="prose"),
        Column("exit code", lambda one: str(one.exit_code), lambda one: one.exit_code),
    ]
    found = table("What failed", columns, all_failures(view.report))
    return None if found is None else section("Failures", found)


def warnings(view: View) -> Markup | None:
    """None where there were none."""
    columns: list[Column[Warned]] = [
        Column("warning", lambda one: one.caution.kind, kind="heading"),
        Column("what was seen", lambda one: one.caution.message, kind="prose"),
        Column("what to do", lambda one: one.caution.remedy, kind="prose"),
        Column("runs", lambda one: f"{one.runs} of {len(view.report.runs)}", lambda one: one.runs),
    ]
    found = table("Warnings", columns, warned(view.report))
    return None if found is None else section("Warnings", found)


def machine(view: View) -> Markup | None:
    """None where nothing was measured."""
    if not view.report.runs:
        return None
    first, last = view.report.runs[0], view.report.runs[-1]
    fixed = [(name, text) for name, text in {**_machine(first.machine), **_bundle(first)}.items() if text]
    before, after = _state(first.before), _state(last.after)
    moving = [(name, before[name], after[name]) for name in before if before[name] or after[name]]
    columns: list[Column[tuple[str, ...]]] = [
        Column("", lambda fact: fact[0], kind="heading"),
        Column("", lambda fact: fact[1], kind="prose"),
    ]
    states: list[Column[tuple[str, ...]]] = [
        columns[0],
        Column("before the first run", lambda fact: fact[1], kind="prose"),
        Column("after the last", lambda fact: fact[2], kind="prose"),
    ]
    facts = fragment(table("What the machine is", columns, fixed), table("How it was", states, moving))
    return section("The machine", beside(plots(*map(steadiness, view.panels)), facts))


def _machine(machine: Machine) -> dict[str, str]:
    jetson = machine.jetson
    return {
        "Board": machine.board or "",
        "Processor": f"{machine.processor}, {machine.architecture}",
        "Cores": _cores(machine),
        "Clock": _clock(machine),
        "Governor": ", ".join(machine.governors),
        "Memory": " of which ".join(
            f"{megabytes / 1e3:.1f} GB" for megabytes in (machine.memory_mb, machine.memory_limit_mb) if megabytes
        ),
        "GPU": "; ".join(", ".join(filter(None, (gpu.name, gpu.driver))) for gpu in machine.gpus),
        "Jetson": ", ".join(filter(None, (jetson.release, jetson.power_mode))) if jetson else "",
        "System": f"{machine.system}, kernel {machine.kernel}",
        "Versions": ", ".join(f"{n} {v}" for n, v in {"Python": machine.python, **machine.versions}.items()),
    }


def _cores(machine: Machine) -> str:
    online = f" of {machine.cores_online}" if machine.cores_online else ""
    quota = f", quota {machine.quota_cores:g}" if machine.quota_cores else ""
    return f"{len(machine.usable_cores)}{online} usable ({', '.join(map(str, machine.usable_cores))}){quota}"


def _clock(machine: Machine) -> str:
    """What it can do, and what it is allowed to."""
    low, high, allowed = machine.lowest_clock_mhz, machine.highest_clock_mhz, machine.allowed_clock_mhz
    if high is None:
        return ""
    limit = f", limited to {allowed:.0f} MHz" if allowed is not None and allowed < high else ""
    boost = {True: ", boost on", False: ", boost off", None: ""}[machine.boost]
    return f"{low or 0:.0f} to {high:.0f} MHz{limit}{boost}"


def _bundle(run: BenchReport) -> dict[str, str]:
    bundle = run.bundle
    return {
        "Model": f"{bundle.model} ({bundle.timm_name}), weights: {bundle.weights}",
        "Engines": f"{bundle.backend}, {bundle.runtime}, profile {bundle.profile}, built {bundle.created[:10]}",
    }


def _state(state: State) -> dict[str, str]:
    clocks, load = state.clocks_mhz.values(), state.load_average
    return {
        "Time (UTC)": state.at[:19].replace("T", " "),
        "Load average": ", ".join(f"{one:.2f}" for one in load) if load else "",
        "Clocks": f"{min(clocks):.0f} to {max(clocks):.0f} MHz" if clocks else "",
        "Temperature": ", ".join(f"{name} {short(celsius)} °C" for name, celsius in state.temperatures_c.items()),
        "Free memory": f"{state.memory_available_mb / 1e3:.1f} GB" if state.memory_available_mb else "",
        "Throttled by": ", ".join(state.throttled_by),
        "Battery": "on battery" if state.on_battery else "",
        "Rails": ", ".join(f"{name} {milliwatts / 1e3:.1f} W" for name, milliwatts in state.rails_mw.items()),
        "GPU": "; ".join(f"{gpu.clock_mhz or 0:.0f} MHz, {gpu.temperature_c or 0:.0f} °C" for gpu in state.gpus),
    }


def how_to_read(_view: View) -> Markup:
    return notes(NOTES)
