"""What a table shows, and what it does not, in sentences. Pure."""

from __future__ import annotations

from itertools import groupby

from benchmarks.ablation.report import AblateReport, Convergence, Table
from ztdeploy.report.tune.words import nats
from ztdeploy.target.evaluate.eval_report import Mean


def outcome(difference: Mean | None) -> str:
    """Whether a paired difference of KL lies on one side of 0: "higher", "lower" or "not shown"; "" without one.

    "the same" where all answers are, as for an option that has nothing to decide.
    """
    if difference is None:
        return ""
    if difference.value == difference.interval.low == difference.interval.high == 0:
        return "the same"
    if difference.interval.low > 0:
        return "higher"
    return "lower" if difference.interval.high < 0 else "not shown"


def table_findings(table: Table) -> tuple[str, ...]:
    """What is shown, what is not; for a staircase against the row above each, else against the reference row."""
    if any(row.step is not None for row in table.rows):
        compared, than = [(row.label, row.step) for row in table.rows], "the row above"
    else:
        compared, than = [(row.label, row.difference) for row in table.rows], f"'{table.reference}'"
    beginnings = {
        "higher": f"Shown: further from dense than {than}:",
        "lower": f"Shown: nearer to dense than {than}:",
        "not shown": f"Not shown: any difference from {than} for",
        "the same": f"The same answers as {than}:",
    }
    sentences = []
    for kind, beginning in beginnings.items():
        found = [
            label if kind == "the same" else f"{label} {nats(difference)}"
            for label, difference in compared
            if difference is not None and outcome(difference) == kind
        ]
        if found:
            sentences.append(f"{beginning} {'; '.join(found)}.")
    return tuple(sentences)


def convergence_findings(found: Convergence) -> tuple[str, ...]:
    """Iterations until the kept set is settled, runs of blocks together."""
    runs = []
    for settled, group in groupby(found.blocks, key=lambda block: block.settled):
        numbers = [block.block for block in group]
        where = f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {numbers[0]} to {numbers[-1]}"
        runs.append(f"{where}: {settled}")
    first = min(found.blocks, key=lambda block: block.points[0].overlap.value)
    share, chance = 100 * first.points[0].overlap.value, 100 * found.kept / found.patches
    return (
        f"Iterations from which on at least {100 * found.settled_overlap:g} % of the kept tokens are those that "
        f"{found.most} keep: {'; '.join(runs)}.",
        f"After one iteration the overlap is least behind block {first.block}: {share:.1f} % (chance: {chance:.0f} %).",
    )


def summary(report: AblateReport) -> tuple[str, ...]:
    """Which topics matter on these images, first of all; which are not shown to; and how much chance is in that."""
    matters, open_ = [], []
    for table in report.tables:
        differences = [(row.label, row.difference) for row in table.rows if row.difference is not None]
        shown = [pair for pair in differences if outcome(pair[1]) in ("higher", "lower")]
        if shown:
            label, most = max(shown, key=lambda pair: abs(pair[1].value))
            matters.append((table.topic, f"{table.topic}: {label} {nats(most)} against {table.reference}"))
        else:
            open_.append(table.topic)
    sentences = [f"Shown to matter here: {', '.join(topic for topic, _ in matters) or 'nothing'}."]
    if open_:
        sentences.append(f"Not shown to matter: {', '.join(open_)}.")
    if matters:
        sentences.append(f"The largest differences of KL, in nats: {'; '.join(most for _, most in matters)}.")
    return (*sentences, chance(report))


def chance(report: AblateReport) -> str:
    """What so many intervals mean together."""
    count = sum(row.difference is not None for table in report.tables for row in table.rows)
    return (
        f"Each of the {count} intervals of differences holds with 95 % by itself; if nothing mattered at all, about "
        f"{max(1, round(count / 20))} of them would leave out 0 all the same."
    )
