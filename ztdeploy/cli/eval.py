"""ztdeploy eval"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.boards import Delivery, on_boards
from ztdeploy.cli.help import JUDGE, OUTPUT, QUALITY, TARGETS
from ztdeploy.cli.options import (
    PROFILES,
    BundleArgument,
    CacheOption,
    DataOption,
    KeepRatiosOption,
    LimitOption,
    MaxErrorOption,
    MinAgreementOption,
    MinIouOption,
    ProfileOption,
    SeedOption,
    SignedByOption,
    ThreadCountOption,
    VariantsOption,
    demand_signature,
    flag,
    option,
    options,
    out_path,
    request_of,
    word,
)
from ztdeploy.cli.output import answer, left, note, progress_bar, right, say, table, warn
from ztdeploy.core.arguments import BATCH, IMAGES, MIN_AGREEMENT, SHARE

if TYPE_CHECKING:
    from ztdeploy.report.evaluate.maps import DrawnMaps
    from ztdeploy.target.evaluate.eval_report import (
        Answer,
        CascadeScore,
        Change,
        EvalReport,
        Mean,
        Positions,
        Quantile,
        Share,
    )

RESUME = "what is evaluated so far is kept: the same command goes on with it"
#: Images furthest from the baseline that are shown per variant, and images that cannot be read; the report has more.
_WORST, _UNREADABLE = 3, 5
_BRACKETS = "in brackets: 95 % intervals"
_OF_SIGMOID = "same answer: the same outputs are above 50 %; KL: the mean over all outputs, each taken by itself"


def register(app: typer.Typer) -> None:
    delivery = Delivery(_show, check=_check_paths, write=_write, writes=("out", "page"))
    app.command("eval", rich_help_panel=JUDGE)(on_boards(delivery)(evaluate))


def evaluate(
    bundle: BundleArgument,
    data: DataOption,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    keep_ratios: KeepRatiosOption = None,
    variants: VariantsOption = None,
    profile: ProfileOption = None,
    dense_profile: Annotated[
        str | None,
        option("--against NAME", word, TARGETS, "Compare with the baseline of this profile.", known=PROFILES),
    ] = None,
    batch: Annotated[
        int | None, option("--batch N", BATCH, TARGETS, "Images in one call. [default: the profile's smallest batch]")
    ] = None,
    threads: ThreadCountOption = None,
    signed_by: SignedByOption = None,
    recall_at: Annotated[
        list[int] | None,
        options("--recall-at N", IMAGES, QUALITY, "How many neighbours, for embeddings. [default: 1,5,10]"),
    ] = None,
    min_agreement: MinAgreementOption = MIN_AGREEMENT,
    max_error: MaxErrorOption = None,
    min_iou: MinIouOption = None,
    threshold: Annotated[
        float | None, option("--threshold RATIO", SHARE, QUALITY, "Probability of a yes in a map. [default: 0.5]")
    ] = None,
    strict: Annotated[bool, flag("--strict", QUALITY, "Fail where an image cannot be read.")] = False,
    record: Annotated[
        bool, flag("--record/--no-record", OUTPUT, "Write the figures into the bundle's manifest.")
    ] = True,
    out: Annotated[Path | None, option("-o, --out FILE", out_path, OUTPUT, "JSON file to write.")] = None,
    page: Annotated[Path | None, option("--page FILE", out_path, OUTPUT, "HTML file to write, with plots.")] = None,
    maps: Annotated[
        Path | None, option("--maps DIR", out_path, OUTPUT, "Folder for PNGs of the worst maps beside the baseline's.")
    ] = None,
    cache: CacheOption = None,
    fresh: Annotated[bool, flag("--fresh", OUTPUT, "Run the engines again, whatever is kept.")] = False,
) -> None:
    """Count the answers that pruning changes on your images.

    Examples:
        # Count the answers that change on your own images, with or without labels.
        ztdeploy eval quickstart --data photos
        # Judge one keep ratio on at most 500 images, and write a page with plots.
        ztdeploy eval quickstart --data photos -k 0.7 --limit 500 --page eval.html
    """
    given = locals()
    from ztdeploy.core.bundle import is_signed, read_bundle
    from ztdeploy.report.evaluate.maps import draw_maps, write_maps
    from ztdeploy.report.kit.map_files import check_maps_folder
    from ztdeploy.target.evaluate.eval_report import EvalRequest
    from ztdeploy.target.evaluate.evaluate import evaluate_bundle
    from ztdeploy.target.evaluate.record import check_recordable
    from ztdeploy.target.evaluate.record import record as write_record
    from ztdeploy.target.evaluate.worst_maps import worst_maps

    demand_signature(signed_by)
    request = request_of(EvalRequest, given)
    paths = {name: one for name, one in (("out", out), ("page", page)) if one is not None}
    _check_paths(paths)
    if maps is not None:
        check_maps_folder(maps, read_bundle(bundle))
    if record and is_signed(bundle):
        record = False
        note("the bundle is signed as it is: the figures are not written into it")
    if record:
        check_recordable(bundle)
    try:
        with progress_bar() as progress:
            report = evaluate_bundle(request, cache=cache, fresh=fresh, progress=progress, note=note)
    except KeyboardInterrupt:
        note(RESUME)
        raise
    drawn = draw_maps(report, worst_maps(report, read_bundle(bundle))) if page or maps else []
    files = _write(report, paths, drawn)
    if maps is not None:
        write_maps(drawn, maps)
        files.append(maps)
    if record:
        write_record(report, bundle, lambda: note("waiting for another process that writes to this bundle"))
    answer(report, lambda: _show(report))
    for file in files:
        note(f"wrote {file}")


def _check_paths(paths: Mapping[str, Path]) -> None:
    from ztdeploy.report.evaluate.page import check_page_path
    from ztdeploy.target.evaluate.eval_report import check_eval_path

    if "out" in paths:
        check_eval_path(paths["out"])
    if "page" in paths:
        check_page_path(paths["page"])


def _write(report: EvalReport, paths: Mapping[str, Path], drawn: Sequence[DrawnMaps] = ()) -> list[Path]:
    """Write the report and its page, and return their paths; maps are drawn where the engines ran."""
    from ztdeploy.core.files import write
    from ztdeploy.core.records import to_json
    from ztdeploy.report.evaluate.page import eval_page

    if "out" in paths:
        write(paths["out"], to_json(report, indent=1) + "\n")
    if "page" in paths:
        write(paths["page"], eval_page(report, list(drawn)))
    return list(paths.values())


def _show(report: EvalReport) -> None:
    """Tables of what was found, and what to think of it."""
    bundle, data = report.bundle, report.data
    say(f"{Path(bundle.path).resolve().name}: {bundle.timm_name}, profile {bundle.profile}, {bundle.runtime}")
    left_out = f", {data.ignored} other files ignored" if data.ignored else ""
    say(f"{data.path}: {data.images} of {data.found} images ({data.rule}{left_out}); sha256 {data.digest[:12]}")
    say()
    if report.output == "maps":
        _show_maps(report)
    elif report.output != "logits":
        _show_vectors(report)
    elif data.labelled:
        _show_accuracy(report)
    if report.output == "logits" and len(report.variants) > 1:
        _show_against_dense(report)
    if report.cascade is not None:
        _show_cascade(report.cascade)
    for one in data.unreadable[:_UNREADABLE]:
        warn(f"not counted: {one.reason}")
    if len(data.unreadable) > _UNREADABLE:
        warn(f"not counted: {len(data.unreadable) - _UNREADABLE} more images that cannot be read")
    if bundle.weights == "random":
        warn("the weights are random: predictions mean nothing")
    if report.verdict is not None:
        say(report.verdict.sentence)


def _show_accuracy(report: EvalReport) -> None:
    rows = []
    for score in report.variants:
        change = score.against_dense.change if score.against_dense is not None else None
        counts = ("", "") if change is None else (f"{change.gained}", f"{change.lost}")
        top5 = "-" if score.top5 is None else f"{100 * score.top5.value:.1f}"
        rows.append((score.label, _share(score.top1), top5, _change(change), *counts))
    headings = ("top-1", "top-5", "change of top-1, in points", "gained", "lost")
    table(
        f"Accuracy on {report.data.images} images of {report.data.classes} classes, in %",
        left("variant") + right(*headings),
        rows,
        caption=f"{_BRACKETS}; gained, lost: images that only the variant, or only the baseline, has right",
    )


def _show_against_dense(report: EvalReport) -> None:
    found = [(score, score.against_dense) for score in report.variants if score.against_dense is not None]
    table(
        f"Compared with the baseline, on {report.data.images} images",
        left("variant") + right("GMACs", "same answer, in %", "mean KL, in nats"),
        [(score.variant, f"{score.gmacs:.3g}", _share(one.agreement), _mean(one.kl)) for score, one in found],
        caption=_BRACKETS + (f"; {_OF_SIGMOID}" if report.activation == "sigmoid" else ""),
    )
    table(
        "Furthest from the baseline",
        left("variant") + right("KL, in nats") + left("baseline says", "it says", "image"),
        [
            ("" if place else score.variant, f"{one.kl:.3g}", _answer(one.dense), _answer(one.variant), one.image)
            for score, against in found
            for place, one in enumerate(against.worst[:_WORST])
        ],
    )


def _show_cascade(score: CascadeScore) -> None:
    table(
        "Cascade: how many images each stage ran on, in %",
        left("stage") + right("here", "expected"),
        [(one.variant, _share(one.reached), f"{100 * one.expected:.1f}") for one in score.stages],
        caption=f"{_BRACKETS}; expected: on the calibration images, '{score.calibrated_on}'",
    )
    if score.unlike is not None:
        warn(score.unlike)
    say(score.sentence)


def _show_vectors(report: EvalReport) -> None:
    """How alike vectors are to dense's, and what embeddings find."""
    found = [(score, score.likeness) for score in report.variants if score.likeness is not None]
    if found:
        table(
            f"Cosine to the baseline's {report.output}, on {report.data.images} images",
            left("variant") + right("GMACs", "mean", "5 % are below", "lowest"),
            [
                (score.label, f"{score.gmacs:.3g}", _mean(one.mean), _mean(one.p5), f"{one.lowest:.4f}")
                for score, one in found
            ],
            caption=f"{_BRACKETS}; of each image{'' if report.output == 'embedding' else ' and position'}",
        )
        _show_positions([(score.label, one.positions) for score, one in found if one.positions is not None])
        furthest = [
            ("" if place else score.label, f"{far.cosine:.4f}", far.image)
            for score, one in found
            for place, far in enumerate(one.furthest[:_WORST])
        ]
        if furthest:
            table("Furthest from the baseline", left("variant") + right("cosine") + left("image"), furthest)
    if any(score.recalls for score in report.variants):
        _show_recall(report)
    elif report.output == "embedding":
        say("Recall takes at least two images.")


def _show_maps(report: EvalReport) -> None:
    """How near maps are to the baseline's."""
    found = [(score, score.maps) for score in report.variants if score.maps is not None]
    if not found:
        return
    from ztdeploy.target.evaluate.maps import figure_words

    words = figure_words(report.activation, report.request.threshold)
    shown = [name for name in words if getattr(found[0][1], name) is not None]
    table(
        f"Maps compared with the baseline's, on {report.data.images} images",
        left("variant") + right("GMACs", *(words[name].head for name in shown)),
        [(score.label, f"{score.gmacs:.3g}", *(_mean(getattr(one, name)) for name in shown)) for score, one in found],
        caption="\n".join([_BRACKETS, *(f"{words[name].head}: {words[name].text}" for name in shown)]),
    )
    table(
        "Furthest from the baseline",
        left("variant") + right(*(words[name].head for name in shown)) + left("image"),
        [
            ("" if place else score.label, *(f"{getattr(far, name):.4f}" for name in shown), far.image)
            for score, one in found
            for place, far in enumerate(one.furthest[:_WORST])
        ],
    )


def _show_positions(found: Sequence[tuple[str, Positions]]) -> None:
    if not found:
        return
    table(
        "Cosine by what stands at a position",
        left("variant") + right("token kept", "filled", "filled, in %", "lowest") + left("of image"),
        [
            (
                label,
                _mean(one.kept),
                _mean(one.filled),
                f"{100 * one.filled_share:.1f}",
                f"{one.lowest.cosine:.4f} at {one.lowest.position}",
                one.lowest.image,
            )
            for label, one in found
        ],
        caption="filled: its own token went, and it has the features of another; positions count from 0, row by row",
    )


def _show_recall(report: EvalReport) -> None:
    labelled = any(one.recall is not None for score in report.variants for one in score.recalls)
    rows = []
    for score in report.variants:
        for one in score.recalls:
            recall = (_share(one.recall), _change(one.change)) if labelled else ()
            overlap = "" if one.overlap is None else _share(one.overlap)
            rows.append((score.label, one.gallery, f"{one.k}", *recall, overlap))
    recall_headings = ("recall", "change, in points") if labelled else ()
    asking = next((one.recall.total for one in report.variants[0].recalls if one.recall is not None), None)
    queries = "" if asking is None else f", {asking} of them with others of their class"
    table(
        f"Each of {report.data.images} images asks for its nearest among the others{queries}, in %",
        left("variant", "gallery") + right("k", *recall_headings, "same neighbours"),
        rows,
        caption="gallery: whose embeddings the others have; recall: images with their class among the k nearest\n"
        f"same neighbours: of the k nearest, those that are the baseline's as well; {_BRACKETS}",
    )
    if report.data.labelled and not labelled:
        say("No class has two images: there is no recall, only what the baseline finds.")


# A figure with its interval.


def _share(share: Share | Mean | None) -> str:
    """In %."""
    return "-" if share is None else f"{100 * share.value:.1f} ({share.interval.scaled(100):.1f})"


def _mean(mean: Mean | Quantile | None) -> str:
    return "-" if mean is None else f"{mean.value:.4f} ({mean.interval:.4f})"


def _change(change: Change | None) -> str:
    """In points of %; empty where nothing is compared."""
    return "" if change is None else f"{100 * change.value:+.1f} ({change.interval.scaled(100):+.1f})"


def _answer(answer: Answer) -> str:
    from ztdeploy.target.runtime.postprocess import chance

    return f"{answer.name} ({chance(answer.probability, None, 0)})"
