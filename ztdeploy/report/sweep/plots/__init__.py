"""The plots of a setting. To add one, write a file here with a function, and add a line to `PLOTS`."""

from __future__ import annotations

_PLOTS = "ztdeploy.report.sweep.plots"
#: The functions that draw the plots, from left to right, as "module:function". Each takes the `Panel` of one setting
#: and the `View` of the whole sweep, and returns a `Figure`, or None where it has nothing to show.
PLOTS: dict[str, str] = {
    "latency": f"{_PLOTS}.ratios:latency",
    "speed-up": f"{_PLOTS}.ratios:speedup",
    "less work": f"{_PLOTS}.ratios:less_work",
    "unknown fidelity": f"{_PLOTS}.fidelity:unknown",
    "answers": f"{_PLOTS}.fidelity:answers",
    "divergence": f"{_PLOTS}.fidelity:divergence",
    "accuracy": f"{_PLOTS}.fidelity:accuracy",
    "cosine": f"{_PLOTS}.fidelity:cosines",
    "map error": f"{_PLOTS}.fidelity:map_errors",
    "noise": f"{_PLOTS}.noise:rounds",
}
