"""One part of the photographs as a data set of its own: taken with --data by `eval`, `tune` and the ablation.

    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.halves tuning OUT
    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.halves choosing,confirming OUT

Writes OUT/labels.json, and a link to the photographs beside it. Sorted by file name, those at even places are the
tuning half, on which defaults are chosen, and those at odd ones the report half.

Thirds are of these photographs and the ImageNet samples together, sorted by file name: places 0, 3, ... choose counts
for blocks, places 1, 4, ... confirm them, places 2, 5, ... report. OUT is then a folder of links without labels. `tune`
takes every second image of it: of the first two thirds together it chooses on one and reports on the other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ztdeploy.target.evaluate.data import LabelledImage, read_labels

CHECKPOINT, CROP_PCT = "deit_tiny_patch16_224.fp16.safetensors", 0.875
HALVES, THIRDS = ("tuning", "report"), ("choosing", "confirming", "reporting")
SAMPLES = "imagenet_samples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*HALVES, *THIRDS, ",".join(THIRDS[:2])))
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    arguments = parser.parse_args()
    folder = real_data()
    if arguments.part in HALVES:
        chosen = half(read_labels(folder / "labels.json"), arguments.part)
        write_data(chosen, folder / "images", arguments.out)
    else:
        chosen = [one for name in arguments.part.split(",") for one in third(folder, name)]
        arguments.out.mkdir(parents=True)
        for one in chosen:
            (arguments.out / one.path.name).symlink_to(one.path.resolve())
    print(f"{len(chosen)} photographs in {arguments.out}")


def write_data(photographs: Sequence[LabelledImage], images: Path, out: Path) -> None:
    """A data set of some of the photographs that lie in `images`: a labels.json, and a link to them."""
    entries = [{"file": one.path.name, "indices": sorted(one.accepted)} for one in photographs]
    out.mkdir(parents=True)
    (out / "images").symlink_to(images.resolve(), target_is_directory=True)
    (out / "labels.json").write_text(json.dumps(entries), encoding="utf-8")


def real_data() -> Path:
    """The folder that ZTDEPLOY_REALDATA names; ends the process with a line where there is none."""
    folder = Path(os.environ.get("ZTDEPLOY_REALDATA") or "nowhere")
    if not (folder / CHECKPOINT).is_file() or not (folder / "labels.json").is_file():
        sys.exit(f"error: ZTDEPLOY_REALDATA names no folder with {CHECKPOINT}, labels.json and images/; set it")
    return folder


def half(photographs: list[LabelledImage], name: str) -> list[LabelledImage]:
    """Every second photograph by file name: those at even places are `tuning`, at odd ones `report`."""
    return sorted(photographs, key=lambda one: one.path.name)[0 if name == "tuning" else 1 :: 2]


def third(folder: Path, name: str) -> list[LabelledImage]:
    """Every third of all photographs by file name, those of Caltech-101 and the ImageNet samples together."""
    samples = read_labels(folder / f"{SAMPLES}_labels.json")
    samples = [replace(one, path=folder / SAMPLES / one.path.name) for one in samples]
    photographs = [*read_labels(folder / "labels.json"), *samples]
    return sorted(photographs, key=lambda one: one.path.name)[THIRDS.index(name) :: 3]


if __name__ == "__main__":
    main()
