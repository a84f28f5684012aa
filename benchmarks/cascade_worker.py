"""The process in which the prefix and the tail of one variant are timed as one engine."""

from __future__ import annotations

import sys
import time

from ztdeploy.target.measure.worker import prepare, serve


def main() -> None:
    answers = prepare()
    import numpy as np

    from ztdeploy.core.bundle import read_bundle
    from ztdeploy.target.adaptive.pieces import Chained, engine_opener
    from ztdeploy.target.runtime.runner import BundleRunner

    folder, name, profile, threads, ordered_ns = sys.argv[1:]
    bundle, imported_ns = read_bundle(folder), time.monotonic_ns()
    shape = bundle.manifest.preprocess.shape
    pixels = np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8)

    def start() -> BundleRunner:
        cascade = bundle.manifest.cascade
        assert cascade is not None
        tail = next(stage for stage in cascade.stages if stage.variant == name)
        opened = engine_opener(bundle, profile, int(threads))
        runner = BundleRunner(bundle, profile=profile, threads=int(threads), memory="speed", verify=False)
        runner.adopt(name, Chained(opened(cascade.prefix), opened(tail)))
        return runner

    serve(
        answers,
        start,
        lambda runner: lambda: runner.infer(pixels),
        imported_ns=imported_ns,
        ordered_ns=int(ordered_ns),
    )


if __name__ == "__main__":
    main()
