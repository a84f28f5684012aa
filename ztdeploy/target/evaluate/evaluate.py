"""What pruning costs, on images and by the engines themselves: `evaluate_bundle` is the job on one screen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ztdeploy.core.bundle import WEIGHTS_FILE, Bundle, read_bundle
from ztdeploy.core.cache import cache_folder, key_of
from ztdeploy.core.cascade import CASCADE
from ztdeploy.core.errors import ImageError, InputError
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.preprocess_spec import NOUNS
from ztdeploy.core.progress import Note, Progress, silent
from ztdeploy.target.backends import runtime_versions
from ztdeploy.target.evaluate.answers import (
    ClassAnswers,
    ImageAnswers,
    MapAnswers,
    VectorAnswers,
    chosen,
    joined,
    keep_answers,
    kept_answers,
)
from ztdeploy.target.evaluate.cascades import cascade_score, mean_gmacs_of
from ztdeploy.target.evaluate.data import EvalData, LabelledImage, data_facts, label_classes, limited, read_data
from ztdeploy.target.evaluate.engines import Workload, in_order, open_engines
from ztdeploy.target.evaluate.eval_report import AgainstDense, EvalReport, EvalRequest, Recall, Share, VariantScore
from ztdeploy.target.evaluate.maps import THRESHOLD
from ztdeploy.target.evaluate.scoring import (
    against_dense,
    hits,
    likeness,
    map_nearness,
    recall_counts,
    recalls,
    share,
)
from ztdeploy.target.measure.bench_report import BenchRequest, BundleFacts
from ztdeploy.target.measure.plan import plan_bench
from ztdeploy.target.runtime.runner import class_names, engine_of
from ztdeploy.target.verdict import verdict_of_eval

#: Images that a worker takes at a time; what it found out about them is kept at once.
CHUNK = 16


def evaluate_bundle(
    request: EvalRequest,
    *,
    cache: Path | None = None,
    fresh: bool = False,
    progress: Progress = silent,
    note: Note = lambda _text: None,
) -> EvalReport:
    """Run the dense engine and others on images, and compare.

    What is found out is kept as it comes, named after engines and images: after Ctrl-C or a kill, the same request
    goes on.

    Args:
        cache: see `cache.cache_folder`.
        fresh: run the engines again on what is kept.
        progress: told how many images are done.
        note: told what is worth knowing and no error.

    Raises:
        BundleError: the bundle is damaged.
        ImageError: no images, labels that do not fit the model, or, if strict, an image that cannot be read.
        InputError: a value that makes no sense.
        ParityError: an engine gives something else than numbers.
        OutputError: the cache cannot be written.
    """
    bundle = read_bundle(request.bundle)
    facts, work = plan(request, bundle)
    bundle.verify_files([name for name in (bundle.manifest.class_names,) if name is not None])
    classes = label_classes(work.output, bundle.manifest.model.architecture.num_classes)
    data = read_data(request.data, class_names(bundle), classes, bundle.manifest.preprocess.channels)
    if data.labelled and (work.output == "maps" or (work.output == "logits" and classes is None)):
        what = "the model gives maps" if work.output == "maps" else "the model has one output"
        note(f"{what}: labels are not counted, all figures are against dense")
        data = data.without_labels()
    taken = limited(data, request.limit, request.seed)
    recall_counts(request.recall_at, len(taken.images))
    answers = _answers(work, taken, request, cache_folder(cache) / "evaluations", fresh, progress, note)
    report = EvalReport(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        request=request,
        bundle=facts,
        output=work.output,
        activation=bundle.manifest.model.activation,
        grid=bundle.manifest.model.architecture.rows_and_columns,
        data=data_facts(data, taken, [one.tobytes() for one in answers.content], answers.problem.tolist()),
        variants=tuple(_scores(work, answers, taken, request)),
    )
    return report.model_copy(update={"verdict": verdict_of_eval(report)})


def plan(request: EvalRequest, bundle: Bundle) -> tuple[BundleFacts, Workload]:
    """Which engines run, each compared with its hash, dense first.

    Raises:
        BundleError: a file has changed since the build.
        EnvironmentLacksError: this machine can run none of the engines.
        InputError: a value that makes no sense, or outputs that no figure of an evaluation can compare.
    """
    model, dense = bundle.manifest.model, bundle.manifest.dense
    if model.gives == "logits" and model.activation == "none":
        raise InputError(
            f"'{bundle.root}' gives values that are no probabilities (--activation none)",
            "answers or vectors, which agreement, KL and cosines are of",
            "compare the runner's logits yourself; parity with PyTorch is proved by build and verify",
        )
    _check_map_options(request, bundle)
    if request.recall_at and model.gives != "embedding":
        raise InputError(
            f"--recall-at with '{bundle.root}', which gives {NOUNS[model.gives]}", "embeddings", "leave --recall-at out"
        )
    asked = BenchRequest(
        bundle=bundle.root,
        keep_ratios=request.keep_ratios,
        variants=request.variants,
        all_variants=not request.keep_ratios and not request.variants,
        profile=request.profile,
        batches=() if request.batch is None else (request.batch,),
        threads=() if request.threads is None else (request.threads,),
    )
    planned = plan_bench(asked, bundle)
    entries = [entry.configuration for entry in planned.entries]
    variants = [bundle.variant(name=entry.variant) for entry in entries]
    reference = request.dense_profile
    if reference is not None and bundle.profile_name(reference) == planned.bundle.profile:
        reference = None
    if reference is not None:
        engine_of(bundle, dense, reference)  # which says why there is none
        bundle.verify_files(bundle.files_of_engine(dense, reference))
        variants.insert(0, dense)
    work = Workload(
        bundle=bundle,
        variants=tuple(variants),
        profile=planned.bundle.profile,
        batch=entries[0].batch,
        threads=entries[0].threads or 2,  # without a number the runtime works on a GPU, which two threads keep fed
        dense_profile=reference,
        cascade=_runs_cascade(request, bundle, planned.bundle.profile),
        threshold=THRESHOLD if request.threshold is None else request.threshold,
    )
    return planned.bundle, work


def _check_map_options(request: EvalRequest, bundle: Bundle) -> None:
    """
    Raises:
        InputError: what is asked of maps where there are none, or none of such a figure.
    """
    model = bundle.manifest.model
    for option, value, fits in (
        ("--max-error", request.max_error, True),
        ("--min-iou", request.min_iou, model.activation != "none"),
        ("--threshold", request.threshold, model.activation == "sigmoid"),
    ):
        if value is not None and not (model.gives == "maps" and fits):
            raise InputError(
                f"{option} {value:g} with '{bundle.root}', which gives {NOUNS[model.gives]} (activation"
                f" {model.activation})",
                "maps" if fits else "maps of classes, or of yes and no",
                f"leave {option} out",
            )


def _runs_cascade(request: EvalRequest, bundle: Bundle, profile: str) -> bool:
    """Whether the cascade runs; its files are then compared with their hashes."""
    asked, cascade = request.cascade, bundle.manifest.cascade
    if asked is None:
        asked = not request.keep_ratios and not request.variants
    if not asked or cascade is None or profile not in cascade.settings:
        return False
    files = {file for piece in cascade.pieces for file in bundle.files_of_engine(piece, profile)}
    bundle.verify_files(sorted({*files, WEIGHTS_FILE}))
    return True


def _answers(
    work: Workload,
    data: EvalData,
    request: EvalRequest,
    folder: Path,
    fresh: bool,
    progress: Progress,
    note: Note,
) -> ImageAnswers:
    """The answers to all images; what is kept already is not run again."""
    total = len(data.images)
    parts = [data.images[at : at + CHUNK] for at in range(0, total, CHUNK)]
    files = _files(work, parts, folder)
    found: dict[int, ImageAnswers] = {}
    for place, (part, file) in enumerate(zip(parts, files, strict=True)):
        kept = None if fresh else kept_answers(file, work.answers, len(work.rows), len(part))
        if kept is not None:
            found[place] = _accepted(kept, request)
    done = sum(map(len, found.values()))
    if done:
        note(f"kept from before: {done} of {total} images; --fresh runs all again")
    todo = [place for place in range(len(parts)) if place not in found]
    if todo:
        progress("loading engines", done, total)
        # Whatever happens here, engines are closed behind the last worker that uses them.
        with open_engines(work) as answer:

            def run(place: int) -> ImageAnswers:
                answers = answer([image.path for image in parts[place]])
                keep_answers(answers, files[place])
                return answers

            with closing(in_order(todo, run, work.threads)) as ran:
                for place, answers in ran:
                    found[place] = _accepted(answers, request)
                    done += len(answers)
                    progress("evaluating images", done, total)
    return joined([found[place] for place in range(len(parts))])


def _files(work: Workload, parts: Sequence[Sequence[LabelledImage]], folder: Path) -> list[Path]:
    """Where the answers to each part are kept: files that are named after all that decides what is in them."""
    manifest = work.bundle.manifest
    base = key_of(
        runtimes=runtime_versions(),
        engines=work.digests,
        preprocess=manifest.preprocess.model_dump(mode="json"),
        batch=work.batch,
        activation=manifest.model.activation,
        memory=work.memory,
        output=work.output,
        **({"threshold": work.threshold} if work.output == "maps" else {}),
    )
    files = []
    for part in parts:
        digest = hashlib.sha256(base.encode())
        for image in part:
            digest.update(f"\0{image.path.absolute()}\0{_stamp(image.path)}".encode(errors="surrogateescape"))
        files.append(folder / f"{digest.hexdigest()}.npz")
    return files


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from what it was before, without reading it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _accepted(answers: ImageAnswers, request: EvalRequest) -> ImageAnswers:
    """
    Raises:
        ImageError: the request is strict, and an image could not be read.
    """
    for problem in answers.problem[~answers.readable].tolist() if request.strict else ():
        given = str(problem).partition("; expected ")[0]
        raise ImageError(given, "images that can be read, as --strict asks", "repair or remove it")
    return answers


def _scores(work: Workload, answers: ImageAnswers, data: EvalData, request: EvalRequest) -> list[VariantScore]:
    """The figures of each variant; images that could not be read count nowhere.

    Raises:
        InputError: fewer images could be read than neighbours are asked for.
    """
    good = answers.readable
    images = [image for image, readable in zip(data.images, good.tolist(), strict=True) if readable]
    accepted = [image.accepted for image in images] if data.labelled else None
    names, answers = [data.name_of(image) for image in images], chosen(answers, good)
    rows = work.rows
    found: list[tuple[Recall, ...]] = [()] * len(rows)
    if isinstance(answers, VectorAnswers) and work.output == "embedding":
        counts = recall_counts(request.recall_at, len(images))
        found = recalls(answers.vectors, accepted, counts, request.seed)
    scores = []
    for position, (stages, digest) in enumerate(zip(rows, work.digests, strict=True)):
        top1, top5, against, like, maps = None, None, None, None, None
        if isinstance(answers, ClassAnswers):
            top1, top5, against = _of_classes(answers, position, names, accepted, work, request.seed)
        elif isinstance(answers, VectorAnswers) and position:
            like = likeness(answers, position, names, request.seed)
        elif isinstance(answers, MapAnswers) and position:
            maps = map_nearness(answers, position, names, request.seed)
        scores.append(
            VariantScore(
                **_row(work, stages, answers),
                profile=None if position else work.dense_profile,
                engine_sha256=digest,
                top1=top1,
                top5=top5,
                against_dense=against,
                likeness=like,
                maps=maps,
                recalls=found[position],
                cascade=cascade_score(work, answers, names) if len(stages) > 1 else None,
            )
        )
    return scores


def _row(work: Workload, stages: Sequence[VariantRecord], answers: ImageAnswers) -> dict[str, Any]:
    """What a row is: a variant, or the cascade."""
    if len(stages) > 1:
        return {"variant": CASCADE, "keep_ratio": None, "method": CASCADE, "gmacs": mean_gmacs_of(work, answers)}
    variant = stages[0]
    method = variant.schedule.method if variant.plan.layers else "dense"
    return {"variant": variant.name, "keep_ratio": variant.keep_ratio, "method": method, "gmacs": variant.gmacs}


def _of_classes(
    answers: ClassAnswers,
    position: int,
    images: Sequence[str],
    accepted: Sequence[frozenset[int]] | None,
    work: Workload,
    seed: int,
) -> tuple[Share | None, Share | None, AgainstDense | None]:
    """Top-1, top-5, and how far a variant is from dense, as far as there are such figures."""
    names, best = class_names(work.bundle), answers.best[position]
    top1 = None if accepted is None else share(hits(best[:, :1], accepted))
    many = work.bundle.manifest.model.architecture.num_classes > best.shape[1]
    top5 = share(hits(best, accepted)) if accepted is not None and many else None
    against = against_dense(answers, position, images, accepted, names, seed) if position else None
    return top1, top5, against
