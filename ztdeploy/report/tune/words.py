"""What a search found, in words; shared by its page, its schedule files and the terminal. Pure."""

from __future__ import annotations

from ztdeploy.core.arguments import MIN_AGREEMENT
from ztdeploy.core.cascade import CASCADE
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.core.verdict import Verdict
from ztdeploy.report.kit.numbers import percent, short
from ztdeploy.report.tune.records import BestAtCost, CascadeFound, Ratio, TuneReport, TwoStages
from ztdeploy.target.evaluate.eval_report import Mean
from ztdeploy.target.measure.machine import Machine
from ztdeploy.target.verdict import JudgedVariant, conclude, quality_of_share

FEW_IMAGES = 50


def title(report: TuneReport) -> str:
    return (
        f"{report.model.name}: cost against fidelity"
        if report.request.front
        else f"{report.model.name} tuned for {_goal(report)}"
    )


def _goal(report: TuneReport) -> str:
    """What was searched for."""
    request = report.request
    if request.cascade is not None:
        return f"a cascade with an agreement of {request.cascade:g}"
    return f"budget {request.budget}" if request.budget else "no budget (front)"


def subtitle(report: TuneReport) -> str:
    """Weights, images, trials and day."""
    request = report.request
    return (
        f"{report.model.timm_name}, weights: {report.model.origin}; {len(report.finished)} trials by "
        f"{request.searched_by}, seed {request.seed}, on {report.tuning_data.images} images of "
        f"'{report.tuning_data.name}', reported on {report.report_data.images} others; {report.created[:10]}"
    )


def nats(mean: Mean, sign: str = "+") -> str:
    """Such as "+0.012 (+0.003 to +0.021)"."""
    interval = mean.interval
    return f"{mean.value:{sign}.4f} ({interval.low:{sign}.4f} to {interval.high:{sign}.4f})"


def machine_words(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{machine.processor}, {len(machine.usable_cores)} cores, Python {machine.python}, {versions}"


def findings(report: TuneReport) -> list[str]:
    """The winner, and how it compares; all on images that no choice has seen."""
    found = report.winner
    two = report.cascade
    lines = [] if two is None else [_stages(two.tuned, report, "Found"), _stages(two.preset, report, "Best preset")]
    lines += [
        cost_words(found, report),
        _against(found.to_tome, "ToMe"),
        _against(found.to_preset, "the best preset"),
    ]
    if found.tuned.change is not None:
        interval = found.tuned.change.interval
        lines.append(
            f"Top-1 less the baseline's: {100 * found.tuned.change.value:+.1f} points "
            f"({100 * interval.low:+.1f} to {100 * interval.high:+.1f})."
        )
    return lines


def conclusion(report: TuneReport) -> Verdict:
    """Whether to take what was found for the budget or the best preset there, and what that changes."""
    found = report.winner
    if report.cascade is not None:
        return _of_cascade(report, report.cascade)
    ratio, taken = found.to_preset, found.recommended
    name = taken.schedule.name if found.better else f"the preset of {taken.schedule.method}"
    quality = quality_of_share(taken.agreement, taken.change)
    concluded = conclude(
        [JudgedVariant(name, 1 / found.share, None, quality)],
        timed=False,
        random_weights=report.model.weights == "random",
        saves="time" if report.unit == "ms" else "compute",
    )
    if found.better:
        return concluded
    shown = "worse than the best preset" if ratio.interval.low > 1 else "not shown to be better than the best preset"
    spread = f"KL {ratio.value:.2f} times its, {ratio.interval.low:.2f} to {ratio.interval.high:.2f}"
    sentence = f"What was found is {shown} ({spread}); {concluded.sentence}"
    decision = "preset" if concluded.decision == "deploy" else concluded.decision
    return Verdict(decision=decision, sentence=sentence, variant=taken.schedule.name)


def _of_cascade(report: TuneReport, found: CascadeFound) -> Verdict:
    """Whether to build the cascade of what was found, or that of the best preset."""
    taken, goal = found.recommended, report.request.cascade
    worst = f"{taken.worst_gmacs / report.dense_cost:.2f} times the baseline's compute"
    quality = quality_of_share(taken.agreement, None)
    judged = JudgedVariant(CASCADE, report.dense_cost / taken.mean_gmacs, None, quality, worst)
    random = report.model.weights == "random"
    concluded = conclude([judged], timed=False, min_agreement=goal or MIN_AGREEMENT, random_weights=random)
    stage = f"'{taken.schedule.name}'" if found.better else f"the preset of {taken.schedule.method}"
    decision = "preset" if concluded.decision == "deploy" and not found.better else concluded.decision
    sentence = f"With {stage} as its first stage, {concluded.sentence}"
    return Verdict(decision=decision, sentence=sentence, variant=taken.schedule.name)


def _stages(found: TwoStages, report: TuneReport, name: str) -> str:
    """What a cascade computes and how often it agrees, on images that no choice has seen."""
    mean, worst = (
        f"{short(gmacs, 4)} GMACs ({100 * (gmacs / report.dense_cost - 1):+.1f} %)"
        for gmacs in (found.mean_gmacs, found.worst_gmacs)
    )
    return (
        f"{name}, as first stage of a cascade: {mean} on average, {worst} at worst;"
        f" {percent(found.went_on.value)} of the images go on, {percent(found.agreement.value)} same answers, at least"
        f" {percent(found.bound)} with 95 % confidence."
    )


def _against(ratio: Ratio, name: str) -> str:
    interval = f"{ratio.interval.low:.2f} to {ratio.interval.high:.2f}"
    beginning = f"KL is {ratio.value:.2f} times that of {name} at the same cost ({interval})"
    if ratio.interval.high < 1:
        return f"{beginning}."
    return f"{beginning}: {'worse' if ratio.interval.low > 1 else 'no difference is shown'}."


def cost_words(found: BestAtCost, report: TuneReport) -> str:
    return (
        f"{short(found.tuned.cost, 4)} {report.unit} ({100 * (found.share - 1):+.1f} %): KL from the baseline "
        f"{nats(found.tuned.kl, '')}, {percent(found.tuned.agreement.value)} same answers."
    )


def cautions(report: TuneReport) -> list[str]:
    """What limits how far the figures can be believed."""
    lines = list(report.notes)
    if report.model.weights == "random":
        lines.append("The weights are random: nothing here says anything about a trained model.")
    if report.report_data.images < FEW_IMAGES:
        lines.append(f"Only {report.report_data.images} images to report on: hardly any difference can be shown.")
    if report.cascade is not None:
        lines.append(
            "The cascade has two stages and is counted in multiply-adds: no engine ran and no longer chain was tried;"
            " what it takes in time 'ztdeploy bench --cascade' measures."
        )
    unreadable = len(report.tuning_data.unreadable) + len(report.report_data.unreadable)
    if unreadable:
        lines.append(f"{unreadable} images could not be read and count nowhere.")
    return lines


def origin_lines(report: TuneReport) -> list[str]:
    """Where a schedule comes from."""
    return [
        f"Found by 'ztdeploy tune' {report.created[:10]}: {_goal(report)}, "
        f"{len(report.finished)} trials by {report.request.searched_by}, seed {report.request.seed}.",
        f"{report.model.timm_name}, weights sha256 {report.model.sha256[:12]}; tuned on {report.tuning_data.images} "
        f"images of '{report.tuning_data.name}' (sha256 {report.tuning_data.digest[:12]}).",
        f"Figures: {report.report_data.images} other images (sha256 {report.report_data.digest[:12]}).",
    ]


def layer_lines(schedule: PruningSchedule, tokens: tuple[int, ...]) -> list[str]:
    """Block by block, what a schedule does.

    Args:
        tokens: that enter each block.
    """
    drops = {layer.block: layer.drop for layer in schedule.layers}
    lines = []
    for block, entering in enumerate(tokens, 1):
        gone = drops.get(block)
        after = f", then {gone} go, {100 * gone / entering:.0f} %" if gone else ""
        lines.append(f"block {block}: {entering} tokens{after}")
    return lines
