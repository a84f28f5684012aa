"""What building a bundle takes: time, and the memory of the largest process at its peak.

    python -m benchmarks.building [--model vit_large_patch14_dinov2] [--profile cpu] [--keep-ratio 0.7] [--image-size N]

One build of a keep ratio and dense, by the command line in a process of its own; random weights.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_large_patch14_dinov2")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--keep-ratio", default="0.7")
    parser.add_argument("--image-size", help="pixels (default: the model's own)")
    arguments = parser.parse_args()
    size = ["--image-size", arguments.image_size] if arguments.image_size else []
    command = [sys.executable, "-m", "ztdeploy", "build", "--model", arguments.model, "--profile", arguments.profile]
    command += ["--keep-ratio", arguments.keep_ratio, *size, "--weights", "random"]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([*command, "--out", Path(folder) / "bundle"], check=True, stdout=subprocess.DEVNULL)
        seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{describe_machine()}; {arguments.model}, profile {arguments.profile}, keep ratio {arguments.keep_ratio}")
    processor, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9
    print(f"{seconds:.0f} s, {processor:.0f} CPU seconds, {peak:.2f} GB at the peak")


if __name__ == "__main__":
    main()
