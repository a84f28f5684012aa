"""`ztdeploy compare` as CI meets it: exit codes, what is printed where, and what is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from helpers.processes import result_in, run_ztdeploy
from helpers.reports import run, sweep

from ztdeploy.report.compare.comparison import ReportComparison
from ztdeploy.target.measure.bench_report import Caution


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reports lie: a run, the same again, and others that differ from it."""
    busy = Caution(kind="busy", message="others kept 1.0 of 2 cores busy", remedy="stop them")
    reports = {
        "old": run(1),
        "same": run(2, warnings=(busy,)),
        "slow": run(3, slower={"keep-0.50": 1.2}),
        "board": run(4, machine={"processor": "Cortex-A76"}),
        "large": run(5, measured={"peak_rss_mb": 150.0}),
        "batch8": run(6, batch=8),
        "few": run(7, rounds=3),
        "sweep": sweep(run(8, variants=("dense", "keep-0.70"))),
    }
    for name, report in reports.items():
        (tmp_path / f"{name}.json").write_text(report.model_dump_json())
    (tmp_path / "thesis.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZTDEPLOY_DEBUG", raising=False)
    return tmp_path


def compare(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    from ztdeploy.cli.app import run as run_command_line

    try:
        code = run_command_line(["compare", *arguments])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_reports_of_boards_say_which(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, machine in (("lab1", "Raspberry Pi 5 Model B"), ("lab2\x1b[2J", None)):
        report = run(1, machine={"board": machine}).model_copy(update={"on": name})
        (folder / f"{name[:4]}.json").write_text(report.model_dump_json())
    code, out, _ = compare("lab1.json", "lab2.json", "--any-machine", capsys=capsys)
    assert code == 0
    first, second = out.splitlines()[:2]
    assert ", board lab1 (Raspberry Pi 5 Model B), " in first
    assert ", board lab2 [2J (" in second


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("old.json", "same.json"), 0),
        (("old.json", "slow.json"), 7),
        (("old.json", "slow.json", "--max-slowdown", "30"), 0),
        (("slow.json", "old.json"), 0),
        (("old.json", "board.json", "--any-machine"), 0),
        (("old.json", "large.json"), 0),
        (("old.json", "large.json", "--max-memory-growth", "10"), 7),
        (("old.json", "sweep.json"), 0),
        (("old.json", "batch8.json", "--match", "model,variant"), 0),
        (("old.json", "slow.json", "--speedup-only"), 7),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, out, _ = compare(*arguments, capsys=capsys)
    assert found == code
    last = out.splitlines()[-1]
    assert last.startswith("regression in " if code else "no regression: ")
    for layout in (("--json",), ("--format", "md")):
        assert compare(*arguments, *layout, capsys=capsys)[::2] == (code, "")


def test_a_real_process(folder: Path) -> None:
    """Without a terminal, from elsewhere."""
    done = run_ztdeploy("compare", "old.json", "slow.json", cwd=folder)
    assert (done.code, done.err) == (7, "")
    assert "keep-0.50 at batch 1, 2 threads takes 1.2" in done.out.splitlines()[-1]


def test_what_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = compare("board.json", "same.json", "--any-machine", capsys=capsys)
    lines = out.splitlines()
    assert lines[0].startswith("baseline:  board.json, vit_digits, onnxruntime 1.32.0, Cortex-A76, 2026-11-24")
    assert lines[1].startswith("candidate: same.json, ")
    differences, figures = out.index("  processor: Cortex-A76 -> AMD EPYC"), out.index("Latency of one call in ms")
    assert differences < figures, "what is not alike comes before the figures"
    for variant in ("dense", "keep-0.70", "keep-0.50"):
        assert re.search(rf"^{variant}\t\d+\.\d+\t\d+\.\d+\t[01]\.\d+\t.*holds", out, re.M)
    assert err == "warning: candidate: others kept 1.0 of 2 cores busy\n"


def test_what_one_report_lacks_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = compare("old.json", "sweep.json", capsys=capsys)
    assert "keep-0.50 at batch 1, 2 threads: not measured in the candidate" in out.splitlines()


def test_json_is_the_whole_comparison(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = compare("old.json", "slow.json", "--json", capsys=capsys)
    comparison = ReportComparison.model_validate(result_in(out))
    assert (code, comparison.regressed) == (7, True)
    assert [one.setting.variant for one in comparison.pairs if one.regressions] == ["keep-0.50"]
    assert (comparison.baseline, comparison.candidate) == ("old.json", "slow.json")


def test_markdown_is_all_that_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = compare("old.json", "same.json", "--format", "md", capsys=capsys)
    assert out.startswith("**No regression**: none of 3 configurations")
    assert "- warning: candidate: others kept 1.0 of 2 cores busy" in out.splitlines()
    assert err == ""


def test_files_of_one_name_are_told_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "main").mkdir()
    (folder / "main" / "old.json").write_text((folder / "old.json").read_text())
    _, out, _ = compare("main/old.json", "old.json", capsys=capsys)
    assert out.startswith("baseline:  main/old.json, ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("old.json", "board.json"), ["not the same machine", "AMD EPYC -> Cortex-A76", "--any-machine"]),
        (("old.json", "batch8.json"), ["no configuration was measured in both", "--match"]),
        (("old.json", "few.json"), ["interval", "--rounds 6"]),
        (("old.json", "thesis.json"), ["'thesis.json' is no report", "'ztdeploy bench --out' or 'ztdeploy sweep'"]),
        (("missing.json", "old.json"), ["'missing.json' cannot be read"]),
        (("old.json", "same.json", "--max-slowdown", "nan"), ["--max-slowdown nan"]),
        (("old.json", "same.json", "--max-slowdown", "1001"), ["--max-slowdown 1001", "from 0 to 1000"]),
        (("old.json", "same.json", "--max-memory-growth", "-1"), ["--max-memory-growth -1", "from 0 to 1000"]),
        (("old.json", "same.json", "--max-memory-growth", "-1"), ["--max-memory-growth -1"]),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = compare(*arguments, capsys=capsys)
    assert (code, out) == (3, "")
    (line,) = err.splitlines()
    assert re.fullmatch(r"error: \S.*; expected \S.*; \S.*", line), line
    assert all(word in line for word in words), line
    code, out, _ = compare(*arguments, "--json", capsys=capsys)
    assert result_in(out)["exit_code"] == code == 3


@pytest.mark.parametrize("arguments", [("old.json",), ("old.json", "same.json", "--format", "html")])
def test_malformed(arguments: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(*arguments, capsys=capsys)[0] == 2


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_a_terminal(
    columns: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, out, _ = compare("old.json", "slow.json", capsys=capsys)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out).splitlines()
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    assert "SLOWER" in text
    assert "regression in 1 of 3: keep-0.50 at batch 1, 2 threads takes 1.2" in text
