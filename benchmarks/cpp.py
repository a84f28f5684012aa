"""The C++ runner against the Python runner: seconds and memory from process start to the first image.

    python -m benchmarks.cpp build/ztdeploy-run [--bundle DIR] [--profile cpu] [--rounds 9]

Without `--bundle`, DeiT-S is built with random weights. Processes take turns, with weights packed for the kernels
("speed") and read where the file is mapped ("shared"). Memory is the peak of all that is resident, and of the part that
only the process has; the rest are pages of files, which the system can share or drop.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.machine import describe_machine

PHOTO = Path(__file__).parents[1] / "ztdeploy" / "host" / "assets" / "photos" / "chelsea.jpg"
RUN = """
import sys, ztdeploy
bundle, photo, profile, memory = sys.argv[1:]
ztdeploy.load(bundle, profile=profile, threads=1, memory=memory)(photo)
"""
POLL_S = 0.002
MEGABYTE = 1024  # in the units of /proc


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
        commands = {}
        for memory in ("speed", "shared"):
            arguments = [str(bundle), str(PHOTO)]
            options = ["--profile", asked.profile, "--threads", "1", "--memory", memory]
            commands[f"Python, {memory}"] = [sys.executable, "-c", RUN, *arguments, asked.profile, memory]
            commands[f"C++, {memory}"] = [str(asked.program), *arguments, *options]
        rounds = [{name: _first_image(command) for name, command in commands.items()} for _ in range(asked.rounds)]
    middle = {
        name: [median(column) for column in zip(*(one[name] for one in rounds), strict=True)] for name in commands
    }
    print(f"  {'':<16} seconds  peak MB  of these its own    of Python's, speed")
    for name, (seconds, peak, own) in middle.items():
        shares = " ".join(
            f"{one / other:5.2f}" for one, other in zip(middle[name], middle["Python, speed"], strict=True)
        )
        print(f"  {name:<16} {seconds:7.2f} {peak:8.0f} {own:9.0f}           {shares}")


def _build(profile: str, out: Path) -> Path:
    command = [sys.executable, "-m", "ztdeploy", "build", "--model", "deit_s", "--weights", "random"]
    subprocess.run([*command, "--profile", profile, "--keep-ratio", "0.7", "--out", str(out)], check=True)
    return out


def _first_image(command: list[str]) -> tuple[float, float, float]:
    """Seconds, peak megabytes, and peak megabytes of its own, of a process that runs one image."""
    before, own = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        own = max(own, int(found[1]) / MEGABYTE if found else 0.0)
        time.sleep(POLL_S)
    if status:
        sys.exit(f"{command[0]} failed")
    return time.perf_counter() - before, used.ru_maxrss / MEGABYTE, own


if __name__ == "__main__":
    main()
