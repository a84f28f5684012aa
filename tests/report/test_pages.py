"""The pages of a sweep: figures as in the JSON, names that do nothing, and no address anywhere."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers import sweeps
from helpers.pages import EVIL, check_inert
from helpers.processes import HANG_S

from ztdeploy.core.errors import InputError
from ztdeploy.report.kit.plots.frame import SVG
from ztdeploy.report.sweep.pages import MARKDOWN, PAGE, TABLE, write_pages
from ztdeploy.target.measure.bench_report import Failure
from ztdeploy.target.measure.sweep_report import SweepReport, rows


def cut_short() -> SweepReport:
    """Interrupted in its second group, with a process that died and a variant that was not built."""
    died = Failure(message="keep-0.60: the process was killed", exit_code=1)
    run = sweeps.run(0.6, progress="interrupted")
    dead = run.configurations[1].model_copy(
        update={"failure": died, "latency": None, "turns": (), "images_per_s": None, "peak_rss_mb": None}
    )
    run = run.model_copy(update={"configurations": (run.configurations[0], dead), "comparisons": ()})
    unbuilt = Failure(message="keep-0.50 at 224 px: no token left", exit_code=3)
    runs = (sweeps.run(0.7, warnings=(sweeps.BUSY,)), run)
    return sweeps.sweep(progress="interrupted", runs=runs, failures=(unbuilt,), details=False)


def hostile() -> SweepReport:
    """Every text that comes from a bundle or a report is an attack."""
    report = sweeps.sweep(ratios=(0.7, 0.5))
    data = report.model_dump_json()
    quoted = EVIL.replace("\\", "\\\\").replace('"', '\\"').replace("\x1b", "\\u001b")
    for name in ("keep-0.70", "Cortex-A76", "deit_s", "MatMul", "pretrained", "ondemand", "zero-tprune", "photographs"):
        data = data.replace(f'"{name}"', f'"{quoted}{name}"')
    data = data.replace(f'"weights":"{quoted}pretrained","checkpoint"', '"weights":"pretrained","checkpoint"')
    return SweepReport.model_validate_json(data)


STATES: dict[str, Callable[[], SweepReport]] = {
    "full": sweeps.sweep,
    "settings": lambda: sweeps.sweep(batches=(1, 8), fidelity=False),
    "without details": lambda: sweeps.sweep(details=False),
    "dense alone": lambda: sweeps.sweep(ratios=(), details=False),
    "one variant": lambda: sweeps.sweep(ratios=(0.7,), methods={"zero-tprune": 1.0}),
    "few rounds": lambda: sweeps.sweep(rounds=1),
    "a runtime without threads": lambda: sweeps.sweep(threads=None),
    "cut short": cut_short,
    "nothing measured": lambda: sweeps.sweep(runs=(), progress="interrupted", details=False),
    "nothing known": lambda: sweeps.sweep(runs=(), variants=(), progress="running", details=False),
    "hostile": hostile,
}


@pytest.fixture(params=STATES)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[SweepReport, Path]:
    report = STATES[request.param]()
    paths = write_pages(report, tmp_path)
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()} == {PAGE, TABLE, MARKDOWN}
    return report, tmp_path


def tree(folder: Path) -> ElementTree.Element:
    """The page as XML, which every page is as well."""
    return ElementTree.fromstring((folder / PAGE).read_text(encoding="utf-8").replace("<!DOCTYPE html>", ""))


def test_one_page_that_asks_for_nothing(written: tuple[SweepReport, Path]) -> None:
    check_inert(written[1] / PAGE)


def test_names_do_nothing(tmp_path: Path) -> None:
    write_pages(hostile(), tmp_path)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x1b" not in page
    shown = "".join(tree(tmp_path).itertext())
    assert EVIL.replace("\x1b", " ") + "keep-0.70" in shown, "the name is readable as it is"
    text = (tmp_path / MARKDOWN).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "](http" not in text.replace("\\](http", "")


def test_a_spreadsheet_runs_no_formula(tmp_path: Path) -> None:
    report = sweeps.sweep(ratios=(0.7,), methods={"zero-tprune": 1.0}, details=False)
    data = report.model_dump_json().replace('"keep-0.70"', '"=HYPERLINK(1)"')
    write_pages(SweepReport.model_validate_json(data), tmp_path)
    with (tmp_path / TABLE).open(encoding="utf-8", newline="") as file:
        assert [row["variant"] for row in csv.DictReader(file)] == ["dense", "'=HYPERLINK(1)"]


def test_the_table_holds_what_the_json_holds(written: tuple[SweepReport, Path]) -> None:
    report, folder = written
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    expected = rows(report)
    assert len(found) == len(expected)
    for line, row in zip(found, expected, strict=True):
        latency, pair = row.measured.latency, row.comparison
        assert float(line["gmacs"]) == row.facts.gmacs
        assert line["tokens_per_block"].split() == [str(count) for count in row.facts.tokens_per_block]
        assert line["p50_ms"] == ("" if latency is None else repr(latency.p50_ms))
        assert line["speedup"] == ("" if pair is None else repr(pair.speedup))
        assert line["speedup_low"] == ("" if pair is None or pair.interval is None else repr(pair.interval.low))
        assert line["fidelity_agreement"] == (repr(row.facts.fidelity.agreement) if row.facts.fidelity else "")
        assert (line["failure"] == "") == (row.measured.failure is None)


def test_the_page_holds_what_the_json_holds(written: tuple[SweepReport, Path]) -> None:
    report, folder = written
    expected, (main, more) = rows(report), (_table_rows(folder, name) for name in ("Every configuration", "Details"))
    assert len(main) == len(more) == len(expected)
    for cells, further, row in zip(main, more, expected, strict=True):
        exact = {float(value) for cell in (*cells, *further) if (value := cell.get("data-value"))}
        if row.measured.latency is not None:
            for name in ("p50_ms", "mad_ms", "samples"):
                assert float(getattr(row.measured.latency, name)) in exact
        if row.comparison is not None:
            assert {row.comparison.speedup, row.comparison.work_ratio} <= exact
        if row.facts.fidelity is not None:
            assert {row.facts.fidelity.agreement, row.facts.fidelity.kl} <= exact


def _table_rows(folder: Path, name: str) -> list[ElementTree.Element]:
    """Of the tables of all settings."""
    tables = [one for one in tree(folder).iter("div") if one.get("aria-label", "").startswith(name)]
    return [line for one in tables for line in one.iter("tr") if line[0].get("scope") == "row"]


def test_markdown_holds_what_the_json_holds(tmp_path: Path) -> None:
    report = sweeps.sweep()
    write_pages(report, tmp_path)
    lines = [line.strip("| ").split(" | ") for line in (tmp_path / MARKDOWN).read_text(encoding="utf-8").splitlines()]
    for row in rows(report):
        (line,) = [line for line in lines if line[0] == row.facts.name]
        assert row.measured.latency is not None
        assert line[3] == f"{row.measured.latency.p50_ms:.1f}"
        if row.comparison is not None:
            assert line[6] == f"{row.comparison.speedup:.2f}x"
        if row.facts.fidelity is not None:
            assert row.facts.fidelity.top1 is not None
            assert line[-3] == f"{100 * row.facts.fidelity.agreement:.1f} %"
            assert float(line[-2]) == pytest.approx(row.facts.fidelity.kl, rel=0.01, abs=1e-4)
            assert line[-1] == f"{100 * row.facts.fidelity.top1:.1f} %"


def test_marks_stand_where_the_figures_are(tmp_path: Path) -> None:
    """Speed-ups of a plot, read back through its own ticks."""
    report = sweeps.sweep()
    write_pages(report, tmp_path)
    plots = {one.get("aria-label", ""): one for one in tree(tmp_path).iter(f"{{{SVG}}}svg")}
    plot = next(one for name, one in plots.items() if name.startswith("Speed-up against keep ratio"))
    grid = [float(one.attrib["y1"]) for one in plot.iter(f"{{{SVG}}}line") if one.get("class") == "grid"]
    texts = [one for one in plot.iter(f"{{{SVG}}}text") if one.get("class") == "tick"]
    values = [float(one.text or "") for one in texts if one.get("text-anchor") == "end"]
    (y0, y1), (v0, v1) = (grid[0], grid[-1]), (values[0], values[-1])
    lines = [one.attrib["points"].split() for one in plot.iter(f"{{{SVG}}}polyline")]
    read = [v0 + (float(point.split(",")[1]) - y0) / (y1 - y0) * (v1 - v0) for line in lines for point in line]
    expected = [row.comparison.speedup for row in rows(report) if row.comparison]
    assert read == pytest.approx(expected, abs=2e-4)


def test_a_sweep_that_was_cut_short_says_so(tmp_path: Path) -> None:
    write_pages(cut_short(), tmp_path)
    shown = "".join(tree(tmp_path).itertext())
    assert "The sweep was interrupted: 3 of 11 configurations measured." in shown
    assert "keep-0.60: the process was killed" in shown
    assert "keep-0.50 at 224 px: no token left" in shown
    assert "7 configurations more were asked for and not measured." in shown
    assert "the sweep did not get that far" in shown
    assert "interrupted" in (tmp_path / MARKDOWN).read_text(encoding="utf-8")


def test_figures_that_nobody_measured_are_refused(tmp_path: Path) -> None:
    report = sweeps.sweep(details=True)
    bad = report.staircases[0].points[0].model_copy(update={"block_ms": float("nan")})
    staircase = report.staircases[0].model_copy(update={"points": (bad,)})
    with pytest.raises(InputError, match="no measurement gives"):
        write_pages(report.model_copy(update={"staircases": (staircase,)}), tmp_path)
    with pytest.raises(InputError, match="no measurement gives"):
        write_pages(report.model_copy(update={"variants": ()}), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_browser_draws_it_without_complaint(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here: install it to see whether pages are drawn without errors")
    write_pages(hostile(), tmp_path)
    options = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=500",
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [browser, *options, profile, "--dump-dom", (tmp_path / PAGE).as_uri()],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg") == (tmp_path / PAGE).read_text(encoding="utf-8").count("<svg")
    assert "<script" not in done.stdout
