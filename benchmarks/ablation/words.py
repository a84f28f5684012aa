"""What an ablation was made of, in words; shared by its page, its Markdown and the terminal. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.ablation.report import AblateReport
from ztdeploy.report.tune.words import machine_words
from ztdeploy.target.evaluate.eval_report import Change, Mean, Share

HOST_HALF = "Computed in PyTorch, fp32: options decide which tokens stay, not how an engine computes."
#: Below it, hardly any difference can be shown.
FEW_IMAGES = 50
NOTES: Mapping[str, str] = {
    "KL": "KL(dense || row) in nats, per image; the mean, with a bootstrap interval over images.",
    "difference": "KL of a row less that of the reference row, image by image, so that what images have in "
    "common cancels. Its bootstrap interval decides whether a difference is shown.",
    "against the row above": "The same, where each row adds one thing to the one above it; the first ranking "
    "against the mean of all random draws.",
    "agreement": "Images whose top class is dense's; Wilson's score interval.",
    "top-1 less dense": "On the same images; Tango's score interval.",
    "keep": "The keep ratio that gives this cost, with the schedule that it means for the method.",
    "GMACs": "What the exported graph computes, pruning layers not counted.",
}


def title(report: AblateReport) -> str:
    return f"What matters in pruning {report.model.name}"


def subtitle(report: AblateReport) -> str:
    """Weights, images, cost and day."""
    where = "" if report.request.preset == "default" else f", layers as in the preset '{report.request.preset}'"
    labels = "labelled" if report.data.labelled else "unlabelled"
    return (
        f"{report.model.timm_name}, weights: {report.model.origin}; {report.data.images} {labels} images of "
        f"'{report.data.name}'; all rows at {100 * (report.share - 1):+.0f} % GMACs{where}; {report.created[:10]}"
    )


def cautions(report: AblateReport) -> list[str]:
    """What limits how far the figures can be believed."""
    lines = []
    if report.model.weights == "random":
        lines.append("The weights are random: nothing here says anything about a trained model.")
    if report.data.images < FEW_IMAGES:
        lines.append(f"Only {report.data.images} images: hardly any difference can be shown.")
    if report.data.unreadable:
        lines.append(f"{len(report.data.unreadable)} images could not be read and count nowhere.")
    return lines


def machine_line(report: AblateReport) -> str:
    return machine_words(report.machine)


def mean_words(mean: Mean | None, sign: str = "") -> tuple[str, str]:
    if mean is None:
        return "", ""
    interval = mean.interval
    return f"{mean.value:{sign}.4f}", f"{interval.low:{sign}.4f} to {interval.high:{sign}.4f}"


def share_words(share: Share | None) -> tuple[str, str]:
    """In %."""
    if share is None:
        return "", ""
    return f"{100 * share.value:.1f}", f"{100 * share.interval.low:.1f} to {100 * share.interval.high:.1f}"


def change_words(change: Change | None) -> tuple[str, str]:
    """In points of %."""
    if change is None:
        return "", ""
    return f"{100 * change.value:+.1f}", f"{100 * change.interval.low:+.1f} to {100 * change.interval.high:+.1f}"
