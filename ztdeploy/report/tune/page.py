"""The page of a search. Pure; names come from files, so all of them pass through `element`."""

from __future__ import annotations

from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.figure import figure, legend, plots
from ztdeploy.report.kit.figures import percent, short
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.sheet import Cell, number, sheet
from ztdeploy.report.tune.figures import RIVALS, SERIES, by_block, front, importances, tokens_of, trials
from ztdeploy.report.tune.records import Compared, Score, TrialRecord, TuneReport
from ztdeploy.report.tune.words import (
    cautions,
    findings,
    finished,
    layer_lines,
    machine_words,
    origin_lines,
    subtitle,
    title,
)
from ztdeploy.version import __version__

BEST_TRIALS = 15


def page(report: TuneReport) -> str:
    """The whole document, which is well-formed XML as well."""
    main = element(
        "main",
        element("header", element("h1", title(report)), element("p", subtitle(report), class_="lead")),
        _summary(report),
        _front(report),
        _schedule(report),
        _trials(report),
        _latency(report),
        element("footer", f"Written by ztdeploy {__version__} from tune.json. {machine_words(report.machine)}."),
    )
    return document(title(report), main)


def _summary(report: TuneReport) -> Markup:
    headline, *more = findings(report)
    return element(
        "section",
        element("p", headline, class_="headline"),
        [element("p", sentence) for sentence in more],
        element("ul", [element("li", line) for line in (*origin_lines(report), *cautions(report))], class_="trust"),
        class_="verdict open",
    )


def _front(report: TuneReport) -> Markup:
    heads = ["", "GMACs", f"of dense's {report.unit}", "KL, tuning", "KL, report", "95 % interval", "same answers"]
    heads += ["of ToMe's", "of the preset's"]
    rows = [_cells(score, one) for one in report.compared for score in (one.tuned, one.preset, one.tome)]
    scaled = any(not one.searched for one in report.compared)
    text = "Everything but the first KL is of the report half, which no choice has seen."
    if scaled:
        text += " Costs other than the budget: the winner's shape scaled, which was not searched for."
    return element(
        "section",
        element("h2", "Fidelity against cost"),
        element("p", text, class_="quiet"),
        legend([(SERIES.key(name), name) for name in RIVALS]),
        plots(*(figure(one.title, one.text, one.plot) for one in front(report))),
        sheet("What was found, and what it is held against", heads, rows, chosen=0),
    )


def _cells(score: Score, one: Compared) -> list[Cell]:
    tuned = score is one.tuned
    interval = score.kl.interval
    ratios = (one.to_tome.value, one.to_preset.value) if tuned else (None, None)
    return [
        Cell(score.schedule.name if tuned else score.label, heading=True),
        number(short(score.gmacs, 4), score.gmacs),
        number(percent(one.share), one.share),
        number("" if score.tuning_kl is None else f"{score.tuning_kl:.4f}", score.tuning_kl),
        number(f"{score.kl.value:.4f}", score.kl.value),
        number(f"{interval.low:.4f} to {interval.high:.4f}", None),
        number(percent(score.agreement.value), score.agreement.value),
        *(number("" if value is None else f"{value:.2f}", value) for value in ratios),
    ]


def _schedule(report: TuneReport) -> Markup:
    schedule = report.winner.tuned.schedule
    tokens = tokens_of(report, schedule.layers)
    options = str(schedule.options) or "all at their defaults"
    return element(
        "section",
        element("h2", "The schedule, block by block"),
        element("p", f"Method {schedule.method}; options: {options}.", class_="quiet"),
        plots(*(figure(one.title, one.text, one.plot) for one in by_block(report))),
        element("ul", [element("li", line) for line in layer_lines(schedule, tokens)]),
    )


def _trials(report: TuneReport) -> Markup:
    made = finished(report)
    pruned = sum(one.state == "pruned" for one in made)
    seconds = sum(one.seconds for one in made)
    complete = sorted((one for one in made if one.state == "complete"), key=lambda one: (one.kl or 0.0, one.number))
    heads = ["trial", "KL, tuning", report.unit, "method", "first block", "tokens that go", "options"]
    text = f"{len(made)} trials, {pruned} of them given up early, {seconds:.0f} s; the best {BEST_TRIALS} in the table."
    return element(
        "section",
        element("h2", "Trials"),
        element("p", text, class_="quiet"),
        plots(*(figure(one.title, one.text, one.plot) for one in (*trials(report), *importances(report)))),
        sheet("The best trials", heads, [_trial_cells(one) for one in complete[:BEST_TRIALS]]),
    )


def _trial_cells(one: TrialRecord) -> list[Cell]:
    layers = one.schedule.layers if one.schedule else ()
    return [
        Cell(f"{one.number}{' (preset)' if one.start else ''}", heading=True),
        number(f"{one.kl or 0:.4f}", one.kl),
        number(short(one.cost, 4), one.cost),
        Cell(one.schedule.method if one.schedule else ""),
        number(str(layers[0].block) if layers else "", layers[0].block if layers else None),
        Cell(", ".join(str(layer.drop) for layer in layers)),
        Cell(str(one.schedule.options) if one.schedule else ""),
    ]


def _latency(report: TuneReport) -> Markup | None:
    if not report.measured:
        return None
    rows = [
        [
            Cell(one.schedule, heading=True),
            number(short(one.predicted_ms, 4), one.predicted_ms),
            number(short(one.measured_ms, 4), one.measured_ms),
            number(f"{100 * (one.predicted_ms / one.measured_ms - 1):+.1f} %", one.predicted_ms / one.measured_ms - 1),
        ]
        for one in report.measured
    ]
    return element(
        "section",
        element("h2", "Predicted and measured"),
        element("p", "Engines of what was found, built and measured on this machine.", class_="quiet"),
        sheet("Predicted and measured latency", ["", "predicted, ms", "measured, ms", "off"], rows),
    )
