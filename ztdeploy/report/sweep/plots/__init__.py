"""The plots of a setting."""

from __future__ import annotations

_PLOTS = "ztdeploy.report.sweep.plots"
#: From left to right: what draws each of a `Panel` and a `View`, or is None where it has nothing to show.
PLOTS: dict[str, str] = {
    "latency": f"{_PLOTS}.ratios:latency",
    "speed-up": f"{_PLOTS}.ratios:speedup",
    "less work": f"{_PLOTS}.ratios:less_work",
    "unknown fidelity": f"{_PLOTS}.fidelity:unknown",
    "answers": f"{_PLOTS}.fidelity:answers",
    "divergence": f"{_PLOTS}.fidelity:divergence",
    "accuracy": f"{_PLOTS}.fidelity:accuracy",
    "cosine": f"{_PLOTS}.fidelity:cosines",
    "noise": f"{_PLOTS}.noise:rounds",
}
