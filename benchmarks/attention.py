"""Whether ONNX Runtime's own attention operator is faster than plain attention, and from how many tokens on.

    python -m benchmarks.attention [--model deit_s] [--image-sizes 224 384] [--batches 1 8]

Times the dense model in both forms, in turns. What it says goes into a profile's `fused_attention_from`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.turns import time_in_turns
from ztdeploy.core.bundle import Bundle
from ztdeploy.core.model_source import ModelSource
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.measure.turns import Configuration

FORMS = {"plain": "", "fused": "fused_attention_from = 1\n"}
PROFILE = 'title = "{form} attention"\nbackend = "onnxruntime"\n{key}'
HEAD = (
    "| image | tokens | batch | plain ms | fused ms | fused / plain | 95 % interval |\n| "
    + " | ".join(["---:"] * 7)
    + " |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_s")
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[224, 384], help="pixels")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--duration", type=float, default=12.0, help="seconds per form, over all rounds")
    arguments = parser.parse_args()
    print(f"{describe_machine()}; {arguments.model} dense, fp32, {arguments.rounds} rounds\n\n{HEAD}", flush=True)
    for size in arguments.image_sizes:
        with tempfile.TemporaryDirectory() as folder:
            bundle = _build(arguments.model, size, Path(folder))
            for batch in arguments.batches:
                print(_row(bundle, batch, arguments.rounds, arguments.duration), flush=True)


def _build(model: str, image_size: int, folder: Path) -> Bundle:
    profiles = []
    for form, key in FORMS.items():
        profiles.append(folder / f"{form}.toml")
        profiles[-1].write_text(PROFILE.format(form=form, key=key), encoding="utf-8")
    names = tuple(map(str, profiles))
    request = BuildRequest(
        ModelSource(name=model, weights="random", image_size=image_size), names, folder / "bundle", keep_ratios=(1.0,)
    )
    return build(request)


def _row(bundle: Bundle, batch: int, rounds: int, seconds: float) -> str:
    dense = bundle.manifest.dense
    configurations = [Configuration(bundle.root, dense.name, form, batch=batch) for form in FORMS]
    plain, fused = time_in_turns(configurations, rounds=rounds, seconds=seconds)
    if reason := plain.reason or fused.reason:
        raise RuntimeError(reason)
    ratio, interval = plain.interval_over(fused)  # plain is so many times faster: the ratio of their times
    span = "-" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
    size, tokens = bundle.manifest.preprocess.image_size, dense.plan.tokens_per_block[0]
    return f"| {size} | {tokens} | {batch} | {plain.median_ms:.2f} | {fused.median_ms:.2f} | {ratio:.3f} | {span} |"


if __name__ == "__main__":
    main()
