"""`ztdeploy.build`, `evaluate`, `bench` and `tune`: the verbs in Python, with the defaults of the command line.

Each makes the same request as the command line and runs it. `load` is in
`target/runtime/runner.py`, `prune` in `host/finetune.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError

from ztdeploy.core import arguments
from ztdeploy.core.arguments import MIN_AGREEMENT
from ztdeploy.core.bundle import Bundle
from ztdeploy.core.data import first_error
from ztdeploy.core.errors import InputError, ZtdeployError
from ztdeploy.core.manifest import GateLimits, WeightsSource
from ztdeploy.core.methods import DEFAULT_METHOD
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import Activation, ImageSize, Output, PreprocessOptions
from ztdeploy.core.profile import HardwareProfile, schedule_path
from ztdeploy.core.progress import Progress, silent
from ztdeploy.core.schedule import PruningSchedule, read_schedule
from ztdeploy.core.signature import AnyKeys, demanding
from ztdeploy.jobs.request import BuildRequest, cascade_goal, default_folder, gate_of
from ztdeploy.report.tune.records import TUNABLE, Budget, SamplerName, SearchName, TuneReport, TuneRequest
from ztdeploy.target.evaluate.eval_report import EvalReport, EvalRequest
from ztdeploy.target.measure.bench_report import BenchReport, BenchRequest

if TYPE_CHECKING:
    from torch import nn

_Value = TypeVar("_Value")
_Record = TypeVar("_Record", bound=BaseModel)

#: An option of the command line in an error's words, with what it takes where that is in capitals.
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*)(?:[ =]([A-Z][A-Z|]*)\b)?")
AnyPath: TypeAlias = str | PathLike[str]
#: One value, or several.
Some: TypeAlias = _Value | Sequence[_Value]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@contextmanager
def _in_python() -> Iterator[None]:
    """Errors speak of arguments: "give --calib DIR" becomes "give calib=DIR". Whole commands stay as they are."""

    def python(text: str) -> str:
        return text if "ztdeploy " in text else _OPTION.sub(argument, text)

    def argument(match: re.Match[str]) -> str:
        name, value = match[1].replace("-", "_"), match[2] or ("True" if match[1] == "force" else "")
        return f"{name}={value}" if value else name

    try:
        yield
    except ZtdeployError as error:
        error.given, error.expected, error.fix = map(python, (error.given, error.expected, error.fix))
        error.args = (f"{error.given}; expected {error.expected}; {error.fix}",)
        raise


@_in_python()
def build(
    model: AnyPath | nn.Module,
    *,
    keep_ratio: Some[float] | None = None,
    profile: Some[AnyPath | HardwareProfile] | None = None,
    method: Some[str] | None = None,
    schedule: Some[AnyPath | PruningSchedule] | None = None,
    out: AnyPath | None = None,
    calib: AnyPath | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    max_kl: float | None = None,
    min_cosine: float | None = None,
    max_error: float | None = None,
    min_iou: float | None = None,
    cascade: float | None = None,
    cascade_max_rerun: float | None = None,
    cascade_min_cosine: float | None = None,
    weights: WeightsSource = "pretrained",
    checkpoint: AnyPath | None = None,
    image_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: Interpolation | None = None,
    crop_pct: float | None = None,
    crop_mode: Literal["center", "squash"] | None = None,
    bit_depth: int | None = None,
    class_names: AnyPath | Sequence[str] | None = None,
    output: Output = "logits",
    activation: Activation | None = None,
    text_head: AnyPath | None = None,
    preset: Literal["default", "paper"] = "default",
    precision: Literal["auto"] | None = None,
    batch: int | None = None,
    force: bool = False,
    backbone: str | None = None,
    example: Any = None,
    progress: Progress | None = None,
) -> Bundle:
    """Build a bundle: prune a model, export it, build engines, and prove that they compute what PyTorch does.

        bundle = ztdeploy.build("deit_s", keep_ratio=0.8)
        runner = ztdeploy.load(bundle)
        runner("photo.jpg")

    Args:
        model: a short name ("deit_s"), any name that timm knows, `hf-hub:OWNER/NAME`; the path of a folder with weights
            and a config.json; or a module: timm's, or one of your own that hands its images to a timm model and does
            something with the model's output, such as a head; or that gives maps, `[B, C, h, w]` or `[B, h, w]`. A
            module is copied and stays as it is.
        keep_ratio: the share of patch tokens that each pruning layer keeps, in (0, 1]; one, or several for as many
            variants. By default the profile's ratios. The bundle always holds the baseline too.
        profile: the target: names of shipped profiles, paths of TOML files, or profiles. By default this machine's.
        method: pruning methods, each at every keep ratio. By default novelty-merge.
        schedule: schedules, their files, or names of shipped ones, instead of keep ratios.
        out: the folder to write. By default MODEL-PROFILE in the current folder.
        calib: images (a folder, a folder per class, or a labels.json) that judge pruned variants, and set int8 ranges.
        max_drop: points of top-1 that pruning may cost on `calib`, from 0 to 100.
        min_agreement: share of `calib` that must get the baseline's answer, from 0 to 1.
        max_kl: highest mean KL divergence from the baseline on `calib`, in nats.
        min_cosine: lowest mean cosine to the baseline's embeddings or features on `calib`.
        max_error: highest mean error of maps on `calib`: of probabilities, or of values as a share of their range.
        min_iou: lowest mean intersection over union with the baseline's maps on `calib`.
        cascade: build a cascade that agrees with the baseline on this share of images, below 1; its thresholds are
            chosen on `calib`, which needs no labels for this.
        cascade_max_rerun: instead, the share of images that may go on from the first stage of the cascade.
        cascade_min_cosine: from this cosine on, embeddings or features agree. By default 0.95.
        weights: "random" weights serve to measure latency only.
        checkpoint: weights of your own: a .safetensors, .pth or .ckpt file, an index of shards, or a folder.
        image_size: side of the input in pixels, or `(height, width)`. By default the model's.
        mean: of each channel, from 0 to 1. By default the model's; so are the next four.
        std: of each channel, above 0.
        interpolation: how images are resized.
        crop_pct: image size over the size that images are resized to.
        crop_mode: cut the centre out, or squash the image.
        bit_depth: bits of the values of 16-bit images, from 9 to 16. By default 16.
        class_names: the names of the classes, a file of them, or "imagenet".
        output: what the engines give; "features" are the tokens of all patches.
        activation: what logits mean. By default softmax; of one output sigmoid.
        text_head: a .safetensors file of text embeddings that an image tower's logits shall come from.
        preset: where the layers of a keep ratio stand.
        precision: "auto" ships the fastest of the profile's precisions that costs little on `calib`.
        batch: fixes the batch of every graph. By default as the profile says.
        force: replace an existing bundle.
        backbone: the path in a module of your own of what is pruned, such as "encoder.vit": a timm model, or a tower of
            transformers. The whole module is deployed, and finds a token for every place of the image wherever it reads
            tokens of the backbone. By default the only one in a module that gives maps.
        example: images that such a module takes, `[B, C, H, W]`; only their size counts, as `image_size` does.
        progress: called ahead of each step with its name, how much is done, and of how much; `print` will do.

    Returns:
        The bundle. A profile that could not be built while others could is in `bundle.manifest.failed`.

    Raises:
        AccuracyError: no pruned variant stays within the limits on `calib`.
        CheckpointError: the weights are unusable or do not fit.
        InputError: an argument of another type, or out of range. Its subclasses are:
        ModelError: an unknown model, or one that cannot be pruned soundly, with the reason.
        ProfileError, ScheduleError: unknown, or not well-formed.
        OutputError: `out` exists, or cannot be written. Nothing is left behind there.
        MissingExtraError: PyTorch, timm or ONNX is not installed; says what to install.
        WeightsUnavailableError: the model hub cannot be reached and nothing is cached.
    """
    arguments_given = locals()
    name, module = _model(model, weights, checkpoint)
    if example is not None:
        arguments_given["image_size"] = _size_of(example, image_size)
    source = _source(name, arguments_given)
    profiles = tuple(one if isinstance(one, HardwareProfile) else str(one) for one in _several(profile))
    if not profiles:
        from ztdeploy.target.machine_profile import profile_for_this_machine

        profiles = (profile_for_this_machine().name,)
    goal = {"agreement": cascade, "max_rerun": cascade_max_rerun, "min_cosine": cascade_min_cosine}
    limits = {name: arguments_given[name] for name in GateLimits.model_fields}
    request = BuildRequest(
        model=source,
        module=module,
        backbone=_backbone(backbone, module),
        profiles=profiles,
        out=_path("out", out) or default_folder(name, profiles),
        keep_ratios=_ratios(keep_ratio),
        schedules=tuple(map(_schedule, _several(schedule))),
        methods=_texts("method", method) or (DEFAULT_METHOD,),
        preset=arguments.one_of("preset", preset, ("default", "paper")),
        batch=None if batch is None else arguments.whole_number("batch", batch, arguments.BATCH),
        gate=gate_of(_path("calib", calib), **_numbers(limits)),
        cascade=cascade_goal(**_numbers(goal)),
        force=force,
    )
    if precision is not None:
        arguments.one_of("precision", precision, ("auto",))
    if precision == "auto":
        from ztdeploy.jobs.auto_precision import build_fastest

        return build_fastest(request, progress or silent)
    from ztdeploy.jobs.build import build as build_bundle

    return build_bundle(request, progress or silent)


@_in_python()
def evaluate(
    bundle: AnyPath | Bundle,
    data: AnyPath,
    *,
    keep_ratio: Some[float] | None = None,
    variant: Some[str] | None = None,
    profile: str | None = None,
    against: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    threads: int | None = None,
    signed_by: AnyKeys | None = None,
    strict: bool = False,
    recall_at: Some[int] | None = None,
    min_agreement: float = MIN_AGREEMENT,
    max_error: float | None = None,
    min_iou: float | None = None,
    threshold: float | None = None,
    record: bool = False,
    cache: AnyPath | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> EvalReport:
    """Run a bundle's engines on images: accuracy, and how far each variant is from the baseline. Needs no PyTorch.

        report = ztdeploy.evaluate("deit_s-cpu", "photos", limit=500)
        print(report.verdict.sentence)
        for score in report.variants[1:]:
            print(score.variant, score.against_dense.agreement.value)

    Results are cached as they come: after an interruption, the same call goes on.

    Args:
        bundle: what `build` returned, or the folder that it wrote.
        data: a labels.json, a folder per class, or a folder of images without labels.
        keep_ratio: which variants. By default all, and the cascade of a bundle that has one; always the baseline.
        variant: names of variants, instead of keep ratios.
        profile: run the engines of this profile. By default the first that runs here.
        against: compare with the baseline of this profile. By default the same one's.
        limit: use at most so many images, equally many of every class.
        seed: decides which images a limit takes, and the bootstrap of intervals.
        batch: images per call. By default the profile's smallest.
        threads: by default what the process may use.
        signed_by: public keys, one of which must have signed the bundle; see `load`. While this runs, the whole process
            opens nothing else.
        strict: an unreadable image is an error. By default it is left out.
        recall_at: how many nearest images to look at, for embeddings. By default 1, 5 and 10.
        min_agreement: least share of images with the baseline's answer, or mean cosine to it, for `report.verdict`.
        max_error: of maps instead, the highest mean error: of probabilities, or of values as a share of their range.
        min_iou: of maps instead, the lowest mean intersection over union with the baseline's.
        threshold: probability above which a position of a map is a yes. By default 0.5.
        record: write the figures into the bundle's manifest, which the command line does by default.
        cache: folder for results that later runs reuse. By default $ZTDEPLOY_CACHE or ~/.cache/ztdeploy.
        fresh: ignore cached results.
        progress: called with what is being done, the images done, and all images; `print` will do.

    Raises:
        BundleError: damaged, or without such a variant or profile.
        ImageError: no images, labels that do not fit the model, or, if strict, an image that cannot be read.
        InputError: an argument of another type, or out of range.
        ParityError: an engine gives something else than numbers.
    """
    from ztdeploy.target.evaluate.evaluate import evaluate_bundle
    from ztdeploy.target.evaluate.record import check_recordable
    from ztdeploy.target.evaluate.record import record as write_record

    request = EvalRequest(
        bundle=arguments.folder("bundle", bundle),
        data=arguments.folder("data", data),
        limit=None if limit is None else arguments.whole_number("limit", limit, arguments.IMAGES),
        seed=arguments.whole_number("seed", seed, arguments.SEED),
        keep_ratios=_ratios(keep_ratio),
        variants=_texts("variant", variant),
        profile=None if profile is None else arguments.text("profile", profile),
        dense_profile=None if against is None else arguments.text("against", against),
        batch=None if batch is None else arguments.whole_number("batch", batch, arguments.BATCH),
        threads=None if threads is None else arguments.threads(threads),
        strict=strict,
        recall_at=_counts("recall_at", recall_at, arguments.IMAGES),
        min_agreement=arguments.number_in("min_agreement", min_agreement, arguments.SHARE),
        max_error=_number_in("max_error", max_error, arguments.PERCENT),
        min_iou=_number_in("min_iou", min_iou, arguments.SHARE),
        threshold=_number_in("threshold", threshold, arguments.SHARE),
    )
    if record:
        check_recordable(request.bundle)
    with demanding(signed_by):
        report = evaluate_bundle(request, cache=_path("cache", cache), fresh=fresh, progress=progress or silent)
        if record:
            write_record(report, request.bundle, lambda: None)
    return report


@_in_python()
def bench(
    bundle: AnyPath | Bundle,
    *,
    keep_ratio: Some[float] | Literal["all"] | None = None,
    variant: Some[str] | None = None,
    profile: str | None = None,
    batch: Some[int] | None = None,
    threads: Some[int] | None = None,
    signed_by: AnyKeys | None = None,
    warmup: float = 1.0,
    duration: float | None = None,
    iterations: int | None = None,
    rounds: int = 10,
    min_agreement: float = MIN_AGREEMENT,
    cascade: bool = False,
    data: AnyPath | None = None,
    reference: bool = True,
    governor: bool = False,
    latency_ms: float | None = None,
    load: AnyPath | None = None,
    min_fidelity: float | None = None,
    out: AnyPath | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure latency, throughput, cold start and memory, compared with the baseline. Needs no PyTorch.

        report = ztdeploy.bench("deit_s-cpu", keep_ratio=0.7, duration=5)
        print(report)
        print(report.comparisons[0].speedup)

    Every configuration runs in a process of its own; the processes take turns, in rounds. After Ctrl-C the report
    holds the rounds so far.

    Args:
        bundle: what `build` returned, or the folder that it wrote.
        keep_ratio: which variants, or "all". By default the first that was built.
        variant: names of variants, instead of keep ratios.
        profile: run the engines of this profile. By default the first that runs here.
        batch: images per call. By default the profile's smallest.
        threads: by default what the process may use.
        signed_by: public keys, one of which must have signed the bundle; see `load`. While this runs, the whole process
            opens nothing else.
        warmup: seconds of each configuration before the first round.
        duration: seconds of each configuration over all rounds. By default 10.
        iterations: calls of each configuration over all rounds, instead of a duration.
        rounds: how often configurations take turns.
        min_agreement: least share of answers, or mean cosine, for a recommendation, where variants were evaluated.
        cascade: measure the bundle's cascade as well, on images, since its latency depends on them.
        data: images for the cascade.
        reference: measure the baseline as well, at the same batch and threads.
        governor: replay a load with a governor and with static variants instead; `report.replay` has what came out.
        latency_ms: the p95 latency that the governor holds, in milliseconds.
        load: the file of a load, or a shipped load's name. By default one core is busy for half of the time.
        min_fidelity: leave out variants whose recorded evaluation is below it.
        out: a JSON file, written after every round.
        progress: called ahead of each step with its name, how much is done, and of how much; `print` will do.

    Raises:
        BundleError: damaged, or without such a variant or profile.
        EnvironmentLacksError: this machine can run none of the engines.
        InputError: an argument of another type, or out of range.
        OutputError: `out` exists and is no such report, or cannot be written.
    """
    from ztdeploy.target.measure.bench import run_bench
    from ztdeploy.target.measure.bench_report import check_report_path, write_report

    every, file = keep_ratio == "all", _path("out", out)
    request = BenchRequest(
        bundle=arguments.folder("bundle", bundle),
        keep_ratios=() if every else _ratios(cast("Some[float] | None", keep_ratio)),
        variants=_texts("variant", variant),
        all_variants=every,
        profile=None if profile is None else arguments.text("profile", profile),
        batches=_counts("batch", batch, arguments.BATCH),
        threads=_counts("threads", threads, arguments.THREADS),
        warmup_s=arguments.number_in("warmup", warmup, arguments.SECONDS),
        duration_s=_number_in("duration", duration, arguments.SECONDS),
        iterations=None if iterations is None else arguments.whole_number("iterations", iterations, arguments.CALLS),
        rounds=arguments.whole_number("rounds", rounds, arguments.ROUNDS),
        reference=reference,
        cascade=cascade,
        data=None if data is None else arguments.folder("data", data),
        min_agreement=arguments.number_in("min_agreement", min_agreement, arguments.SHARE),
        governor=governor,
        latency_ms=_number_in("latency_ms", latency_ms, arguments.MILLISECONDS),
        load=_path("load", load),
        min_fidelity=_number_in("min_fidelity", min_fidelity, arguments.SHARE),
    )
    if file is not None:
        check_report_path(file)

    def save(report: BenchReport) -> None:
        if file is not None:
            write_report(report, file)

    with demanding(signed_by):
        report = run_bench(request, progress=progress or silent, save=save)
    save(report)
    return report


@_in_python()
def tune(
    model: AnyPath,
    data: AnyPath,
    *,
    budget: str | Budget | None = None,
    cascade: float | None = None,
    profile: str | None = None,
    method: Some[str] | None = None,
    out: AnyPath | None = None,
    search: SearchName = "curves",
    trials: int = 100,
    sampler: SamplerName | None = None,
    workers: int = 1,
    storage: str | None = None,
    study: str = "tune",
    max_drop: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    weights: WeightsSource = "pretrained",
    checkpoint: AnyPath | None = None,
    image_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: Interpolation | None = None,
    crop_pct: float | None = None,
    crop_mode: Literal["center", "squash"] | None = None,
    cache: AnyPath | None = None,
    progress: Progress | None = None,
) -> TuneReport:
    """Search for the schedule nearest to the baseline under a budget of compute or time.

        report = ztdeploy.tune("deit_s", "photos", budget="reduction=0.35", trials=50)
        bundle = ztdeploy.build("deit_s", schedule=report.winner.tuned.schedule)

    An interrupted search goes on with the same call. The folder `out` gets the report, its page, and the schedules.

    Args:
        model: a name or a folder, as for `build`; no module, since a search starts processes that load the model anew.
        data: images, as for `evaluate`; one half is searched on, the other reported on.
        budget: `gmacs=G`, `reduction=SHARE`, `latency_ms=T` or `speedup=X`. By default the whole front is searched.
        cascade: instead, search for the first stage of the cheapest cascade that agrees with the baseline so often.
        profile: whose engines a budget in time is measured with.
        method: pruning methods to search. By default novelty-merge.
        out: the folder to write. By default MODEL-tuning in the current folder.
        search: "curves" searches where layers stand, and the method's options; "counts" a count for each block.
        trials: of the whole study, those of an interrupted search included.
        sampler: by default "tpe" with a budget, and "nsga2" without.
        workers: processes that make trials at the same time.
        storage: URL of a database that several machines can share. By default a file in `out`.
        study: the study's name in the storage.
        max_drop: points of top-1 that may be lost on the images of the search.
        limit: use at most so many images, equally many of every class.
        seed: decides what is random.
        weights: "random" weights make a search pointless.
        checkpoint: weights of your own, as for `build`.
        image_size: as for `build`.
        mean: as for `build`.
        std: as for `build`.
        interpolation: as for `build`.
        crop_pct: as for `build`.
        crop_mode: as for `build`.
        cache: folder for results that later runs reuse. By default $ZTDEPLOY_CACHE or ~/.cache/ztdeploy.
        progress: called with what is being done, the trials done, and all trials; `print` will do.

    Raises:
        AccuracyError: no trial keeps `max_drop`.
        ImageError: no images, too few, or labels that do not fit the model.
        InputError: an argument of another type or out of range, or a budget that nothing can keep.
        MissingExtraError: Optuna or the host half is not installed; says what to install.
        ModelError: an unknown model, or one that cannot be pruned or has no classifier.
    """
    arguments_given = locals()
    from ztdeploy.jobs.tune import tune_into
    from ztdeploy.jobs.tune.request import parse_budget

    name, module = _model(model, weights, checkpoint)
    if module is not None:
        given = f"a module of class {type(module).__name__}, which the processes of a search cannot load"
        raise InputError(given, "a name or the path of a folder", "write it to a folder with timm.models.save_for_hf")
    request = _record(
        TuneRequest,
        model=_source(name, arguments_given),
        data=arguments.folder("data", data),
        budget=parse_budget(budget) if isinstance(budget, str) else budget,
        profile=profile,
        methods=_texts("method", method) or TUNABLE[:1],
        search=search,
        trials=trials,
        sampler=sampler,
        workers=workers,
        storage=storage,
        study=study,
        max_drop=max_drop,
        limit=limit,
        seed=seed,
        cascade=cascade,
    )
    folder = _path("out", out) or default_folder(name, ("tuning",))
    return tune_into(request, folder, cache=_path("cache", cache), progress=progress or silent)[0]


# -------------------- arguments


def _model(model: object, weights: str, checkpoint: object) -> tuple[str, nn.Module | None]:
    """The model's name in a request, and the module, if the model is one.

    Raises:
        InputError: it is none of a name, a path and a module; or a module with other weights beside it.
    """
    if isinstance(model, str | PathLike):
        path = Path(model)
        if path.is_file():
            fix = f"give a name and checkpoint={arguments.shown(str(path))}"
            raise InputError(f"model = {arguments.shown(str(path))}, which is a file", "a name or a folder", fix)
        return (f"local-dir:{path}" if _is_place(model, path) else str(model)), None
    if not hasattr(model, "named_modules"):
        expected = "a name, the path of a folder, or a torch.nn.Module"
        raise InputError(f"model = {arguments.shown(model)}", expected, "give one of these")
    name = type(model).__name__
    if checkpoint is not None or weights != "pretrained":
        given = f"a module of class {name}, and {'checkpoint' if checkpoint is not None else 'weights'} beside it"
        raise InputError(given, "the weights that are in the module", "load them into the module first")
    return str((getattr(model, "pretrained_cfg", None) or {}).get("architecture") or name), cast("nn.Module", model)


def _backbone(given: str | None, module: nn.Module | None) -> str | None:
    """
    Raises:
        InputError: it is no path, or there is no module that it could be in.
    """
    if given is not None and module is None:
        raise InputError(f"backbone = {arguments.shown(given)} without a module", "a torch.nn.Module", "leave it out")
    return None if given is None else arguments.text("backbone", given)


def _size_of(example: Any, asked: object) -> tuple[int, int]:
    """The size of images `[B, C, H, W]`.

    Raises:
        InputError: something else, or another size than that asked for.
    """
    shape = tuple(getattr(example, "shape", ()))
    if len(shape) != 4:
        given = f"example of {f'shape {list(shape)}' if shape else f'type {type(example).__name__}'}"
        raise InputError(given, "a tensor of images [B, C, H, W]", "give for instance torch.randn(1, 3, 224, 224)")
    size = (int(shape[2]), int(shape[3]))
    if asked is not None and _image_size(asked) != size:  # type: ignore[arg-type]
        given = f"image_size = {arguments.shown(asked)} and an example of {size[0]} x {size[1]} pixels"
        raise InputError(given, "one of them", "leave one out")
    return size


def _source(name: str, given: Mapping[str, Any]) -> ModelSource:
    """The source of a model by the arguments of `build`, or of `tune`, which has fewer of them."""
    preprocess = {field: given[field] for field in PreprocessOptions.model_fields if field in given}
    for field in ("mean", "std"):
        if preprocess[field] is not None:
            preprocess[field] = tuple(preprocess[field])
    return _record(
        ModelSource,
        name=name,
        weights=arguments.one_of("weights", given["weights"], get_args(WeightsSource)),
        checkpoint=_path("checkpoint", given["checkpoint"]),
        image_size=_image_size(given["image_size"]),
        preprocess=_record(PreprocessOptions, **preprocess),
        class_names=_class_names(given.get("class_names")),
        text_head=_path("text_head", given.get("text_head")),
        **{field: given[field] for field in ("output", "activation") if field in given},
    )


def _is_place(given: object, path: Path) -> bool:
    """Whether a path is meant, rather than a name."""
    if not isinstance(given, str):
        return True
    return (path / "config.json").is_file() or ("/" in given and ":" not in given and path.is_dir())


def _several(given: Any) -> tuple[Any, ...]:
    """The values of an argument that takes none, one or several."""
    one = isinstance(given, str | PathLike | BaseModel) or not isinstance(given, Iterable)
    return () if given is None else (given,) if one else tuple(given)


def _ratios(given: Some[float] | None) -> tuple[float, ...]:
    return tuple(arguments.number("keep_ratio", ratio) for ratio in _several(given))


def _numbers(given: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else arguments.number(name, value) for name, value in given.items()}


def _number_in(name: str, given: float | None, wanted: arguments.Numbers) -> float | None:
    return None if given is None else arguments.number_in(name, given, wanted)


def _texts(name: str, given: Some[str] | None) -> tuple[str, ...]:
    return tuple(arguments.text(name, one) for one in _several(given))


def _counts(name: str, given: Some[int] | None, wanted: arguments.WholeNumbers) -> tuple[int, ...]:
    return tuple(arguments.whole_number(name, one, wanted) for one in _several(given))


def _path(name: str, given: AnyPath | None) -> Path | None:
    return None if given is None else arguments.folder(name, given)


def _schedule(given: AnyPath | PruningSchedule) -> PruningSchedule:
    if isinstance(given, PruningSchedule):
        return given
    return read_schedule(schedule_path(arguments.folder("schedule", given)))


def _image_size(given: int | tuple[int, int] | None) -> ImageSize | None:
    try:
        return None if given is None else ImageSize.of(given)
    except ValueError as error:
        raise InputError(f"image_size = {arguments.shown(given)}", str(error), "give for instance 224") from error


def _class_names(given: AnyPath | Sequence[str] | None) -> Path | tuple[str, ...] | None:
    if given is None or isinstance(given, str | PathLike):
        return _path("class_names", given)
    return _texts("class_names", given)


def _record(kind: type[_Record], **fields: Any) -> _Record:
    """
    Raises:
        InputError: a field is of another type, or out of range.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        where, wrong = first_error(error)
        name = where.partition(".")[0]
        given = f"{name} = {arguments.shown(fields.get(name))}"
        raise InputError(given, wrong.removeprefix("Input should be "), f"give another value for {name}") from error
