"""A comparison as rows of a table, and as Markdown for a pull request. Pure; names from files are never markup."""

from __future__ import annotations

from ztdeploy.core.text import markdown_text
from ztdeploy.report.compare.comparison import ConfigurationPair, RatioChange, ReportComparison


def markdown(comparison: ReportComparison) -> str:
    """The conclusion first, then differences, the table, and what stands beside it."""
    mark = "**Regression**" if comparison.regressed else "**No regression**"
    conclusion = comparison.conclusion.partition("regression")[2]
    lines = [f"{mark}{markdown_text(conclusion)}", ""]
    if comparison.differences:
        lines += ["Not alike:", "", *(f"- {markdown_text(str(one))}" for one in comparison.differences), ""]
    old, new = markdown_text(comparison.baseline), markdown_text(comparison.candidate)
    lines.append(f"| configuration | {old}, ms | {new}, ms | ratio | 95 % | speed-up | 95 % | verdict |")
    lines.append("| --- | ---: | ---: | ---: | --- | --- | --- | --- |")
    for pair in comparison.pairs:
        verdict = f"**{pair.verdict}**" if pair.regressions else pair.verdict
        lines.append(f"| {' | '.join([markdown_text(pair.label), *figures(pair), verdict])} |")
    beside = [*remarks(comparison), *(f"warning: {caution}" for caution in comparison.cautions)]
    lines += ["", *(f"- {markdown_text(text)}" for text in beside)] if beside else []
    return "\n".join(lines)


def figures(pair: ConfigurationPair) -> list[str]:
    """Latency in ms before and after, their ratio and its interval; both speed-ups and the interval of their ratio."""
    latency, speedup = pair.latency_ms, pair.speedup
    speedups = [f"{speedup.baseline:.2f}x -> {speedup.candidate:.2f}x", _interval(speedup)] if speedup else ["", ""]
    return [
        f"{latency.baseline:.4g}",
        f"{latency.candidate:.4g}",
        f"{latency.ratio:.3f}",
        _interval(latency),
        *speedups,
    ]


def _interval(change: RatioChange) -> str:
    return f"{change.interval:.3f}" if change.interval else "-"


def remarks(comparison: ReportComparison) -> list[str]:
    """What is to be said beside the figures."""
    found = [f"{pair.label}: {text}" for pair in comparison.pairs for text in pair.remarks]
    return [*found, *map(str, comparison.missing)]
