"""The page of a search. Pure; names come from files, so all of them pass through `element`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.figure import legend, plots, section, trust, verdict
from ztdeploy.report.kit.markup import Markup, element, fragment
from ztdeploy.report.kit.numbers import decimals, percent, short
from ztdeploy.report.kit.sheet import Column, estimated, table
from ztdeploy.report.tune.plots import RIVALS, SERIES, by_block, front, importances, tokens_of, trials
from ztdeploy.report.tune.records import BestAtCost, Measured, Score, TrialRecord, TuneReport, TwoStages
from ztdeploy.report.tune.words import (
    cautions,
    conclusion,
    findings,
    layer_lines,
    machine_words,
    origin_lines,
    subtitle,
    title,
)
from ztdeploy.version import __version__

BEST_TRIALS = 15
two_digits, four_digits = partial(short, digits=2), partial(short, digits=4)


def page(report: TuneReport) -> str:
    """The whole document, which is well-formed XML as well."""
    return document(
        title(report),
        element("header", element("h1", title(report)), element("p", subtitle(report), class_="lead")),
        [part(report) for part in PARTS],
        element("footer", f"Written by ztdeploy {__version__} from tune.json. {machine_words(report.machine)}."),
    )


def summary(report: TuneReport) -> Markup:
    concluded = conclusion(report)
    box = verdict(concluded.decision, concluded.sentence, findings(report))
    return fragment(box, trust([*origin_lines(report), *cautions(report)]))


def cascade(report: TuneReport) -> Markup | None:
    """None where none was searched."""
    found = report.cascade
    if found is None:
        return None
    columns: list[Column[tuple[str, TwoStages]]] = [
        Column("first stage", lambda pair: pair[0], kind="heading"),
        Column("mean GMACs", value=lambda pair: pair[1].mean_gmacs, show=four_digits),
        Column("worst GMACs", value=lambda pair: pair[1].worst_gmacs, show=four_digits),
        estimated("go on, %", lambda pair: pair[1].went_on, scale=100),
        estimated("same answers, %", lambda pair: pair[1].agreement, scale=100),
        Column("at least", value=lambda pair: pair[1].bound, show=percent),
    ]
    rows = [("found", found.tuned), ("best preset", found.preset)]
    return section(
        "Cascades of two stages",
        table("Cascades of a schedule and the baseline", columns, rows, chosen=int(not found.better)),
        quiet=f"The second stage is the baseline, which alone takes {four_digits(report.dense_cost)} GMACs. An image"
        " that goes on takes the worst, any other less than the mean. At least: with 95 % confidence.",
    )


Pair = tuple[BestAtCost, Score]


def fidelity(report: TuneReport) -> Markup:
    pairs = [(one, score) for one in report.compared for score in (one.tuned, one.preset, one.tome)]
    text = "Everything but the first KL is of the report half, which no choice has seen."
    if any(not one.searched for one in report.compared):
        text += " Costs other than the budget: the winner's shape scaled, which was not searched for."
    columns: list[Column[Pair]] = [
        Column("", lambda pair: pair[1].schedule.name if _tuned(pair) else pair[1].label, kind="heading"),
        Column("GMACs", value=lambda pair: pair[1].gmacs, show=four_digits),
        Column(f"of the baseline's {report.unit}", value=lambda pair: pair[0].share, show=percent),
        Column("KL, tuning", value=lambda pair: pair[1].tuning_kl, show=two_digits),
        estimated("KL, nats", lambda pair: pair[1].kl),
        estimated("same answers, %", lambda pair: pair[1].agreement, scale=100),
        estimated("KL over ToMe's", lambda pair: pair[0].to_tome if _tuned(pair) else None, missing=""),
        estimated("over the preset's", lambda pair: pair[0].to_preset if _tuned(pair) else None, missing=""),
    ]
    return section(
        "Fidelity against cost",
        legend([(SERIES.key(name), name) for name in RIVALS]),
        plots(front(report), by_block(report)),
        table("What was found, and what it is compared with", columns, pairs, chosen=0),
        quiet=text,
    )


def _tuned(pair: Pair) -> bool:
    return pair[1] is pair[0].tuned


def schedule(report: TuneReport) -> Markup:
    found = report.winner.tuned
    options = str(found.schedule.options) or "all at their defaults"
    return section(
        "The schedule, block by block",
        element("ul", map(_item, layer_lines(found.schedule, tokens_of(report, found))), class_="columns"),
        quiet=f"Method {found.schedule.method}; options: {options}.",
    )


def _item(line: str) -> Markup:
    return element("li", line)


def all_trials(report: TuneReport) -> Markup:
    made = report.finished
    pruned, seconds = sum(one.state == "pruned" for one in made), sum(one.seconds for one in made)
    complete = sorted((one for one in made if one.state == "complete"), key=lambda one: (one.kl or 0.0, one.number))
    columns: list[Column[TrialRecord]] = [
        Column("trial", lambda one: f"{one.number}{' (preset)' if one.start else ''}", kind="heading"),
        Column("KL, tuning", value=lambda one: one.kl, show=two_digits),
        Column(report.unit, value=lambda one: one.cost, show=four_digits),
        Column("method", lambda one: one.schedule.method if one.schedule else ""),
        Column("first block", value=lambda one: next((block for block, _ in _drops(one)), None), show=decimals(0)),
        Column("tokens that go", lambda one: ", ".join(str(drop) for _, drop in _drops(one))),
        Column("options", lambda one: str(one.schedule.options) if one.schedule else ""),
    ]
    return section(
        "Trials",
        plots(trials(report), importances(report)),
        table("The best trials", columns, complete[:BEST_TRIALS]),
        quiet=f"{len(made)} trials, {pruned} of them given up early, {seconds:.0f} s; "
        f"the best {BEST_TRIALS} in the table.",
    )


def _drops(one: TrialRecord) -> list[tuple[int, int | None]]:
    return [(layer.block, layer.drop) for layer in one.schedule.layers] if one.schedule else []


def latency(report: TuneReport) -> Markup | None:
    if not report.measured:
        return None
    columns: list[Column[Measured]] = [
        Column("", lambda one: one.schedule, kind="heading"),
        Column("predicted, ms", value=lambda one: one.predicted_ms, show=four_digits),
        Column("measured, ms", value=lambda one: one.measured_ms, show=four_digits),
        Column("off", lambda one: f"{100 * _off(one):+.1f} %", _off),
    ]
    return section(
        "Predicted and measured",
        table("Predicted and measured latency", columns, report.measured),
        quiet="Engines of what was found, built and measured on this machine.",
    )


def _off(one: Measured) -> float:
    return one.predicted_ms / one.measured_ms - 1


#: The page from top to bottom; a part that has nothing to show is None.
PARTS: tuple[Callable[[TuneReport], Markup | None], ...] = (summary, cascade, fidelity, schedule, all_trials, latency)
