"""The page of an evaluation: what `eval --page` writes. Names come from files, so all pass through `element`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ztdeploy.core.errors import InputError
from ztdeploy.core.files import read_bytes
from ztdeploy.report.evaluate.answers import answers
from ztdeploy.report.evaluate.cascade import cascade
from ztdeploy.report.evaluate.maps import DrawnMaps, maps, notes_of
from ztdeploy.report.evaluate.vectors import vectors
from ztdeploy.report.evaluate.worst import worst
from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.figure import notes, trust, verdict
from ztdeploy.report.kit.markup import element
from ztdeploy.report.kit.numbers import counted
from ztdeploy.target.evaluate.eval_report import EvalReport
from ztdeploy.target.measure.report_file import check_overwritable
from ztdeploy.version import __version__

FEW_IMAGES = 100
_WRITTEN = "Written by ztdeploy"
_LARGEST = 2**30  #: bytes of a page
_NOTES = {
    "Interval": "The figures in brackets: had other images of the same kind been taken, the figure would lie in there "
    "95 times out of 100. Digits that the interval does not support are left out.",
    "Changed answers": "Images that the variant answers otherwise than the baseline, right or wrong. This is what "
    "users notice first.",
    "Gained, lost": "Images that only the variant has right, and images that only the baseline has right.",
    "Top-1 change": "Accuracy of the variant less that of the baseline on the same images, in points of %. Its "
    "interval is narrower than those of the two accuracies, because most images count for both alike.",
    "Divergence": "How far output probabilities move, whether or not the answer changes: the mean Kullback-Leibler "
    "divergence (KL) from the baseline, in nats. 0 is no change at all; 0.01 is as far as 57 % is from 50 %, and 0.1 "
    "as far as 72 % is from 50 %. It shows a cost with far fewer images than answers do.",
}
_VECTOR_NOTES = {
    "Cosine": "Of a vector and the baseline's vector of the same image (and position): 1 is the same direction, 0 is "
    "nothing in common. What a value costs depends on what is done with the vectors; recall says it for search.",
    "Interval": _NOTES["Interval"],
}

_CASCADE_NOTES = {
    "Cascade": "Its cheapest stage runs on every image, and an image goes on to the next stage where a stage is not "
    "confident. Its GMACs are a mean over these images. The bound on its agreement with the baseline was chosen on "
    "calibration images, with 95 % confidence, and holds for images like those.",
}


def check_page_path(out: Path, verb: str = "eval") -> None:
    """Fail early where a page of a verb could not be written in the end.

    Raises:
        OutputError: a folder, or a file that no page of ours is in.
    """

    def is_page() -> bool:
        try:
            return _WRITTEN.encode() in read_bytes(out, _LARGEST)
        except InputError:
            return False

    check_overwritable(out, f"page of 'ztdeploy {verb}'", is_page, "--page FILE.html")


def eval_page(report: EvalReport, drawn: Sequence[DrawnMaps] = ()) -> str:
    """The whole document, which is well-formed XML as well, with small pictures of images that are still there.

    Args:
        drawn: of a dense model, the worst images.
    """
    title = f"What pruning costs: {Path(report.bundle.path).resolve().name}"
    images = f"{counted(report.data.images, 'image')} of {report.data.name} ({report.data.rule})"
    facts = f"{report.bundle.timm_name}, profile {report.bundle.profile}, {report.bundle.runtime}; {images}"
    classes = report.output == "logits"
    of_maps = {**notes_of(report), "Interval": _NOTES["Interval"]}
    explained = of_maps if report.output == "maps" else _NOTES if classes else _VECTOR_NOTES
    return document(
        title,
        element("header", element("h1", title), element("p", facts, class_="lead")),
        verdict(report.verdict.decision, report.verdict.sentence) if report.verdict else None,
        trust(_limits(report)),
        maps(report, drawn) if report.output == "maps" else answers(report) if classes else vectors(report),
        cascade(report),
        worst(report),
        notes(explained | (_CASCADE_NOTES if report.cascade else {})),
        element("footer", f"{_WRITTEN} {__version__}; images' sha256 {report.data.digest[:12]}."),
    )


def _limits(report: EvalReport) -> list[str]:
    """What limits how far the figures can be believed."""
    data, lines = report.data, []
    if report.bundle.weights == "random":
        lines.append("The weights are random: outputs mean nothing.")
    if data.images < FEW_IMAGES:
        lines.append(f"Only {counted(data.images, 'image')}: intervals are wide.")
    if report.cascade is not None and report.cascade.unlike is not None:
        lines.append(f"{report.cascade.unlike[:1].upper()}{report.cascade.unlike[1:]}.")
    if data.unreadable:
        lines.append(f"{counted(len(data.unreadable), 'image')} could not be read and count nowhere.")
    return lines
