"""The paper's figure: how many more images per second a pruned DeiT-S takes in PyTorch than a dense one.

    python -m benchmarks.torch_throughput [--device cuda] [--saved 0.347] [--seconds 150] [--out FILE.json]

Zero-TPrune's authors report +45.3 % images per second on an A100 where multiply-adds fall by 34.7 % (CVPR 2024). Each
method gets the keep ratio at which the model's multiply-adds are nearest to that, counted as papers do: whole blocks.
`slice` cuts the tokens of `zero-tprune` without looking at them: what it gains is the limit of all methods that drop as
many.

In each setting (precision, batch, mode, attention) the models take turns in rounds of changing order; a speed-up is the
median of the rounds' ratios. Random weights are enough: with static shapes the time does not depend on the values.
Settings come in the order of what matters most; those that do not fit into `--seconds` are left out and named.
`--device cpu` tries all of it with a tiny model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ztdeploy.core.cost import at_cost, whole_block_gmacs
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.plan import plan
from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.host.models.loading import load_model
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.measure.statistics import bootstrap_interval, round_ratios
from ztdeploy.target.measure.turns import turn_orders

DENSE, SLICE = "dense", "slice"
CONTENDERS = (DENSE, SLICE, "zero-tprune", "novelty-merge", "tome")
PAPER_SAVED = 0.347
PAPER_GAIN = 0.453
ROUNDS = 8
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """What all models of one comparison share."""

    dtype: str
    batch: int
    mode: str  #: eager, graph (a CUDA graph of eager's kernels), or compile (torch.compile)
    attention: str = "fused"  #: or plain, as models had it when the paper was written; pruning layers need plain ones

    def __str__(self) -> str:
        return f"{self.dtype}, batch {self.batch}, {self.mode}, {self.attention} attention"


@dataclass
class Comparison:
    """One setting's figures; times in milliseconds per call."""

    setting: Setting
    median_ms: dict[str, float] = field(default_factory=dict)
    images_per_s: dict[str, float] = field(default_factory=dict)
    gain: dict[str, float] = field(default_factory=dict)  #: images per second over dense, less 1
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)  #: of the gain, 95 %
    peak_mb: dict[str, float] = field(default_factory=dict)  #: memory at its highest, weights included
    pruning_share: dict[str, float] = field(default_factory=dict)  #: of the device's time, in pruning layers
    failed: dict[str, str] = field(default_factory=dict)


class Device:
    """A GPU, or a CPU in its place on which the script is tried."""

    def __init__(self, name: str) -> None:
        self.name, self.is_gpu = name, name == "cuda"

    def settings(self) -> Iterator[Setting]:
        """What matters most comes first; all of one precision stand together."""
        if not self.is_gpu:
            yield from (
                Setting("fp32", 2, "eager"),
                Setting("fp32", 2, "compile"),
                Setting("fp32", 2, "eager", "plain"),
            )
            return
        yield from (Setting("fp16", 256, mode) for mode in ("eager", "graph", "compile"))
        yield Setting("fp16", 256, "graph", "plain")
        yield from (Setting("fp16", batch, mode) for batch in (32, 1) for mode in ("graph", "eager"))
        yield from (Setting("fp32", batch, "graph") for batch in (256, 32, 1))
        yield Setting("fp32", 256, "graph", "plain")
        yield from (Setting("fp32", batch, "eager") for batch in (256, 32, 1))

    def describe(self) -> str:
        if not self.is_gpu:
            return f"CPU in place of a GPU, torch {torch.__version__}"
        facts = torch.cuda.get_device_properties(0)
        return f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, torch {torch.__version__}, CUDA {torch.version.cuda}"

    def synchronise(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object], calls: int) -> float:
        """Per call, of `calls` that are queued one behind the other."""
        self.synchronise()
        began = time.perf_counter()
        for _ in range(calls):
            work()
        self.synchronise()
        return 1000 * (time.perf_counter() - began) / calls

    def peak_mb(self, work: Callable[[], object]) -> float | None:
        if not self.is_gpu:
            return None
        torch.cuda.reset_peak_memory_stats()
        work()
        self.synchronise()
        return torch.cuda.max_memory_allocated() / 1e6


def schedules(architecture: Architecture, saved: float) -> dict[str, PruningSchedule]:
    """Each contender's schedule at the same multiply-adds."""
    made = {
        method: at_cost(
            lambda ratio, method=method: default_schedule(ratio, architecture, method=method),  # type: ignore[misc]
            architecture,
            1 - saved,
            whole_block_gmacs,
        )
        for method in CONTENDERS
        if method not in (DENSE, SLICE)
    }
    return {
        DENSE: default_schedule(1.0, architecture),
        SLICE: made["zero-tprune"].model_copy(update={"method": SLICE}),
        **made,
    }


def model_of(name: str, schedule: PruningSchedule, device: Device, dtype: torch.dtype) -> nn.Module:
    module = PrunedModel(load_model(ModelSource(name=name, weights="random")).adapter, schedule)
    return module.to(device.name, dtype).eval()


def choose_attention(module: nn.Module, attention: str) -> None:
    """Have timm's blocks attend in one operator, or in several that show the attention matrix.

    Blocks that show it to a pruning layer are plain whatever is asked for.
    """
    assert isinstance(module, PrunedModel)
    showing = {layer.plan.block for layer in module.layers if layer.needs_attention}
    for index, block in enumerate(module.model.blocks):
        block.attn.fused_attn = attention == "fused" and index not in showing


def prepared(module: nn.Module, images: Tensor, mode: str) -> Callable[[], object]:
    """One call of a model in a mode, warmed up."""
    work: Callable[[], object] = partial(module, images)
    if mode == "compile":
        work = partial(torch.compile(module, dynamic=False), images)
    for _ in range(3):
        work()
    if mode == "graph":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        work = graph.replay
    return work


def pruning_share(module: nn.Module, images: Tensor, device: Device) -> float:
    """The share of the device's time that goes to pruning layers, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile, record_function

    assert isinstance(module, PrunedModel)
    undo, ranges = [], []
    for layer in module.layers:

        def begin(_layer: nn.Module, _inputs: Any) -> None:
            ranges.append(record_function("pruning layer").__enter__())  # type: ignore[no-untyped-call]

        def end(_layer: nn.Module, _inputs: Any, _output: Any) -> None:
            ranges.pop().__exit__(None, None, None)

        undo += [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.is_gpu else [])]
    with profile(activities=activities) as profiled:
        module(images)
        device.synchronise()
    for handle in undo:
        handle.remove()
    kind = "device" if device.is_gpu else "cpu"
    events = [event for event in profiled.events() if event.device_type.name == "CPU"]
    total = sum(getattr(event, f"self_{kind}_time_total") for event in events)
    inside = sum(getattr(event, f"{kind}_time_total") for event in events if event.name == "pruning layer")
    return float(inside / total) if total else 0.0


def compare(
    setting: Setting, models: Mapping[str, nn.Module], device: Device, size: int, turn_s: float, deadline: float
) -> Comparison:
    """Time all models in turns; who fails, or would begin to be compiled after the deadline, is named."""
    found = Comparison(setting)
    images = torch.randn(setting.batch, 3, size, size, device=device.name, dtype=DTYPES[setting.dtype])
    works, calls = {}, {}
    for name, module in models.items():
        if time.monotonic() > deadline:
            found.failed[name] = "no time left"
            continue
        choose_attention(module, setting.attention)
        try:
            works[name] = prepared(module, images, setting.mode)
            took = device.milliseconds(works[name], 2)
            calls[name] = max(1, round(1000 * turn_s / took))
            if (peak := device.peak_mb(works[name])) is not None and setting.mode == "eager":
                found.peak_mb[name] = peak
        except Exception as error:
            found.failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
            works.pop(name, None)
    rounds: dict[str, dict[int, list[float]]] = {name: {} for name in works}
    names = list(works)
    for turn, order in enumerate(turn_orders(len(names), ROUNDS, seed=0)):
        for name in (names[index] for index in order):
            works[name]()
            rounds[name][turn] = [device.milliseconds(works[name], calls[name])]
    for name, samples in rounds.items():
        found.median_ms[name] = median(values[0] for values in samples.values())
        found.images_per_s[name] = 1000 * setting.batch / found.median_ms[name]
        if name != DENSE and DENSE in rounds:
            ratios = round_ratios(rounds[DENSE], samples)
            interval = bootstrap_interval(ratios)
            assert interval is not None, "there are enough rounds for one"
            found.gain[name] = median(ratios) - 1
            found.interval[name] = (interval.low - 1, interval.high - 1)
    if setting.mode == "eager":
        for name in names:
            if name != DENSE:
                found.pruning_share[name] = pruning_share(models[name], images, device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--saved", type=float, default=PAPER_SAVED, help="share of the dense model's multiply-adds")
    parser.add_argument("--seconds", type=float, default=150, help="no setting is begun after these")
    parser.add_argument("--turn", type=float, default=0.08, help="seconds that one model works in one round")
    parser.add_argument("--out", type=Path, help="JSON, written anew after each setting")
    parser.add_argument("--compile-only", choices=CONTENDERS, help="only fill torch.compile's cache for one model")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    device = Device(arguments.device)
    name = "deit_s" if device.is_gpu else "deit_t"
    loaded = load_model(ModelSource(name=name, weights="random"))
    architecture, size = loaded.adapter.architecture, loaded.adapter.image_size.height
    chosen = schedules(architecture, arguments.saved)
    plans = {one: plan(schedule, architecture) for one, schedule in chosen.items()}
    cost = {one: whole_block_gmacs(architecture, found) for one, found in plans.items()}
    report: dict[str, Any] = {
        "device": device.describe(),
        "model": name,
        "gmacs": cost,
        "saved": {one: 1 - value / cost[DENSE] for one, value in cost.items()},
        "tokens": {one: found.tokens_per_block for one, found in plans.items()},
        "settings": [],
        "left_out": [],
    }
    # The patch embedding's convolution is a fifth of a dense model's time by the algorithm that is chosen untried.
    torch.backends.cudnn.benchmark = True
    # By default torch.compile does not look at hooks, and would run the first model's graph for all.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    with torch.inference_mode():
        if arguments.compile_only:
            setting = next(one for one in device.settings() if one.mode == "compile")
            module = model_of(name, chosen[arguments.compile_only], device, DTYPES[setting.dtype])
            images = torch.randn(setting.batch, 3, size, size, device=device.name, dtype=DTYPES[setting.dtype])
            prepared(module, images, "compile")
            return
        models: dict[str, nn.Module] = {}
        dtype = ""
        for setting in device.settings():
            if time.monotonic() > deadline:
                report["left_out"].append(str(setting))
                continue
            print(f"{setting}", file=sys.stderr, flush=True)
            if setting.dtype != dtype:
                models = {}  # the memory of the last ones is free before the next are made
                models = {
                    one: model_of(name, schedule, device, DTYPES[setting.dtype]) for one, schedule in chosen.items()
                }
                dtype = setting.dtype
            report["settings"].append(asdict(compare(setting, models, device, size, arguments.turn, deadline)))
            if arguments.out:
                arguments.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(table(report))


def table(report: Mapping[str, Any]) -> str:
    """Markdown: one line per setting, images per second over dense by method."""
    names = [one for one in CONTENDERS if one != DENSE]
    saved = ", ".join(f"{one} {-100 * report['saved'][one]:.1f} %" for one in names)
    lines = [
        f"{report['model']} on {report['device']}; multiply-adds over dense: {saved}.",
        "",
        "| precision, batch, mode, attention | dense, images/s | " + " | ".join(names) + " |",
        "| --- | ---: |" + " --- |" * len(names),
    ]
    for found in report["settings"]:
        setting = found["setting"]
        name = f"{setting['dtype']}, {setting['batch']}, {setting['mode']}, {setting['attention']}"
        cells = []
        for one in names:
            if one not in found["gain"]:
                cells.append(found["failed"].get(one, "-"))
                continue
            low, high = found["interval"][one]
            cells.append(f"{100 * found['gain'][one]:+.1f} % ({100 * low:+.1f} to {100 * high:+.1f})")
        dense = f"{found['images_per_s'][DENSE]:.0f}" if DENSE in found["images_per_s"] else "-"
        lines.append(f"| {name} | {dense} | {' | '.join(cells)} |")
    shares = [one for one in report["settings"] if one["pruning_share"] and one["setting"]["attention"] == "fused"]
    if shares:
        lines += [
            "",
            "| in pruning layers | peak, dense | " + " | ".join(names) + " |",
            "| --- | ---: |" + " --- |" * len(names),
        ]
        for found in shares:
            setting, peaks = found["setting"], found["peak_mb"]
            peak = {one: f"{took:.0f} MB" for one, took in peaks.items()}
            shown = {one: f"{100 * share:.1f} % of time" for one, share in found["pruning_share"].items()}
            cells = [", ".join(said[one] for said in (shown, peak) if one in said) or "-" for one in names]
            lines.append(f"| {setting['dtype']}, {setting['batch']} | {peak.get(DENSE, '-')} | {' | '.join(cells)} |")
    if report["left_out"]:
        lines += ["", f"Left out for want of time: {'; '.join(report['left_out'])}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
