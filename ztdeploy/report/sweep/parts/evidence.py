"""What the figures stand on: failures, warnings, the machine, and how to read it all."""

from __future__ import annotations

from ztdeploy.report.kit.figure import beside, figure, plots
from ztdeploy.report.kit.figures import short
from ztdeploy.report.kit.markup import Markup, element, fragment
from ztdeploy.report.kit.sheet import Cell, number, sheet
from ztdeploy.report.sweep.panels import panels
from ztdeploy.report.sweep.plots.rounds import drift_plot
from ztdeploy.report.sweep.trust import all_failures, warned
from ztdeploy.target.measure.bench_report import BenchReport
from ztdeploy.target.measure.machine import Machine, State
from ztdeploy.target.measure.sweep_report import SweepReport

NOTES = {
    "Latency": "One call at a time: pixels in memory in, answers out. p50 to p99 are percentiles of all calls; one "
    "that the number of calls cannot tell from the maximum is left out. Half of the calls lie within MAD around p50.",
    "Speed-up": "Dense and variant take turns in rounds. Per round, dense's median over the variant's; then the median "
    "of the rounds. The interval is a bootstrap over rounds. A ratio of two p50 may differ: it mixes rounds.",
    "Less work": "GMACs of dense over those of the variant, pruning not counted: what the speed-up would be if only "
    "these took time. Below the dashed line, something else does.",
    "Controls": "'slice' keeps the first tokens and 'random' any; neither looks at them. They show what choosing "
    "costs, and what it is worth. They are never recommended.",
    "Recommendation": "The fastest variant whose interval lies above 1 and that agrees with dense often enough. "
    "Without fidelity nothing is recommended: speed says nothing about answers.",
    "Cold start": "One start of a process up to its first answer. Peak: that process's resident memory at its highest.",
}


def failures_section(report: SweepReport) -> Markup | None:
    """None where nothing failed."""
    found = [
        [Cell(one.message, kind="prose"), number(str(one.exit_code), one.exit_code)] for one in all_failures(report)
    ]
    table = sheet("What failed", ["what happened", "exit code"], found)
    return None if table is None else element("section", element("h2", "Failures"), table)


def warnings_section(report: SweepReport) -> Markup | None:
    """None where there were none."""
    cells = [
        [
            Cell(one.caution.kind, heading=True),
            Cell(one.caution.message, kind="prose"),
            Cell(one.caution.remedy, kind="prose"),
            number(f"{one.runs} of {len(report.runs)}", one.runs),
        ]
        for one in warned(report)
    ]
    table = sheet("Warnings", ["warning", "what was seen", "what to do", "runs"], cells)
    return None if table is None else element("section", element("h2", "Warnings"), table)


def machine_section(report: SweepReport) -> Markup | None:
    """None where nothing was measured."""
    if not report.runs:
        return None
    first, last = report.runs[0], report.runs[-1]
    facts = {**_machine(first.machine), **_bundle(first)}
    fixed = [[Cell(name, heading=True), Cell(value, kind="prose")] for name, value in facts.items() if value]
    moving = [
        [Cell(name, heading=True), Cell(before, kind="prose"), Cell(after, kind="prose")]
        for (name, before), after in zip(_state(first.before).items(), _state(last.after).values(), strict=True)
        if before or after
    ]
    return element(
        "section",
        element("h2", "The machine"),
        beside(
            plots(*_steadiness(report)),
            fragment(
                sheet("What the machine is", ["", ""], fixed),
                sheet("How it was", ["", "before the first run", "after the last"], moving),
            ),
        ),
    )


def _steadiness(report: SweepReport) -> list[Markup | None]:
    title = "Was it steady?"
    return [figure(title, f"Dense at {one.label}, over all groups.", drift_plot(one)) for one in panels(report)]


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


def notes_section() -> Markup:
    listed = [(element("dt", name), element("dd", text)) for name, text in NOTES.items()]
    return element("section", element("h2", "How to read this"), element("dl", listed, class_="notes"))
