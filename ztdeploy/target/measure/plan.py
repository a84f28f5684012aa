"""Which configurations a benchmark measures: a request and a bundle in, a list out, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ztdeploy.core import arguments
from ztdeploy.core.bundle import WEIGHTS_FILE, Bundle
from ztdeploy.core.cascade import CASCADE
from ztdeploy.core.errors import InputError
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.manifest import EngineRecord, PartRecord, VariantRecord
from ztdeploy.target.adaptive.cascade import cascade_of
from ztdeploy.target.backends import get_backend
from ztdeploy.target.evaluate.data import read_data
from ztdeploy.target.measure.bench_report import (
    MOST_IMAGES,
    BenchRequest,
    BundleFacts,
    CascadeFacts,
    ConfigurationReport,
)
from ztdeploy.target.measure.turns import Configuration
from ztdeploy.target.runtime.runner import engine_of, runnable_profile

DEFAULT_DURATION_S = 10.0


@dataclass(frozen=True)
class Planned:
    """One configuration: what the worker is told, and what the report says of it before anything is measured."""

    configuration: Configuration
    report: ConfigurationReport
    reference: int | None  #: the position of the dense variant at the same batch and threads


@dataclass(frozen=True)
class Plan:
    """All that is known before anything is measured."""

    bundle: BundleFacts
    threaded: bool
    entries: tuple[Planned, ...]
    cascade: CascadeFacts | None


def check_request(request: BenchRequest) -> None:
    """
    Raises:
        InputError: a value is out of range, or two exclude each other.
    """
    if request.duration_s is not None and request.iterations is not None:
        raise InputError(
            f"both a duration of {request.duration_s:g} s and {request.iterations} iterations",
            "one of them",
            "leave out --duration or --iterations",
        )
    for option, value in {
        "--latency-ms": request.latency_ms,
        "--load": request.load,
        "--min-fidelity": request.min_fidelity,
    }.items():
        if value is not None and not request.governor:
            raise InputError(
                f"{option} {value} without --governor", "--governor", f"add --governor, or leave out {option}"
            )
    _check_cascade(request)
    arguments.whole_number("--rounds", request.rounds, arguments.ROUNDS)
    duration, warm_up = request.duration_s, request.warmup_s
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise InputError(f"--duration {duration}", "seconds above 0", "give for instance --duration 10")
    if not (math.isfinite(warm_up) and warm_up >= 0):
        raise InputError(f"--warmup {warm_up}", "seconds, 0 or more", "give for instance --warmup 1")
    if request.iterations is not None and request.iterations < request.rounds:
        raise InputError(
            f"{request.iterations} iterations in {request.rounds} rounds",
            "at least one call in each round",
            f"give --iterations {request.rounds} or more, or fewer --rounds",
        )
    for count in request.batches:
        arguments.whole_number("--batch", count, arguments.BATCH)
    for count in request.threads:
        arguments.whole_number("--threads", count, arguments.THREADS)


def _check_cascade(request: BenchRequest) -> None:
    """
    Raises:
        InputError: a cascade without images, or images without a cascade; or a cascade beside a governor.
    """
    if request.cascade and request.governor:
        raise InputError("both --cascade and --governor", "one of them: both choose the variant", "leave one out")
    if request.cascade and request.data is None:
        given = "--cascade without --data"
        raise InputError(given, "images, on which the latency of a cascade depends", "give --data DIR as well")
    if request.data is not None and not request.cascade:
        given = "--data without --cascade"
        raise InputError(given, "both or none: static variants take as long on any image", "add --cascade")


def plan_bench(request: BenchRequest, bundle: Bundle) -> Plan:
    """Every chosen variant at every batch and number of threads, behind the dense one at the same.

    Raises:
        InputError: no such variant, profile or engine; a batch that takes several calls; threads on a GPU; a bundle
            without a cascade.
        ImageError: a cascade is asked for, and there are no images.
        BundleError: an engine's file has changed since the build.
        EnvironmentLacksError: this machine can run none of the engines.
    """
    check_request(request)
    name = runnable_profile(bundle) if request.profile is None else bundle.profile_name(request.profile)
    profile, manifest = bundle.manifest.profiles[name], bundle.manifest
    threaded = get_backend(profile.backend).threaded
    if request.threads and not threaded:
        raise InputError(
            f"--threads with profile '{name}', whose engines run on a GPU", "no --threads", "leave --threads out"
        )
    variants = _variants(request, bundle)
    cascade = _cascade_facts(request, bundle, name)
    pieces = manifest.cascade.pieces if cascade and manifest.cascade else ()
    _verify(bundle, [*variants, *pieces], name)
    threads = (request.threads or (usable_threads(profile.threads),)) if threaded else (None,)
    entries: list[Planned] = []
    for batch in request.batches or (variants[0].graphs[name].batch or min(profile.batch.sizes),):
        for variant in variants:
            _check_batch(batch, variant, name, profile.batch.sizes)
        for count in threads:
            first = len(entries)
            for variant in variants:
                compared = request.reference and variant is not manifest.dense
                entries.append(_planned(bundle, variant, name, batch, count, first if compared else None))
            if cascade:
                reference = first if request.reference else None
                entries.append(_planned_cascade(bundle, request, entries[first], reference))
    return Plan(_facts(bundle, engine_of(bundle, variants[0], name), name), threaded, tuple(entries), cascade)


def _facts(bundle: Bundle, engine: EngineRecord, profile: str) -> BundleFacts:
    manifest, bound = bundle.manifest, engine.fingerprint
    return BundleFacts(
        path=str(bundle.root),
        created=manifest.created,
        model=manifest.model.name,
        timm_name=manifest.model.timm_name,
        image_size=manifest.preprocess.image_size,
        weights=manifest.weights.source,
        profile=profile,
        backend=manifest.profiles[profile].backend,
        runtime=f"{bound.runtime} {bound.runtime_version}",
    )


def _variants(request: BenchRequest, bundle: Bundle) -> list[VariantRecord]:
    """The chosen variants, the dense one first where it is among them or the reference."""
    named = request.keep_ratios or request.variants
    chosen = bundle.variants(request.keep_ratios, request.variants) if named else []
    if request.all_variants or (request.cascade and not named):
        chosen += bundle.manifest.variants
    if not chosen:
        chosen = [bundle.variant()]
    dense = bundle.manifest.dense
    if request.reference or dense in chosen:
        chosen.insert(0, dense)
    return list({variant.name: variant for variant in chosen}.values())


def _planned(
    bundle: Bundle, variant: VariantRecord, profile: str, batch: int, threads: int | None, reference: int | None
) -> Planned:
    engine, files = engine_of(bundle, variant, profile), bundle.manifest.files
    report = ConfigurationReport(
        variant=variant.name,
        keep_ratio=variant.keep_ratio,
        batch=batch,
        threads=threads,
        gmacs=variant.gmacs,
        model_mb=round(variant.graphs[profile].weights_bytes / 1e6, 3),
        engine_mb=round(sum(files[name].bytes for name in engine.files) / 1e6, 3),
        shared_weights_mb=round(files[WEIGHTS_FILE].bytes / 1e6, 3) if _reads_shared_weights(engine) else 0.0,
    )
    return Planned(Configuration(bundle.root, variant.name, profile, threads or 0, batch), report, reference)


def _planned_cascade(bundle: Bundle, request: BenchRequest, beside: Planned, reference: int | None) -> Planned:
    """The cascade at the batch and threads of another configuration; its stages share the weights of one variant."""
    cascade, setting = cascade_of(bundle, beside.configuration.profile)
    profile, files = beside.configuration.profile, bundle.manifest.files
    own = {file for piece in cascade.pieces for file in engine_of(bundle, piece, profile).files}
    report = beside.report.model_copy(
        update={
            "variant": CASCADE,
            "keep_ratio": None,
            "gmacs": setting.gmacs,
            "engine_mb": round(sum(files[name].bytes for name in own) / 1e6, 3),
        }
    )
    return Planned(replace(beside.configuration, variant=CASCADE, data=request.data), report, reference)


def _cascade_facts(request: BenchRequest, bundle: Bundle, profile: str) -> CascadeFacts | None:
    """
    Raises:
        InputError: the bundle has no cascade, or none that decides with the engines of this profile.
        ImageError: there are no images.
    """
    if not request.cascade or request.data is None:
        return None
    cascade, setting = cascade_of(bundle, profile)
    data = read_data(request.data, None, None, bundle.manifest.preprocess.channels)
    return CascadeFacts(
        stages=tuple(stage.variant for stage in cascade.stages),
        shares=setting.shares,
        guarantee=setting.guarantee,
        data=data.name,
        images=min(MOST_IMAGES, len(data.images)),
    )


def _reads_shared_weights(engine: EngineRecord) -> bool:
    return get_backend(engine.backend).shares_weights and engine.weights is None


def _verify(bundle: Bundle, variants: Sequence[PartRecord], profile: str) -> None:
    """Measure what was proved, and nothing else."""
    files = set[str]()
    for variant in variants:
        engine_of(bundle, variant, profile)  # which says why there is none
        files |= set(bundle.files_of_engine(variant, profile))
    bundle.verify_files(sorted(files))


def _check_batch(batch: int, variant: VariantRecord, profile: str, sizes: Sequence[int]) -> None:
    fixed = variant.graphs[profile].batch
    if fixed is not None and batch != fixed:
        raise InputError(
            f"--batch {batch} with engines of profile '{profile}', which are fixed at batch {fixed}",
            f"--batch {fixed}",
            f"leave --batch out, or build with --batch {batch}",
        )
    if fixed is None and batch > max(sizes):
        raise InputError(
            f"--batch {batch} with engines of profile '{profile}', which take {max(sizes)} images in one call",
            f"at most {max(sizes)}",
            f"choose a smaller --batch, or build with a profile whose batch.sizes hold {batch}",
        )
