"""A plot and a part of a sweep's page are added as CONTRIBUTING says: by one file, and one line in a table."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

import pytest
from helpers import sweeps
from helpers.pages import check_inert

from ztdeploy.report.sweep.page import PARTS
from ztdeploy.report.sweep.pages import PAGE, write_pages
from ztdeploy.report.sweep.plots import PLOTS

#: Everything that somebody writes: memory against keep ratio, and a part that says where the sweep lies.
FILE = """
from ztdeploy.report.kit.figure import Figure, section
from ztdeploy.report.kit.plots.frame import Frame, dot, x_range, y_range
from ztdeploy.report.kit.plots.scale import linear

def memory(panel, view):
    peaks = [(row.facts.keep_ratio or 0, row.measured.peak_rss_mb or 0) for row in panel.measured]
    x, y = linear([r for r, _ in peaks], *x_range()), linear([0, *(mb for _, mb in peaks)], *y_range())
    marks = [dot(x(ratio), y(mb), 3, "mark c0", f"{mb:.0f} MB") for ratio, mb in peaks]
    return Figure("Memory", "At its highest.", Frame(x, y, "keep ratio", "MB").draw("Memory by keep ratio", marks))

def place(view):
    return section("Where it was", quiet=f"{len(view.panels)} settings")
"""


def test_a_plot_and_a_part_are_one_file_and_one_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_plots.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PLOTS, "memory", "own_plots:memory")
    monkeypatch.setitem(PARTS, "place", "own_plots:place")
    write_pages(sweeps.sweep(), tmp_path)
    check_inert(tmp_path / PAGE)
    page = (tmp_path / PAGE).read_text()
    assert 'aria-label="Memory by keep ratio"' in page
    assert "At its highest." in page
    assert "<h2>Where it was</h2>" in page


@pytest.mark.parametrize("place", [*PLOTS.values(), *PARTS.values()])
def test_every_entry_of_the_tables_is_there(place: str) -> None:
    assert callable(resolve_name(place))
