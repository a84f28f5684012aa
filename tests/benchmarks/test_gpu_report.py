"""What `scripts/gpu_check.sh` makes of its parts, whichever of them ran."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu_report import PARTS, collect, markdown

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.sh"
FOUND = {
    "providers": {"onnxruntime": "1.30.0", "providers": {}},
    "kernels": {
        "device": "some GPU",
        "copy_gb_per_s": 3000.0,
        "rows": [
            {"operator": "page rank", "tokens": 197, "heads": 6, "batch": 8, "type": "fp16", "iterations": 30}
            | {"path": "shared", "us": 62.06, "once_us": 1.35, "each_us": 40.5}
        ],
    },
}


def finished(folder: Path, name: str, code: int) -> None:
    (folder / f"{name}.part.json").write_text(json.dumps({"exit_code": code, "seconds": 1.5, "limit_seconds": 20}))


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(("code", "words"), [(0, "passed"), (1, "failed, exit code 1"), (124, "time limit")])
def test_how_a_part_ended_is_said_and_the_others_are_named_as_not_run(tmp_path, name, code, words):
    finished(tmp_path, name, code)
    lines = [line for line in markdown(collect(tmp_path)).splitlines() if line.startswith("| ")]
    assert words in next(line for line in lines if line.startswith(f"| {name} |"))
    assert sum("not run" in line for line in lines) == len(PARTS) - 1


def test_counts_of_tests_and_tables_are_shown(tmp_path):
    finished(tmp_path, "tests", 1)
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="9" failures="2" errors="1" skipped="3"/></testsuites>'
    )
    for name, found in FOUND.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    text = markdown(collect(tmp_path))
    assert "3 passed, 3 failed, 3 skipped" in text
    assert "| page rank | 197 | 6 | 8 | fp16 | 30 | shared | 62.1 | 1.4 | 40.5 |" in text
    assert "ONNX Runtime 1.30.0 has no provider for a GPU here" in text


@pytest.mark.parametrize("arguments", [["--gpu"], ["--device"], ["--device", "tpu"]])
def test_wrong_options_of_the_script_are_refused_before_anything_runs(tmp_path, arguments):
    done = subprocess.run(
        ["bash", SCRIPT, "--out", tmp_path / "out", *arguments], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert arguments[-1] in done.stderr
    assert not (tmp_path / "out").exists()
