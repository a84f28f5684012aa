"""ztdeploy eval"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.intervals import change_words, mean_words, share_words
from ztdeploy.cli.options import (
    BundleArgument,
    CacheOption,
    KeepRatiosOption,
    LimitOption,
    ProfileOption,
    VariantsOption,
    number_option,
    path_option,
    word_option,
)
from ztdeploy.cli.output import JsonFlag, note, print_record, progress_bar, say, table, warn
from ztdeploy.core import arguments

if TYPE_CHECKING:
    from ztdeploy.target.evaluate.eval_report import EvalReport, VariantScore

RESUME = "what is evaluated so far is kept: the same command goes on with it"
#: Images with the highest divergence that are shown per variant; the report has more.
_WORST, _UNREADABLE = 3, 5
_OF_SIGMOID = "same answer: the same outputs above 50 %; KL: mean over outputs of that between two chances"


def register(app: typer.Typer) -> None:
    app.command("eval", help="Run a bundle's engines on images: accuracy, recall, and how far they are from dense.")(
        evaluate
    )


def evaluate(
    bundle: BundleArgument,
    data: Annotated[Path, path_option("--data", "-d", help="labels.json, a folder per class, or a flat folder.")],
    limit: LimitOption = None,
    seed: Annotated[int, number_option(arguments.SEED, "--seed", help="Which images a limit takes.")] = 0,
    keep_ratio: KeepRatiosOption = None,
    variant: VariantsOption = None,
    profile: ProfileOption = None,
    against: Annotated[
        str | None, word_option(help="Profile whose dense engine all are held against. (default: the same)")
    ] = None,
    batch: Annotated[
        int | None, number_option(arguments.BATCH, "--batch", help="Images per call. (default: the profile's smallest)")
    ] = None,
    threads: Annotated[
        int | None, number_option(arguments.THREADS, "--threads", help="Threads. (default: what the process may use)")
    ] = None,
    recall_at: Annotated[
        list[int] | None,
        number_option(
            arguments.IMAGES,
            "--recall-at",
            metavar="K",
            help="Of embeddings: nearest images to look at; repeatable. (default: 1, 5, 10)",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="An image that cannot be read is an error.")] = False,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Write the figures into the bundle's manifest.")
    ] = True,
    out: Annotated[Path | None, path_option("--out", "-o", help="JSON file to write.")] = None,
    page: Annotated[Path | None, path_option(help="HTML file to write, with plots.")] = None,
    cache: CacheOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run the engines again on what is kept.")] = False,
    json: JsonFlag = False,
) -> None:
    from ztdeploy.report.evaluate.page import check_page_path, write_eval_page
    from ztdeploy.target.evaluate.eval_report import EvalRequest, check_eval_path, write_eval
    from ztdeploy.target.evaluate.evaluate import evaluate_bundle
    from ztdeploy.target.evaluate.record import check_recordable
    from ztdeploy.target.evaluate.record import record as write_record
    from ztdeploy.target.measure.plan import parse_keep_ratios

    ratios, every = parse_keep_ratios(keep_ratio or [])
    request = EvalRequest(
        bundle=bundle,
        data=data,
        limit=limit,
        seed=seed,
        keep_ratios=() if every else ratios,
        variants=() if every else tuple(variant or ()),
        profile=profile,
        dense_profile=against,
        batch=batch,
        threads=threads,
        strict=strict,
        recall_at=tuple(recall_at or ()),
    )
    if out is not None:
        check_eval_path(out)
    if page is not None:
        check_page_path(page)
    if record:
        check_recordable(bundle)
    try:
        with progress_bar(not json) as progress:
            report = evaluate_bundle(request, cache=cache, fresh=fresh, progress=progress, note=note)
    except KeyboardInterrupt:
        note(RESUME)
        raise
    if out is not None:
        write_eval(report, out)
    if page is not None:
        write_eval_page(report, page)
    if record:
        write_record(report, bundle, lambda: note("waiting for another process that writes to this bundle"))
    if json:
        print_record(report)
        return
    show_eval(report)
    for written in (out, page):
        if written is not None:
            note(f"wrote {written}")


def show_eval(report: EvalReport) -> None:
    """Tables of what was found, and what to think of it."""
    from ztdeploy.cli.eval_vectors import show_vectors

    bundle, data = report.bundle, report.data
    say(f"{Path(bundle.path).resolve().name}: {bundle.timm_name}, profile {bundle.profile}, {bundle.runtime}")
    left_out = f", {data.ignored} other files ignored" if data.ignored else ""
    say(f"{data.path}: {data.images} of {data.found} images ({data.rule}{left_out}); sha256 {data.digest[:12]}")
    say()
    if report.output != "logits":
        show_vectors(report)
    elif data.labelled:
        _show_accuracy(report)
    if report.output == "logits" and len(report.variants) > 1:
        _show_against_dense(report)
        _show_worst(report)
    for one in data.unreadable[:_UNREADABLE]:
        warn(f"not counted: {one.reason}")
    if len(data.unreadable) > _UNREADABLE:
        warn(f"not counted: {len(data.unreadable) - _UNREADABLE} more images that cannot be read")
    if bundle.weights == "random":
        warn("the weights are random: predictions mean nothing")


def _show_accuracy(report: EvalReport) -> None:
    rows = [
        (
            score.label,
            *share_words(score.top1),
            *share_words(score.top5),
            *_change(score),
        )
        for score in report.variants
    ]
    interval = "95 % interval"
    headings = ("top-1", interval, "top-5", interval, "top-1 less dense", interval, "gained", "lost")
    table(
        f"Accuracy on {report.data.images} images of {report.data.classes} classes, in %",
        [("variant", "left"), *((heading, "right") for heading in headings)],
        rows,
        caption="gained, lost: images that only the variant, or only dense, has right",
    )


def _show_against_dense(report: EvalReport) -> None:
    rows = [
        (score.variant, f"{score.gmacs:.3g}", *share_words(against.agreement), *mean_words(against.kl))
        for score in report.variants
        if (against := score.against_dense) is not None
    ]
    headings = ("GMACs", "same answer, in %", "95 % interval", "mean KL, in nats", "95 % interval")
    table(
        f"Against the dense engine, on {report.data.images} images",
        [("variant", "left"), *((heading, "right") for heading in headings)],
        rows,
        caption=_OF_SIGMOID if report.activation == "sigmoid" else "",
    )


def _show_worst(report: EvalReport) -> None:
    from ztdeploy.target.runtime.postprocess import chance

    rows = [
        (
            score.variant if place == 0 else "",
            f"{one.kl:.3g}",
            f"{one.dense.name} ({chance(one.dense.probability, None, 0)})",
            f"{one.variant.name} ({chance(one.variant.probability, None, 0)})",
            one.image,
        )
        for score in report.variants
        if score.against_dense is not None
        for place, one in enumerate(score.against_dense.worst[:_WORST])
    ]
    columns = [("variant", "left"), ("KL", "right"), ("dense says", "left"), ("it says", "left"), ("image", "left")]
    table("Furthest from dense", columns, rows)


def _change(score: VariantScore) -> tuple[str, str, str, str]:
    change = score.against_dense.change if score.against_dense is not None else None
    return (*change_words(change), *(("", "") if change is None else (f"{change.gained}", f"{change.lost}")))
