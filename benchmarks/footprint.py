"""What a build costs, and what the target half costs: time, memory, disk.

    python -m benchmarks.footprint [--model deit_s]

- build with two variants: wall time and peak memory of the process
- disk of four variants against one
- `ztdeploy --help`
- import, load and first image, from process start
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.machine import asked_model
from ztdeploy.host.models.catalogue import ASSETS

PHOTO = ASSETS / "photos" / "chelsea.jpg"
FIRST_IMAGE = "import sys, ztdeploy; ztdeploy.load(sys.argv[1])(sys.argv[2])"


def main() -> None:
    model = asked_model(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        two, four = Path(folder) / "two", Path(folder) / "four"
        seconds, peak_gb = _build(model, two, ["0.7"])
        print(f"  build {model}, two variants      {seconds:6.1f} s, {peak_gb:.2f} GB  (at most 60 s and 3 GB wanted)")
        _build(model, four, ["0.9", "0.7", "0.5"])
        one = Path(folder) / "one"
        _build(model, one, ["1.0"])
        ratio = _size(four) / _size(one)
        print(f"  disk of four variants / one   {ratio:6.3f} ({_size(four) / 1e6:.1f} MB)  (at most 1.1 wanted)")
        first = [_wall([sys.executable, "-c", FIRST_IMAGE, str(two), str(PHOTO)]) for _ in range(7)]
        print(f"  import + load + first image   {median(first):6.2f} s  (at most 1.5 s wanted)")
    helps = [_wall([sys.executable, "-m", "ztdeploy", "--help"]) for _ in range(11)]
    print(f"  ztdeploy --help               {median(helps):6.2f} s  (at most 0.4 s wanted)")


def _build(model: str, out: Path, ratios: list[str]) -> tuple[float, float]:
    """Wall seconds and peak gigabytes of one build in a process of its own."""
    command = [sys.executable, "-m", "ztdeploy", "build", "--model", model, "--profile", "cpu", "--weights", "random"]
    command += [argument for ratio in ratios for argument in ("--keep-ratio", ratio)]
    seconds = _wall([*command, "--out", str(out)])
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def _wall(command: list[str]) -> float:
    before = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    return time.perf_counter() - before


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
