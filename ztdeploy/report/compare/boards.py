"""The same configurations on several boards: rows of a table, and a page. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ztdeploy.report.compare.entries import Compared, bench_runs, entries, telling_fields
from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.figure import Figure, legend, notes, plots, section, swatch
from ztdeploy.report.kit.markup import element
from ztdeploy.report.kit.plots.estimates import Estimate, estimates_plot
from ztdeploy.report.kit.sheet import Column, table
from ztdeploy.target.measure.bench_report import BenchReport
from ztdeploy.target.measure.sweep_report import SweepReport
from ztdeploy.version import __version__

#: Headings of `BoardRow.cells`; the first three are words.
HEADS = ("board", "machine", "configuration", "p50 ms", "images/s", "speed-up", "95 %", "peak MB")
CAPTION = "speed-up: over the baseline on the same board; 95 %: its interval"
_NOTES = {
    "Latency": "The median of all calls on that board.",
    "Speed-up": "The baseline's time over the variant's, round by round on one board. Whiskers: 95 % intervals.",
}
#: Classes of plots.css.
_COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")


@dataclass(frozen=True)
class BoardRow:
    """A configuration on a board."""

    board: str  #: as the user calls it; a dash where it has no name
    machine: str
    label: str  #: of the configuration
    found: Compared  #: with samples

    @property
    def p50_ms(self) -> float:
        assert self.found.measured.latency is not None
        return self.found.measured.latency.p50_ms

    @property
    def cells(self) -> tuple[str, ...]:
        one, against = self.found.measured, self.found.comparison
        return (
            *(self.board, self.machine, self.label, f"{self.p50_ms:.2f}", f"{one.images_per_s or 0:.1f}"),
            f"{against.speedup:.2f}x" if against else "",
            f"{against.interval:.2f}" if against and against.interval else "",
            "-" if one.peak_rss_mb is None else f"{one.peak_rss_mb:.0f}",
        )


def machine_of(report: BenchReport | SweepReport) -> tuple[str, str]:
    """The name that the user gave the board (a dash where there is none), and what machine it is."""
    run = bench_runs(report)[0]
    return run.on or "-", run.machine.board or run.machine.processor


def board_rows(reports: Sequence[BenchReport | SweepReport]) -> list[BoardRow]:
    """Every configuration that was measured, by configuration and then by board.

    Raises:
        InputError: figures that no measurement gives.
    """
    found = list(_rows([report for report in reports if bench_runs(report)]))
    order = list(dict.fromkeys(row.label for row in found))
    return sorted(found, key=lambda row: order.index(row.label))


def _rows(reports: Sequence[BenchReport | SweepReport]) -> Iterator[BoardRow]:
    known = [(machine_of(report), entries(report, machine_of(report)[0])) for report in reports]
    telling = set(telling_fields([identity for _, found in known for identity in found], always=("variant", "batch")))
    for (board, machine), found in known:
        for identity, one in found.items():
            if one.measured.latency is not None:
                yield BoardRow(board, machine, str(identity.only(telling)), one)


def boards_page(reports: Sequence[BenchReport | SweepReport]) -> str:
    """A page that sets boards side by side, which is well-formed XML as well.

    Raises:
        InputError: as `board_rows`.
    """
    found = board_rows(reports)
    boards = list(dict.fromkeys((row.board, row.machine) for row in found))
    colours = {board: _COLOURS[at % len(_COLOURS)] for at, (board, _) in enumerate(boards)}
    latency = [
        Estimate(_name(row), row.p50_ms, None, f"{_name(row)}: {row.p50_ms:.2f} ms", colours[row.board])
        for row in found
    ]
    speedup = [
        Estimate(_name(row), against.speedup, against.interval, f"{_name(row)}: {row.cells[5]}", colours[row.board])
        for row in found
        if (against := row.found.comparison) is not None
    ]
    title = f"Boards side by side: {', '.join(board for board, _ in boards)}"
    keys = [(swatch(f"dot {colours[board]}"), f"{board}: {machine}") for board, machine in boards]
    return document(
        title,
        [element("header", element("h1", title))],
        section(
            "What each board measured",
            legend(keys),
            plots(
                Figure("Latency", "Median of one call, in ms.", estimates_plot("Latency", "p50, ms", latency)),
                Figure(
                    "Speed-up",
                    "Over the baseline on the same board.",
                    estimates_plot("Speed-up", "times as fast", speedup, reference=1.0),
                ),
            ),
            table("Figures", _COLUMNS, found),
        ),
        notes(_NOTES),
        element("footer", f"Written by ztdeploy {__version__}."),
    )


def _name(row: BoardRow) -> str:
    return f"{row.label}, {row.board}"


def _column(at: int) -> Column[BoardRow]:
    return Column(HEADS[at], lambda row: row.cells[at], kind="heading" if at == 0 else "")


_COLUMNS = [_column(at) for at in range(len(HEADS))]
