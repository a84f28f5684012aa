"""`ztdeploy report` as people meet it: what it writes where, what it prints, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import reports, sweeps
from helpers.processes import run_ztdeploy

from ztdeploy.report.sweep_folder import REPORT, write_sweep

PAGES = {"report.html", "sweep.csv", "report.md"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a sweep lies, and things that are none."""
    (tmp_path / "sweep").mkdir()
    write_sweep(sweeps.sweep(), tmp_path / "sweep")
    (tmp_path / "bench.json").write_text(reports.run().model_dump_json())
    (tmp_path / "thesis.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZTDEPLOY_DEBUG", raising=False)
    return tmp_path


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    from ztdeploy.cli.app import run as run_command_line

    code = run_command_line(["report", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_real_process_writes_beside_the_sweep(folder: Path) -> None:
    done = run_ztdeploy("report", "sweep", cwd=folder)
    assert done.code == 0, done
    assert done.out.splitlines()[-1].startswith("keep 0.80 is ")
    assert done.err.splitlines() == [f"wrote sweep/{name}" for name in ("report.html", "sweep.csv", "report.md")]
    assert {path.name for path in (folder / "sweep").iterdir()} == {REPORT, *PAGES}


def test_elsewhere_and_with_another_threshold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("sweep/sweep.json", "--out", "pages", "--min-agreement", "0.5", capsys=capsys)
    assert code == 0
    assert out.splitlines()[-1].startswith("keep 0.70 is ")
    assert {path.name for path in (folder / "pages").iterdir()} == PAGES
    assert [path.name for path in (folder / "sweep").iterdir()] == [REPORT]
    assert "keep 0.70 is " in (folder / "pages" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("bench.json",), 3, "'bench.json' is a report of 'ztdeploy bench'"),
        (("thesis.json",), 3, "'thesis.json' is no report"),
        (("empty",), 3, "'empty/sweep.json' cannot be read"),
        (("missing",), 3, "'missing' cannot be read"),
        (("sweep", "--out", "thesis.json"), 3, "cannot write"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], code: int, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    found, out, err = run(*arguments, capsys=capsys)
    (line,) = err.splitlines()
    assert (found, out) == (code, "")
    assert words in line
    assert sorted(folder.rglob("*")) == before
