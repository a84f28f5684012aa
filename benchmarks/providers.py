"""Pruned graphs in ONNX Runtime's GPU execution providers, where those happen to be installed.

    python -m benchmarks.providers [--device cuda] [--batch 1] [--out FILE.json]

Times dense and keep ratio 0.7 of DeiT-S, fp32, by `zero-tprune` and `slice`, in turns and in one process, with inputs
and outputs in ordinary memory. `--device cpu` tries this code with the CPU's provider and the shipped model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ztdeploy.core.model_source import ModelSource
from ztdeploy.target.measure.statistics import bootstrap_interval, round_ratios
from ztdeploy.target.measure.turns import turn_orders

PROVIDERS = {"cuda": ("CUDAExecutionProvider", "TensorrtExecutionProvider"), "cpu": ("CPUExecutionProvider",)}
METHODS = ("zero-tprune", "slice")
ROUNDS, CALLS = 10, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON")
    arguments = parser.parse_args()
    import onnxruntime

    installed = [one for one in PROVIDERS[arguments.device] if one in onnxruntime.get_available_providers()]
    report: dict[str, Any] = {"onnxruntime": onnxruntime.__version__, "providers": {}}
    if installed:
        with tempfile.TemporaryDirectory() as folder:
            graphs = build_graphs("deit_s" if arguments.device == "cuda" else "vit_digits", Path(folder) / "bundle")
            report["providers"] = {one: time_graphs(graphs, one, arguments.batch) for one in installed}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(table(report))


def build_graphs(model: str, out: Path) -> dict[str, Path]:
    from ztdeploy.jobs.build import BuildRequest, build

    bundle = build(
        BuildRequest(
            ModelSource(name=model, weights="random" if model == "deit_s" else "pretrained"),
            ("cpu",),
            out,
            keep_ratios=(0.7,),
            methods=METHODS,
        )
    )
    return {
        variant.schedule.method if variant.plan.layers else "dense": bundle.path(variant.graphs["cpu"].file)
        for variant in bundle.manifest.variants
    }


def time_graphs(graphs: dict[str, Path], provider: str, batch: int) -> dict[str, Any]:
    """Milliseconds per call of each graph, and how many times faster than dense."""
    import onnxruntime

    sessions = {}
    for name, graph in graphs.items():
        session = onnxruntime.InferenceSession(str(graph), providers=[provider])
        if provider not in session.get_providers():
            return {"failed": f"{provider} does not load here; ONNX Runtime fell back to {session.get_providers()}"}
        sessions[name] = session
    given = next(iter(sessions.values())).get_inputs()[0]
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *given.shape[1:]), dtype=np.uint8)
    rounds: dict[str, dict[int, list[float]]] = {name: {} for name in sessions}
    names = list(sessions)
    for session in sessions.values():
        session.run(None, {given.name: pixels})
    for turn, order in enumerate(turn_orders(len(names), ROUNDS, seed=0)):
        for name in (names[index] for index in order):
            began = time.perf_counter()
            for _ in range(CALLS):
                sessions[name].run(None, {given.name: pixels})
            rounds[name][turn] = [1000 * (time.perf_counter() - began) / CALLS]
    times = {name: median(values[0] for values in taken.values()) for name, taken in rounds.items()}
    speedups = {}
    for name in names:
        ratios = round_ratios(rounds["dense"], rounds[name])
        interval = bootstrap_interval(ratios)
        assert interval is not None
        speedups[name] = (median(ratios), interval.low, interval.high)
    return {"batch": batch, "median_ms": times, "speedup": speedups}


def table(report: dict[str, Any]) -> str:
    if not report["providers"]:
        return f"ONNX Runtime {report['onnxruntime']} has no provider for a GPU here: nothing is timed."
    lines = [
        f"ONNX Runtime {report['onnxruntime']}",
        "",
        "| provider | graph | ms | over dense |",
        "| --- | --- | ---: | --- |",
    ]
    for provider, found in report["providers"].items():
        if "failed" in found:
            lines.append(f"| {provider} | {found['failed']} | | |")
            continue
        for name, took in found["median_ms"].items():
            value, low, high = found["speedup"][name]
            lines.append(f"| {provider} | {name} | {took:.2f} | {value:.2f}x ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
