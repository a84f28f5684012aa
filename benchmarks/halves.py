"""One half of the photographs as a data set of its own: taken with --data by `eval` and the ablation.

    ZTDEPLOY_REALDATA=FOLDER python -m benchmarks.halves tuning OUT

Writes OUT/labels.json, and a link to the photographs beside it. Sorted by file name, those at even places are the
tuning half, on which defaults are chosen, and those at odd ones the report half.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ztdeploy.target.evaluate.data import LabelledImage, read_labels

CHECKPOINT, CROP_PCT = "deit_tiny_patch16_224.fp16.safetensors", 0.875


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=("tuning", "report"))
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    arguments = parser.parse_args()
    folder = real_data()
    chosen = half(read_labels(folder / "labels.json"), arguments.half)
    write_data(chosen, folder / "images", arguments.out)
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


if __name__ == "__main__":
    main()
