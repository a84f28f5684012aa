"""What the Python runner gives for some pixels, for one machine after the other to write down.

    python answers.py BUNDLE PROFILE PIXELS.npy OUT.npz speed|shared

PROFILE has engines for ONNX Runtime; or its engines are built elsewhere, and ONNX Runtime runs its graphs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ztdeploy.core.bundle import read_bundle
from ztdeploy.target.backends import load_graph
from ztdeploy.target.backends.base import MemoryMode
from ztdeploy.target.runtime.runner import BundleRunner


def main(folder: Path, profile: str, pixels: Path, out: Path, memory: MemoryMode) -> None:
    """Write arrays VARIANT/CALL/logits, /kept/LAYER and /into/LAYER; a call has all images, or the first alone."""
    bundle, images, found = read_bundle(folder), np.load(pixels), {}
    with BundleRunner(bundle, profile=profile, threads=1, memory=memory, verify=True) as runner:
        for variant in bundle.manifest.variants:
            if profile in variant.engines:
                runner.switch(variant=variant.name)
            else:
                runner.adopt(variant.name, load_graph(bundle.path(variant.graphs[profile].file), threads=1))
            for call in (images, images[:1]):
                outputs, name = runner.infer(call), f"{variant.name}/{len(call)}"
                found[f"{name}/logits"] = outputs.logits
                for kind in ("kept", "into"):
                    found |= {f"{name}/{kind}/{at}": one for at, one in enumerate(getattr(outputs, kind))}
    np.savez(out, allow_pickle=False, **found)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        sys.argv[2],
        Path(sys.argv[3]),
        Path(sys.argv[4]),
        "shared" if sys.argv[5] == "shared" else "speed",
    )
