"""The C++ runner against the Python runner: seconds and memory from process start to the first image.

    python -m benchmarks.cpp build/ztdeploy-run [--bundle DIR] [--profile cpu] [--rounds 9]

Without `--bundle`, DeiT-S is built with random weights. The two take turns. Memory is the peak of what is resident:
anonymous pages, which only this process has, and pages of files, which the system can share or drop.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.machine import describe_machine

PHOTO = Path(__file__).parents[1] / "ztdeploy" / "host" / "assets" / "photos" / "chelsea.jpg"
RUN = "import sys, ztdeploy; ztdeploy.load(sys.argv[1], profile=sys.argv[3], threads=1)(sys.argv[2])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        bundle = asked.bundle or _build(asked.profile, Path(folder) / "bundle")
        commands = {
            "Python": [sys.executable, "-c", RUN, str(bundle), str(PHOTO), asked.profile],
            "C++": [str(asked.program), str(bundle), str(PHOTO), "--profile", asked.profile, "--threads", "1"],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(asked.rounds):
            for name, command in commands.items():
                found[name].append(_first_image(command))
    python, own = ([median(column) for column in zip(*one, strict=True)] for one in found.values())
    for what, place in (("seconds to the first image", 0), ("peak memory in MB", 1)):
        print(f"  {what:<28} Python {python[place]:.2f}, C++ {own[place]:.2f}: {own[place] / python[place]:.2f}")


def _build(profile: str, out: Path) -> Path:
    command = [sys.executable, "-m", "ztdeploy", "build", "--model", "deit_s", "--weights", "random"]
    subprocess.run([*command, "--profile", profile, "--keep-ratio", "0.7", "--out", str(out)], check=True)
    return out


def _first_image(command: list[str]) -> tuple[float, float]:
    """Seconds and peak megabytes of a process that runs one image."""
    before = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - before
    if status:
        sys.exit(f"{command[0]} failed")
    return seconds, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
