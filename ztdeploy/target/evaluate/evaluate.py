"""What pruning costs, on images and by the engines themselves: `evaluate` is the job on one screen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ztdeploy.core import arguments
from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.cache import cache_folder, key_of
from ztdeploy.core.errors import ImageError, InputError
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.preprocess_spec import NOUNS
from ztdeploy.core.progress import Note, Pace, Progress, silent
from ztdeploy.target.evaluate.answers import (
    Answers,
    ClassAnswers,
    VectorAnswers,
    chosen,
    joined,
    keep_answers,
    kept_answers,
)
from ztdeploy.target.evaluate.data import EvalData, limited, read_data, without_labels
from ztdeploy.target.evaluate.data_facts import data_facts
from ztdeploy.target.evaluate.engines import Engines, Workload, in_order
from ztdeploy.target.evaluate.eval_report import DataFacts, EvalReport, EvalRequest, VariantScore
from ztdeploy.target.evaluate.labels import LabelledImage
from ztdeploy.target.evaluate.scoring import against_dense, hits, share
from ztdeploy.target.evaluate.vector_scoring import Finder, likeness, recall_counts
from ztdeploy.target.measure.bench_report import BenchRequest, BundleFacts
from ztdeploy.target.measure.plan import plan_bench
from ztdeploy.target.runtime.runner import class_names, engine_of

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
        BundleError: damaged, or without such a variant or profile.
        ImageError: no images, labels that do not fit the model, or, if strict, an image that cannot be read.
        InputError: a value that makes no sense.
        ParityError: an engine gives something else than numbers.
        OutputError: the cache cannot be written.
    """
    bundle = read_bundle(request.bundle)
    facts, work = plan(request, bundle)
    bundle.verify_files([name for name in (bundle.manifest.class_names,) if name is not None])
    outputs = bundle.manifest.model.architecture.num_classes
    classes = outputs if work.output == "logits" and outputs > 1 else None  # of one output, folders may be no and yes
    data = read_data(request.data, class_names(bundle), classes, bundle.manifest.preprocess.channels)
    if work.output == "logits" and classes is None and data.labelled:
        note("the model has one output: labels are not counted, all figures are against dense")
        data = without_labels(data)
    taken = limited(data, request.limit, request.seed)
    recall_counts(request.recall_at, len(taken.images))
    parts = Parts(work, taken, cache_folder(cache) / "evaluations")
    answers = _answers(parts, request, fresh=fresh, progress=progress, note=note)
    found = data_facts(data, taken, [one.tobytes() for one in answers.content], answers.problem.tolist())
    return report_of(request, facts, work, found, taken, answers)


def evaluate(
    bundle: str | Path,
    data: str | Path,
    *,
    keep_ratios: Sequence[float] = (),
    variants: Sequence[str] = (),
    profile: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    threads: int | None = None,
    strict: bool = False,
    recall_at: Sequence[int] = (),
    cache: str | Path | None = None,
    fresh: bool = False,
) -> EvalReport:
    """Evaluate the engines of a bundle on images; the bundle is not changed. See `EvalRequest` and `evaluate_bundle`.

    Example:
        report = ztdeploy.evaluate("deit_s-cpu", "imagenet/val", limit=5000)
        for score in report.variants:
            print(score.variant, score.top1)

    Raises:
        ZtdeployError: see `evaluate_bundle`.
    """
    request = EvalRequest(
        bundle=arguments.folder("bundle", bundle),
        data=arguments.folder("data", data),
        limit=None if limit is None else arguments.whole_number("limit", limit, arguments.IMAGES),
        seed=arguments.whole_number("seed", seed, arguments.SEED),
        keep_ratios=tuple(arguments.number("keep_ratios", ratio) for ratio in keep_ratios),
        variants=tuple(arguments.text("variants", name) for name in variants),
        profile=None if profile is None else arguments.text("profile", profile),
        batch=None if batch is None else arguments.whole_number("batch", batch, arguments.BATCH),
        threads=None if threads is None else arguments.threads(threads),
        strict=strict,
        recall_at=tuple(arguments.whole_number("recall_at", count, arguments.IMAGES) for count in recall_at),
    )
    return evaluate_bundle(request, cache=None if cache is None else arguments.folder("cache", cache), fresh=fresh)


def plan(request: EvalRequest, bundle: Bundle) -> tuple[BundleFacts, Workload]:
    """Which engines run, each compared with its hash, dense first.

    Raises:
        BundleError: no such variant or profile, no engine, or a file that has changed.
        EnvironmentLacksError: this machine can run none of the engines.
        InputError: a value that makes no sense.
    """
    _check_comparable(bundle)
    given = bundle.manifest.model.gives
    if request.recall_at and given != "embedding":
        raise InputError(
            f"--recall-at with '{bundle.root}', which gives {NOUNS[given]}", "embeddings", "leave --recall-at out"
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
    other = _other_dense(request.dense_profile, bundle, planned.bundle.profile)
    # Without a number of threads the runtime works on a GPU, and two threads keep it fed.
    work = Workload(
        bundle=bundle,
        variants=(*((bundle.manifest.dense.name,) if other else ()), *(entry.variant for entry in entries)),
        profile=planned.bundle.profile,
        batch=entries[0].batch,
        threads=entries[0].threads or 2,
        dense_profile=other,
    )
    return planned.bundle, work


def _other_dense(wanted: str | None, bundle: Bundle, profile: str) -> str | None:
    """The other profile whose dense engine is the reference, compared with its hash; None where there is none.

    Raises:
        BundleError: no such profile or engine, or a file that has changed.
    """
    if wanted is None or bundle.profile_name(wanted) == profile:
        return None
    engine_of(bundle, bundle.manifest.dense, wanted)  # which says why there is none
    bundle.verify_files(bundle.files_of_engine(bundle.manifest.dense, wanted))
    return wanted


def _check_comparable(bundle: Bundle) -> None:
    """
    Raises:
        InputError: what the model gives can be compared by no figure of an evaluation.
    """
    model = bundle.manifest.model
    if model.gives == "logits" and model.activation == "none":
        raise InputError(
            f"'{bundle.root}' gives values that are no probabilities (--activation none)",
            "answers or vectors, which agreement, KL and cosines are of",
            "compare the runner's logits yourself; parity with PyTorch is proved by build and verify",
        )


@dataclass(frozen=True)
class Parts:
    """The images of an evaluation, a few at a time, and where what is known of them is kept."""

    work: Workload
    data: EvalData
    folder: Path

    def __len__(self) -> int:
        return -(-len(self.data.images) // CHUNK)

    def images(self, part: int) -> tuple[LabelledImage, ...]:
        return self.data.images[part * CHUNK : (part + 1) * CHUNK]

    def files(self) -> list[Path]:
        """One per part, named after all that decides what is in it."""
        base = key_of(
            engines=[engine_digest(self.work, position) for position in range(len(self.work.variants))],
            preprocess=self.work.bundle.manifest.preprocess.model_dump(mode="json"),
            batch=self.work.batch,
            activation=self.work.bundle.manifest.model.activation,
            memory=self.work.memory,
            output=self.work.output,
        )
        return [self.folder / f"{self._key(base, part)}.npz" for part in range(len(self))]

    def _key(self, base: str, part: int) -> str:
        digest = hashlib.sha256(base.encode())
        for image in self.images(part):
            digest.update(f"\0{image.path.absolute()}\0{_stamp(image.path)}".encode(errors="surrogateescape"))
        return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from what it was before, without reading it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def engine_digest(work: Workload, position: int) -> str:
    """What tells an engine of a workload from all others."""
    variant = work.bundle.variant(name=work.variants[position])
    return work.bundle.engine_digest(engine_of(work.bundle, variant, work.profile_of(position)))


def _answers(parts: Parts, request: EvalRequest, *, fresh: bool, progress: Progress, note: Note) -> Answers:
    """Of all images; what is kept already is not run again."""
    files, total, variants = parts.files(), len(parts.data.images), len(parts.work.variants)
    kind = parts.work.answers
    found: dict[int, Answers] = {}
    for part, file in enumerate(files):
        kept = None if fresh else kept_answers(file, kind, variants, len(parts.images(part)))
        if kept is not None:
            _check_readable(parts, part, kept, request)
            found[part] = kept
    before = sum(map(len, found.values()))
    if before:
        note(f"kept from before: {before} of {total} images; --fresh runs all again")
    todo = [part for part in range(len(parts)) if part not in found]
    if not todo:
        return joined([found[part] for part in range(len(parts))])
    progress("loading engines", before, total)
    # Whatever happens here, engines are closed behind the last worker that uses them.
    with Engines(parts.work) as engines, ExitStack() as stack:

        def work(part: int) -> Answers:
            answers = engines.answer([image.path for image in parts.images(part)])
            keep_answers(answers, files[part])
            return answers

        pace, done, told = Pace(), before, -1
        for part, answers in stack.enter_context(closing(in_order(todo, work, parts.work.threads))):
            _check_readable(parts, part, answers, request)
            found[part] = answers
            done += len(answers)
            if (tenth := 10 * done // total) != told:  # a line each, where nobody watches a bar
                told = tenth
                progress(f"evaluating images{pace.left(done - before, total - done)}", done, total)
    return joined([found[part] for part in range(len(parts))])


def _check_readable(parts: Parts, part: int, answers: Answers, request: EvalRequest) -> None:
    if request.strict:
        for problem in answers.problem[~answers.readable].tolist():
            given = str(problem).partition("; expected ")[0]
            raise ImageError(given, "images that can be read, as --strict asks", "repair or remove it")


def report_of(
    request: EvalRequest, facts: BundleFacts, work: Workload, data: DataFacts, taken: EvalData, answers: Answers
) -> EvalReport:
    """The report of images that were answered; those that could not be read count nowhere."""
    good = answers.readable
    images = [image for image, readable in zip(taken.images, good.tolist(), strict=True) if readable]
    scorer = _Scorer(work, chosen(answers, good), taken, images, request)
    return EvalReport(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        request=request,
        bundle=facts,
        output=work.output,
        activation=work.bundle.manifest.model.activation,
        grid=work.bundle.manifest.model.architecture.rows_and_columns,
        data=data,
        variants=tuple(map(scorer.score, range(len(work.variants)))),
    )


class _Scorer:
    """One variant after the other."""

    def __init__(
        self, work: Workload, answers: Answers, data: EvalData, images: Sequence[LabelledImage], request: EvalRequest
    ) -> None:
        self._work, self._answers, self._seed = work, answers, request.seed
        self._accepted = [image.accepted for image in images] if data.labelled else None
        self._images = [data.name_of(image) for image in images]
        self._names = class_names(work.bundle)
        self._finder: Finder | None = None
        if isinstance(answers, VectorAnswers) and work.output == "embedding":
            counts = recall_counts(request.recall_at, len(images))
            self._finder = Finder(answers.vectors, self._accepted, counts, request.seed)

    def score(self, position: int) -> VariantScore:
        """
        Raises:
            InputError: fewer images could be read than neighbours are asked for.
        """
        name = self._work.variants[position]
        record: VariantRecord = self._work.bundle.variant(name=name)
        common = VariantScore(
            variant=name,
            profile=None if position else self._work.dense_profile,
            keep_ratio=record.keep_ratio,
            method=record.schedule.method if record.plan.layers else "dense",
            gmacs=record.gmacs,
            engine_sha256=engine_digest(self._work, position),
            top1=None,
            top5=None,
            against_dense=None,
        )
        if isinstance(self._answers, ClassAnswers):
            return common.model_copy(update=self._of_classes(self._answers, position))
        assert isinstance(self._answers, VectorAnswers)
        found = likeness(self._answers, position, self._images, self._seed) if position else None
        recalls = self._finder.recalls(position) if self._finder is not None else ()
        return common.model_copy(update={"likeness": found, "recalls": recalls})

    def _of_classes(self, answers: ClassAnswers, position: int) -> dict[str, object]:
        best, accepted = answers.best[position], self._accepted
        many = self._work.bundle.manifest.model.architecture.num_classes > best.shape[1]
        return {
            "top1": None if accepted is None else share(hits(best[:, :1], accepted)),
            "top5": share(hits(best, accepted)) if accepted is not None and many else None,
            "against_dense": against_dense(answers, position, self._images, accepted, self._name_of, self._seed)
            if position
            else None,
        }

    def _name_of(self, index: int) -> str:
        return self._names[index] if self._names else f"class {index}"
