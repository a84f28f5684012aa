"""What int8 changes about a pruned model's answers: a bundle's int8 engine against its fp32 one, same keep ratio.

    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.int8_answers [--profiles cpu-openvino-int8-rows ...]
                             [--methods novelty-merge zero-tprune] [--keep-ratio 0.7] [--calibrate 11]

The folder holds a trained DeiT-Tiny, `images/` and `labels.json`. Of its photographs, sorted by file name, every
eleventh calibrates, where ranges come from images, and the others are scored; `--calibrate 0` scores all. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.halves import CHECKPOINT, CROP_PCT, real_data, write_data
from benchmarks.machine import describe_machine
from ztdeploy.bundle import Bundle
from ztdeploy.fidelity.divergence import kl_divergences
from ztdeploy.fidelity.labels import LabelledImage, read_labels
from ztdeploy.fidelity.scoring import hits, share
from ztdeploy.gate import Gate
from ztdeploy.manifest import GateLimits
from ztdeploy.pipeline import BuildRequest, build
from ztdeploy.runtime.inputs import load_pixels
from ztdeploy.runtime.runner import load

SINGLE = "cpu"
HEAD = (
    "| profile | method | same answer as fp32, % | mean KL, nats | right in int8 | right in fp32 |\n"
    + "| --- " * 6
    + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", nargs="+", default=["cpu-openvino-int8-rows"])
    parser.add_argument("--methods", nargs="+", default=["novelty-merge"])
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--calibrate", type=int, default=11, help="every so many-th photograph; 0: none")
    arguments = parser.parse_args()
    folder = real_data()
    photographs = sorted(read_labels(folder / "labels.json"), key=lambda one: one.path.name)
    apart = arguments.calibrate
    scored = [one for place, one in enumerate(photographs) if not apart or place % apart]
    print(f"{describe_machine()}; DeiT-Tiny, keep ratio {arguments.keep_ratio:g}, {len(scored)} photographs\n\n{HEAD}")
    with tempfile.TemporaryDirectory() as scratch:
        gate = None
        if apart:
            gate = Gate(Path(scratch) / "calibration", GateLimits())
            write_data(photographs[::apart], folder / "images", gate.data)
        for method in arguments.methods:
            bundle = build(
                BuildRequest(
                    model="deit_t",
                    checkpoint=folder / CHECKPOINT,
                    crop_pct=CROP_PCT,
                    profiles=(SINGLE, *arguments.profiles),
                    keep_ratios=(arguments.keep_ratio,),
                    methods=(method,),
                    gate=gate,
                    out=Path(scratch) / method,
                )
            )
            single = logits(bundle, SINGLE, scored)
            for profile in arguments.profiles:
                print(f"| {profile} | {method} | {row(logits(bundle, profile, scored), single, scored)} |", flush=True)


def logits(bundle: Bundle, profile: str, photographs: list[LabelledImage]) -> NDArray[np.float32]:
    """Of the pruned variant, one photograph at a time: an answer must not depend on what else is in its call."""
    pixels = load_pixels([one.path for one in photographs], bundle.manifest.preprocess)
    with load(bundle, variant=bundle.manifest.default_variant, profile=profile) as runner:
        return np.concatenate([runner.infer(pixels[at : at + 1]).logits for at in range(len(pixels))])


def row(integers: NDArray[np.float32], single: NDArray[np.float32], photographs: list[LabelledImage]) -> str:
    same = share(integers.argmax(-1) == single.argmax(-1))
    accepted = [one.accepted for one in photographs]
    right = [int(hits(one.argmax(-1)[:, None].astype(np.int32), accepted).sum()) for one in (integers, single)]
    low, high = 100 * same.interval.low, 100 * same.interval.high
    divergence = kl_divergences(single, integers).mean()
    return f"{100 * same.value:.1f} ({low:.1f} to {high:.1f}) | {divergence:.4f} | {right[0]} | {right[1]}"


if __name__ == "__main__":
    main()
