"""What `scripts/gpu_check.sh` found, as one JSON and one Markdown file.

python -m benchmarks.gpu_report --collect DIR
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import kernels, providers, torch_throughput

#: Parts in the order in which they run, and what each shows.
PARTS = {
    "machine": "the GPU and the versions of what runs on it",
    "tests": "kernels against NumPy, all cases of the CPU tests",
    "memcheck": "compute-sanitizer: memory accesses of one small case of each kernel",
    "racecheck": "compute-sanitizer: races in shared memory, the same cases",
    "kernels": "time per call of each kernel",
    "throughput": "the paper's figure in PyTorch",
    "providers": "pruned graphs in ONNX Runtime's GPU providers",
}
TABLES = {"kernels": kernels.time_table, "throughput": torch_throughput.table, "providers": providers.table}
PACKAGES = ("torch", "timm", "triton", "numpy", "onnx", "onnxruntime")
TIMED_OUT = (124, 137)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--machine", choices=("cuda", "cpu"), help="write down what is here")
    what.add_argument("--collect", type=Path, metavar="DIR", help="where the parts left their files")
    parser.add_argument("--out", type=Path, help="JSON of the machine")
    arguments = parser.parse_args()
    if arguments.machine:
        arguments.out.write_text(json.dumps(machine(arguments.machine), indent=1), encoding="utf-8")
        return
    folder: Path = arguments.collect
    report = collect(folder)
    (folder / "gpu_check.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    text = markdown(report)
    (folder / "gpu_check.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(0 if all(part["exit_code"] == 0 for part in report["parts"].values()) else 1)


def machine(device: str) -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "device": torch_throughput.Device(device).describe(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "nvcc": _first_line("nvcc", "--version", contains="release"),
    }
    if device == "cuda":
        facts["driver"] = _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    return facts


def collect(folder: Path) -> dict[str, Any]:
    """All that the parts left; what they did not write is missing."""
    report: dict[str, Any] = {"parts": {}, "found": {}}
    for name in PARTS:
        ended = folder / f"{name}.part.json"
        if ended.is_file():
            report["parts"][name] = json.loads(ended.read_text(encoding="utf-8"))
        written = folder / f"{name}.json"
        if written.is_file():
            report["found"][name] = json.loads(written.read_text(encoding="utf-8"))
    if (folder / "tests.xml").is_file():
        suite = next(ET.parse(folder / "tests.xml").iter("testsuite"))
        report["found"]["tests"] = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    return report


def markdown(report: dict[str, Any]) -> str:
    lines = ["# What was proved on a GPU", ""]
    here = report["found"].get("machine", {})
    lines += [f"- {name}: {value}" for name, value in here.items()]
    lines += ["", "| part | what it shows | result | seconds |", "| --- | --- | --- | ---: |"]
    for name, shows in PARTS.items():
        part = report["parts"].get(name)
        lines.append(f"| {name} | {shows} | {_result(report, name)} | {part['seconds'] if part else ''} |")
    for name, table in TABLES.items():
        if name in report["found"]:
            lines += ["", f"## {PARTS[name][0].upper()}{PARTS[name][1:]}", "", table(report["found"][name])]
    return "\n".join(lines) + "\n"


def _result(report: dict[str, Any], name: str) -> str:
    part = report["parts"].get(name)
    if part is None:
        return "not run: what it needs is not installed"
    code = part["exit_code"]
    ended = "passed" if code == 0 else "stopped at its time limit" if code in TIMED_OUT else f"failed, exit code {code}"
    if name == "tests" and "tests" in report["found"]:
        counts = report["found"]["tests"]
        wrong = counts["failures"] + counts["errors"]
        passed = counts["tests"] - wrong - counts["skipped"]
        ended += f": {passed} passed, {wrong} failed, {counts['skipped']} skipped"
    return ended


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(*command: str, contains: str = "") -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next((line.strip() for line in done.stdout.splitlines() if contains in line), None)


if __name__ == "__main__":
    main()
