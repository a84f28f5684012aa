"""The maps of an evaluation's worst images: its engines run on them once more, since maps are too large to be kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import Bundle
from ztdeploy.target.evaluate.data import Decoded, decode, image_folder
from ztdeploy.target.evaluate.engines import open_runners
from ztdeploy.target.evaluate.eval_report import EvalReport, FarMap
from ztdeploy.target.evaluate.evaluate import plan

DRAWN = 6  #: images per variant


@dataclass(frozen=True)
class MapPair:
    """A variant's map of an image, and the baseline's."""

    variant: str  #: its label in the report
    figures: FarMap
    pixels: NDArray[np.uint8]  #: `[H, W, C]` as the model sees the image
    dense: NDArray[np.float32]  #: `[C, h, w]` as the engines gave them
    own: NDArray[np.float32]


def worst_maps(report: EvalReport, bundle: Bundle) -> Iterator[MapPair]:
    """Variant by variant, the worst images first; nothing of other outputs. An image that is gone is left out.

    Raises:
        BundleError: a file has changed since the build.
    """
    wanted = [(at, score, score.maps.furthest[:DRAWN]) for at, score in enumerate(report.variants) if score.maps]
    if not any(images for _, _, images in wanted):
        return
    work, folder = plan(report.request, bundle)[1], image_folder(Path(report.data.path))
    with open_runners(work, work.threads) as runners:
        for at, score, images in wanted:
            for one in images:
                image = decode(folder / one.image, bundle.manifest.preprocess)
                if isinstance(image, Decoded):
                    dense, own = (runners[place].infer(image.pixels[None]).logits[0] for place in (0, at))
                    yield MapPair(score.label, one, image.pixels, dense, own)
