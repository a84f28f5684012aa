"""Evaluating the variants of a sweep on images, as `eval` does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.cascade import CASCADE
from ztdeploy.core.errors import InputError
from ztdeploy.core.progress import Note, Progress
from ztdeploy.target.evaluate.data import check_exists
from ztdeploy.target.evaluate.eval_report import EvalRequest
from ztdeploy.target.evaluate.evaluate import evaluate_bundle
from ztdeploy.target.evaluate.record import fidelity_record
from ztdeploy.target.measure.sweep_plan import fidelity_of
from ztdeploy.target.measure.sweep_report import SweepReport, SweepRequest


def check_images(request: SweepRequest) -> None:
    """What can be known of the images before anything is built.

    Raises:
        ImageError: there are none at `data`.
        InputError: a limit that makes no sense, or without images.
    """
    if request.data is not None:
        check_exists(request.data)
    elif request.limit is not None:
        raise InputError(f"--limit {request.limit} without --data", "images to limit", "give --data DIR as well")


def with_fidelity(
    report: SweepReport,
    bundles: Sequence[Bundle],
    profile: str,
    *,
    cache: Path,
    fresh: bool,
    progress: Progress,
    note: Note,
) -> SweepReport:
    """The report with what its variants' engines cost on the request's images; as it is where it names none.

    What is found out is kept in the cache as it comes; after Ctrl-C or a kill, the same request goes on. The bundles
    stay as they are.

    Raises:
        ZtdeployError: see `evaluate_bundle`.
    """
    if report.request.data is None:
        return report
    swept, known = {(one.name, one.image_size) for one in report.variants}, {}
    for bundle in bundles:
        size = bundle.manifest.preprocess.image_size
        request = EvalRequest(
            bundle=bundle.root,
            data=report.request.data,
            limit=report.request.limit,
            # In the bundle's order, in which `eval` takes all of them: what either keeps is then there for the other.
            variants=tuple(one.name for one in bundle.manifest.variants if (one.name, size) in swept),
            profile=profile,
            cascade=(CASCADE, size) in swept,
        )
        found = evaluate_bundle(request, cache=cache, fresh=fresh, progress=progress, note=note)
        for unreadable in found.data.unreadable:
            note(f"not counted: {unreadable.reason}")
        for score in found.variants:
            own = {"fidelity": fidelity_of(fidelity_record(found, score)), "gmacs": score.gmacs}
            known[score.variant, size] = own
    variants = [one.model_copy(update=known[one.name, one.image_size]) for one in report.variants]
    return report.model_copy(update={"variants": tuple(variants)})
