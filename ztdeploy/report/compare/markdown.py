"""A comparison as Markdown, to be read in a pull request. Pure; names come from files, so nothing of them is markup."""

from __future__ import annotations

from ztdeploy.core.text import markdown_text
from ztdeploy.report.compare.comparison import Change, Pair, ReportComparison


def markdown(comparison: ReportComparison) -> str:
    """The conclusion first, then differences, the table, and what stands beside it."""
    mark = "**Regression**" if comparison.regressed else "**No regression**"
    conclusion = comparison.conclusion.partition("regression")[2]
    lines = [f"{mark}{markdown_text(conclusion)}", ""]
    if comparison.differences:
        lines += ["Not alike:", "", *(f"- {markdown_text(str(one))}" for one in comparison.differences), ""]
    lines += _table(comparison)
    beside = [f"{pair.label}: {text}" for pair in comparison.pairs for text in pair_remarks(pair)]
    beside += [str(one) for one in comparison.missing]
    beside += [f"warning: {caution}" for caution in comparison.cautions]
    lines += ["", *(f"- {markdown_text(text)}" for text in beside)] if beside else []
    return "\n".join(lines)


def pair_remarks(pair: Pair) -> list[str]:
    """What is to be said beside a pair's figures; what is a regression is said in the conclusion."""
    return [*pair.notes, *(str(growth) for growth in pair.growths if not growth.regression)]


def _table(comparison: ReportComparison) -> list[str]:
    old, new = markdown_text(comparison.baseline), markdown_text(comparison.candidate)
    heads = ("configuration", f"{old}, ms", f"{new}, ms", "ratio", "95 % interval", "speed-up", "verdict")
    lines = [f"| {' | '.join(heads)} |", "| --- | ---: | ---: | ---: | --- | --- | --- |"]
    for pair in comparison.pairs:
        latency, speedup = pair.latency_ms, pair.speedup
        cells = (
            markdown_text(pair.label),
            f"{latency.baseline:.4g}",
            f"{latency.candidate:.4g}",
            f"{latency.ratio:.3f}",
            interval(latency),
            f"{speedup.baseline:.2f}x → {speedup.candidate:.2f}x" if speedup else "",
            f"**{pair.verdict}**" if pair.regressions else pair.verdict,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def interval(change: Change) -> str:
    """Such as "1.010 to 1.034"; a dash where there are too few rounds."""
    return f"{change.interval.low:.3f} to {change.interval.high:.3f}" if change.interval else "-"
