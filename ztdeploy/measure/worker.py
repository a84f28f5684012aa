"""The process in which one engine is timed; nothing else runs in it.

Started by `measure.latency`; reads one JSON request per line on standard input, answers with one line of JSON.
Several ONNX Runtime sessions in one process spin against each other, so every configuration has a process of its own.
"""

from __future__ import annotations

import json
import resource
import sys
import time

_started = time.perf_counter()


def main() -> None:
    """Load one engine, then answer `{"iterations": n}` with n latencies in milliseconds until standard input ends."""
    bundle, variant, profile, threads, batch = sys.argv[1:6]
    import numpy as np

    from ztdeploy.runtime.runner import load

    imported = time.perf_counter()
    runner = load(bundle, variant=variant, profile=profile, threads=int(threads) or None, verify=False)
    loaded = time.perf_counter()
    size = runner.bundle.manifest.preprocess.image_size
    # The time of an engine with static shapes does not depend on what the pixels are.
    pixels = np.random.default_rng(0).integers(0, 256, (int(batch), size, size, 3), dtype=np.uint8)
    runner.infer(pixels)
    first = time.perf_counter()
    print(
        json.dumps(
            {"import_ms": _ms(_started, imported), "load_ms": _ms(imported, loaded), "first_ms": _ms(loaded, first)}
        )
    )
    sys.stdout.flush()
    for line in sys.stdin:
        samples = []
        for _ in range(int(json.loads(line)["iterations"])):
            before = time.perf_counter()
            runner.infer(pixels)
            samples.append(_ms(before, time.perf_counter()))
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"samples_ms": samples, "peak_rss_mb": peak_mb}))
        sys.stdout.flush()


def _ms(start: float, end: float) -> float:
    return 1000 * (end - start)


if __name__ == "__main__":
    main()
