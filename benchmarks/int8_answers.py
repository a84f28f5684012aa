"""What int8 changes about a pruned model's answers: a bundle's int8 engine against its fp32 one, same keep ratio.

    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.int8_answers [--profiles cpu-openvino-int8-rows ...]
                             [--methods novelty-merge zero-tprune] [--keep-ratio 0.7] [--calibrate 11]
                             [--schedules deit_t-reduction-35] [--copies]

The folder holds a trained DeiT-Tiny, `images/` and `labels.json`. Of its photographs, sorted by file name, every
eleventh calibrates, where ranges come from images, and the others are scored; `--calibrate 0` scores all. `--copies`
scores three altered copies of each in its stead: its mirror image, its upper left part, and its lower right part,
mirrored. Rounding falls another way in each, so the interval is narrower, and ideas can be compared on images that no
figure of the photographs themselves comes from. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.halves import CHECKPOINT, CROP_PCT, real_data, write_data
from benchmarks.machine import describe_machine
from ztdeploy.core.bundle import Bundle
from ztdeploy.core.manifest import GateLimits
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import PreprocessOptions
from ztdeploy.core.profile import schedule_path
from ztdeploy.core.schedule import read_schedule
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.jobs.request import Gate
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.evaluate.data import read_labels
from ztdeploy.target.evaluate.scoring import hits, share
from ztdeploy.target.runtime.images import read_image
from ztdeploy.target.runtime.postprocess import divergences
from ztdeploy.target.runtime.preprocess import load_pixels

SINGLE = "cpu"
PART = 0.88  #: of a photograph's width and height, in its copies
HEAD = (
    "| profile | variant | same answer as fp32, % | mean KL, nats | right in int8 | right in fp32 |\n"
    + "| --- " * 6
    + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", nargs="+", default=["cpu-openvino-int8-rows"])
    parser.add_argument("--methods", nargs="+", default=["novelty-merge"])
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--calibrate", type=int, default=11, help="every so many-th photograph; 0: none")
    parser.add_argument("--schedules", nargs="+", default=[], help="names or files; instead of methods and keep ratio")
    parser.add_argument("--copies", action="store_true", help="score three altered copies of each photograph instead")
    arguments = parser.parse_args()
    folder = real_data()
    photographs = sorted(read_labels(folder / "labels.json"), key=lambda one: one.path.name)
    apart = arguments.calibrate
    scored = [one for place, one in enumerate(photographs) if not apart or place % apart]
    images = [image for one in scored for image in (copies(one.path) if arguments.copies else [read_image(one.path)])]
    accepted = [one.accepted for one in scored for _ in range(len(images) // len(scored))]
    print(f"{describe_machine()}; DeiT-Tiny, {len(images)} {'copies' if arguments.copies else 'photographs'}\n\n{HEAD}")
    with tempfile.TemporaryDirectory() as scratch:
        gate = None
        if apart:
            gate = Gate(Path(scratch) / "calibration", GateLimits())
            write_data(photographs[::apart], folder / "images", gate.data)
        wanted = BuildRequest(
            model=ModelSource(
                name="deit_t", checkpoint=folder / CHECKPOINT, preprocess=PreprocessOptions(crop_pct=CROP_PCT)
            ),
            profiles=(SINGLE, *arguments.profiles),
            gate=gate,
            out=Path(scratch) / "bundle",
            force=True,
        )
        asked = [
            replace(wanted, schedules=(read_schedule(schedule_path(Path(one))),)) for one in arguments.schedules
        ] or [replace(wanted, methods=(method,), keep_ratios=(arguments.keep_ratio,)) for method in arguments.methods]
        for request in asked:
            bundle = build(request)
            variant = bundle.manifest.default_variant
            pixels = load_pixels(images, bundle.manifest.preprocess)
            single = logits(bundle, SINGLE, pixels)
            for profile in arguments.profiles:
                found = row(logits(bundle, profile, pixels), single, accepted)
                print(f"| {profile} | {variant} | {found} |", flush=True)


def copies(path: Path) -> list[Image.Image]:
    """A photograph's mirror image, its upper left part, and its lower right part, mirrored."""
    image = read_image(path)
    width, height = (int(PART * side) for side in image.size)
    lower = image.crop((image.width - width, image.height - height, image.width, image.height))
    return [ImageOps.mirror(image), image.crop((0, 0, width, height)), ImageOps.mirror(lower)]


def logits(bundle: Bundle, profile: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of the pruned variant, one image at a time: an answer must not depend on what else is in its call."""
    with load(bundle, variant=bundle.manifest.default_variant, profile=profile) as runner:
        return np.concatenate([runner.infer(pixels[at : at + 1]).logits for at in range(len(pixels))])


def row(integers: NDArray[np.float32], single: NDArray[np.float32], accepted: list[frozenset[int]]) -> str:
    same = share(integers.argmax(-1) == single.argmax(-1))
    right = [int(hits(one.argmax(-1)[:, None].astype(np.int32), accepted).sum()) for one in (integers, single)]
    low, high = 100 * same.interval.low, 100 * same.interval.high
    divergence = divergences(single, integers).mean()
    return f"{100 * same.value:.1f} ({low:.1f} to {high:.1f}) | {divergence:.4f} | {right[0]} | {right[1]}"


if __name__ == "__main__":
    main()
