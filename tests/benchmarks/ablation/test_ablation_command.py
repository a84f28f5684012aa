"""`python -m benchmarks.ablation` as people meet it: what it says, writes and refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import HANG_S, Done, started

import ztdeploy
from benchmarks.ablation.__main__ import main
from benchmarks.ablation.report import AblateReport
from ztdeploy.host.models.catalogue import ASSETS

CHECKOUT = Path(ztdeploy.__file__).resolve().parents[1]
DIGITS = ASSETS / "digits"


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    shell = {name: value for name, value in os.environ.items() if "ZTDEPLOY" not in name}
    return started(
        [sys.executable, "-m", "benchmarks.ablation", "--model", "vit_digits", *map(str, arguments)],
        cwd=cwd,
        env={**shell, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},  # the model is tiny
    )


def ablate(*arguments: str | Path, cwd: Path) -> Done:
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=HANG_S)
    return Done(process.returncode, out, err)


@pytest.mark.long
def test_tables_and_files(tmp_path: Path) -> None:
    done = ablate("--data", DIGITS, "--limit", 12, "--only", "order,contribution", "--keep-ratio", 0.6, cwd=tmp_path)
    assert done.code == 0, done
    out = tmp_path / "vit_digits-ablation"
    report = AblateReport.model_validate_json((out / "ablation.json").read_text())
    assert [table.topic for table in report.tables] == ["contribution", "order"]
    assert (report.data.images, report.keep_ratio, report.convergence) == (12, 0.6, None)
    for table in report.tables:
        assert table.title in done.out
        for row in table.rows:
            assert f"{row.kl.value:.4f}" in done.out
            assert row.top1 is not None
    assert len({row.kl.value for table in report.tables for row in table.rows}) >= 8, "options do something"
    names = {"ablation.json", "ablation.html", "ablation.md"}
    names |= {"contribution.svg", "contribution-difference.svg", "order.svg", "order-difference.svg"}
    assert {path.name for path in out.iterdir()} == names
    assert "in PyTorch" in done.out
    assert "only 12 images" in done.err
    assert done.err.splitlines()[-1] == "wrote vit_digits-ablation; open vit_digits-ablation/ablation.html"


@pytest.mark.long
def test_without_labels_and_with_a_damaged_image(tmp_path: Path, digit_images: list[Path]) -> None:
    (tmp_path / "photographs").mkdir()
    for image in digit_images[:10]:
        shutil.copy(image, tmp_path / "photographs")
    (tmp_path / "photographs" / "000.png").write_bytes(b"no image")
    arguments = ("--data", "photographs", "--only", "iterations", "--out", "found", "--json")
    done = ablate(*arguments, cwd=tmp_path)
    assert (done.code, done.err) == (0, ""), done
    report = AblateReport.model_validate(json.loads(done.out)["result"])
    assert report == AblateReport.model_validate_json((tmp_path / "found" / "ablation.json").read_text())
    assert report.data.images == 10
    assert [one.image for one in report.data.unreadable] == ["000.png"]
    assert all(row.top1 is None and row.change is None for row in report.tables[0].rows)
    assert report.convergence is not None
    assert [block.block for block in report.convergence.blocks] == list(range(1, report.model.depth + 1))
    assert all(block.points[-1].overlap.value == 1 for block in report.convergence.blocks)


@pytest.mark.long
def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    process = start("--data", DIGITS, "--only", "feature", "--out", "found", cwd=tmp_path)
    assert process.stderr is not None
    while "ways" not in (line := process.stderr.readline()):
        assert line, "it has ended before it began"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, list(tmp_path.iterdir())) == (130, []), err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--only", "partitions"), 2, "did you mean 'partition'"),
        (("--only", ","), 2, "is not one of"),
        (("--saved", "1.5"), 3, "a number from 0 to 1"),
        (("--saved", "1"), 3, "a share between 0 and 1"),
        (("--saved", "nan"), 3, "a number from 0 to 1"),
        (("--saved", "0.3", "--keep-ratio", "0.7"), 3, "one of them"),
        (("--keep-ratio", "1"), 3, "a ratio that prunes"),
        (("--keep-ratio", "0"), 3, "above 0 and up to 1"),
        (("--limit", "0"), 3, "from 1 to"),
        (("--seed", "-1"), 3, "from 0 to"),
        (("--saved", "0.95"), 3, "the nearest is 0."),
        (("--weights", "good"), 2, "not one of 'pretrained', 'random'"),
        (("--preset", "late"), 2, "not one of 'default', 'paper'"),
        (("--checkpoint", "nowhere.safetensors"), 3, "nowhere.safetensors"),
        (("--out", "diary"), 3, "something else than an ablation"),
        (("--data", "nowhere"), 3, "does not exist"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], code: int, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "diary").mkdir()
    (here / "diary" / "today.txt").write_text("mine")
    given = ["--data", str(DIGITS)] if "--data" not in arguments else []
    assert main(["--model", "vit_digits", *given, *arguments]) == code
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert sorted(path.name for path in here.rglob("*")) == ["diary", "today.txt"]
