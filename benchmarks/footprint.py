"""What a build costs, and what the target half costs: time, memory, disk.

    python -m benchmarks.footprint [--model deit_s]

- build with two variants: wall time and peak memory of the process
- disk of four variants against one
- `ztdeploy --help`
- import, load and first image, from process start to its end, and the most memory of it: in Python and as
  `ztdeploy run`, fp32 and int8. Python's bytecode is there, as an installer leaves it
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
        quantised = Path(folder) / "int8"
        _build(model, quantised, ["0.7"], "cpu-int8")
        for bundle, wanted in ((two, 0.8), (quantised, 0.5)):
            for name, command in _first_images(bundle).items():
                seconds, peak_mb = _first_image(command, Path(folder) / "bytecode")
                print(f"  {bundle.name}, {name:20s} {seconds:6.2f} s, {peak_mb:.0f} MB  (at most {wanted} s wanted)")
    helps = [_wall([sys.executable, "-m", "ztdeploy", "--help"]) for _ in range(11)]
    print(f"  ztdeploy --help               {median(helps):6.2f} s  (at most 0.4 s wanted)")


def _first_images(bundle: Path) -> dict[str, list[str]]:
    """Commands that open a bundle, and run it on one image."""
    return {
        "load, first image": [sys.executable, "-c", FIRST_IMAGE, str(bundle), str(PHOTO)],
        "ztdeploy run": [sys.executable, "-m", "ztdeploy", "run", str(bundle), str(PHOTO)],
    }


def _first_image(command: list[str], bytecode: Path, rounds: int = 11) -> tuple[float, float]:
    """Median seconds and peak megabytes of a process, behind a first one that writes the bytecode."""
    shell = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    shell["PYTHONPYCACHEPREFIX"] = str(bytecode)
    found = list[tuple[float, float]]()
    for _ in range(rounds + 1):
        before = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=shell)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{command[1:3]} failed")
        found.append((time.perf_counter() - before, used.ru_maxrss / 1024))
    seconds, peaks = zip(*found[1:], strict=True)
    return median(seconds), median(peaks)


def _build(model: str, out: Path, ratios: list[str], profile: str = "cpu") -> tuple[float, float]:
    """Wall seconds and peak gigabytes of one build in a process of its own."""
    command = [sys.executable, "-m", "ztdeploy", "build", "--model", model, "--profile", profile, "--weights", "random"]
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
