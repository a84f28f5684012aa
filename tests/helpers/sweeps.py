"""Made-up sweeps with all that a report can show: several settings, fidelity, operator profiles, staircases."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from helpers.bench import configuration
from helpers.reports import TEMPLATE
from ztdeploy.core.manifest import Fidelity
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.target.measure.bench_report import BenchReport, Caution, ColdStart, ConfigurationReport, read_report
from ztdeploy.target.measure.comparing import compare
from ztdeploy.target.measure.sweep_report import (
    BlockAttention,
    OperatorProfile,
    OperatorTime,
    Part,
    Staircase,
    SweepReport,
    SweepRequest,
    TokenStep,
    VariantFacts,
)

BLOCKS, TOKENS = 12, 197
SIZE = ImageSize(224, 224)
RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5)
#: How much longer a method takes than dropping tokens for free would.
OVERHEAD = {"zero-tprune": 1.07, "slice": 1.0}
DENSE_MS, DENSE_GMACS = 48.0, 4.6
BUSY = Caution(kind="busy", message="other processes kept 0.4 of 4 usable cores busy", remedy="stop them")


def tokens(ratio: float) -> tuple[int, ...]:
    """Three pruning layers, each with the same ratio."""
    found, left = [], TOKENS
    for block in range(BLOCKS):
        found.append(left)
        if ratio < 1 and block in (2, 5, 8):
            left = round(left * ratio)
    return tuple(found)


def gmacs(ratio: float) -> float:
    return DENSE_GMACS * sum(tokens(ratio)) / (BLOCKS * TOKENS)


def name_of(method: str, ratio: float) -> str:
    if ratio == 1:
        return "dense"
    return f"keep-{ratio:.2f}" if method == "zero-tprune" else f"{method}-keep-{ratio:.2f}"


def facts(method: str, ratio: float, *, fidelity: bool, image_size: ImageSize = SIZE) -> VariantFacts:
    lost = (1 - ratio) ** 1.8 * (0.35 if method == "zero-tprune" else 0.9)
    found = Fidelity(
        images=1000,
        agreement=1 - lost,
        kl=2.2 * lost**1.3,
        top1=0.79 - lost / 3,
        dense_top1=0.79,
        change=(-lost / 3 - 0.01, -lost / 3 + 0.01),
        data="photographs",
        data_sha256="1a2b3c4d" * 8,
    )
    return VariantFacts(
        name=name_of(method, ratio),
        method=method,
        keep_ratio=ratio,
        image_size=image_size,
        gmacs=gmacs(ratio),
        pruning_gmacs=0.0 if ratio == 1 or method == "slice" else 0.02,
        tokens_per_block=tokens(ratio),
        fidelity=found if fidelity and ratio < 1 else None,
    )


def run(
    ratio: float,
    *,
    batch: int = 1,
    threads: int | None = 4,
    rounds: int = 10,
    gain: float = 1.0,
    methods: Mapping[str, float] = OVERHEAD,
    seed: int = 0,
    **changes: Any,
) -> BenchReport:
    """Dense and every method at one ratio.

    Args:
        gain: how much of the work saved is also time saved.
    """
    generator = random.Random(f"{ratio} {batch} {seed}")
    common = [generator.gauss(0, 0.02) for _ in range(rounds)]

    def measured(method: str, at: float, overhead: float) -> ConfigurationReport:
        share = 1 - gain * (1 - gmacs(at) / DENSE_GMACS)
        milliseconds = DENSE_MS * batch**0.9 * share * overhead
        samples = [
            [milliseconds * (1 + shared + generator.gauss(0, 0.012) + abs(generator.gauss(0, 0.01))) for _ in range(12)]
            for shared in common
        ]
        made = configuration(name_of(method, at), samples, batch=batch, threads=threads, gmacs=gmacs(at))
        start = ColdStart(process_ms=31.0, import_ms=180.0, load_ms=95.0, first_ms=milliseconds * 1.4)
        return made.model_copy(update={"keep_ratio": at, "cold_start": start, "engine_mb": 44.2, "peak_rss_mb": 156.3})

    found = [measured("", 1.0, 1.0)]
    if ratio < 1:
        found += [measured(method, ratio, overhead) for method, overhead in methods.items()]
    pairs = [compare(one, found[0], seed=0) for one in found[1:]]
    template = read_report(TEMPLATE)
    machine = {
        "processor": "Cortex-A76",
        "board": "Raspberry Pi 5 Model B Rev 1.0",
        "usable_cores": (0, 1, 2, 3),
        "cores_online": 4,
    }
    clocks = {"governors": ("ondemand",), "highest_clock_mhz": 2400.0, "lowest_clock_mhz": 1500.0}
    bundle = {
        "model": "deit_s",
        "timm_name": "deit_small_patch16_224",
        "image_size": SIZE,
        "weights": "pretrained",
    }
    fields: dict[str, Any] = {
        "configurations": tuple(found),
        "comparisons": tuple(pair for pair in pairs if pair is not None),
        "warnings": (),
        "machine": template.machine.model_copy(update={**machine, **clocks, "architecture": "aarch64"}),
        "bundle": template.bundle.model_copy(update=bundle),
        **changes,
    }
    return template.model_copy(update=fields)


def profile(method: str, ratio: float, *, batch: int = 1, threads: int | None = 4) -> OperatorProfile:
    parts = [Part(block=None, kind="linear", ms=1.2), Part(block=None, kind="norm", ms=0.2)]
    kinds = {
        "linear": 2.4,
        "attention": 0.8,
        "norm": 0.12,
        "activation": 0.25,
        "elementwise": 0.1,
        "data movement": 0.07,
    }
    for block, count in enumerate(tokens(ratio)):
        parts += [Part(block=block, kind=kind, ms=ms * count / TOKENS) for kind, ms in kinds.items()]  # type: ignore[arg-type]
        if ratio < 1 and block in (2, 5, 8):
            parts.append(Part(block=block, kind="pruning", ms=0.1 if method == "slice" else 0.7))
    total = sum(part.ms for part in parts)
    names = {
        "MatMul": (48, 0.62),
        "MultiHeadAttention": (12, 0.2),
        "LayerNormalization": (25, 0.04),
        "Gelu": (12, 0.07),
    }
    found = [OperatorTime(operator=name, count=count, ms=total * share) for name, (count, share) in names.items()]
    attention = [
        BlockAttention(
            block=block,
            fused=ratio == 1 or block not in (2, 5, 8),
            operators=("MultiHeadAttention",)
            if ratio == 1 or block not in (2, 5, 8)
            else ("MatMul", "Softmax", "MatMul"),
            reason="" if ratio == 1 or block not in (2, 5, 8) else "the pruning layer behind it reads the matrix",
        )
        for block in range(BLOCKS)
    ]
    return OperatorProfile(
        variant=name_of(method, ratio),
        image_size=SIZE,
        batch=batch,
        threads=threads,
        calls=20,
        call_ms=total * 1.05,
        parts=tuple(parts),
        operators=tuple(found),
        attention=tuple(attention),
    )


def staircase(*, batch: int = 1, threads: int | None = 4) -> Staircase:
    """Jumps behind every multiple of 16."""
    points = [
        TokenStep(tokens=count, block_ms=0.35 + 0.016 * count + 0.19 * -(-count // 16))
        for count in range(16, TOKENS + 1, 3)
    ]
    return Staircase(
        image_size=SIZE,
        batch=batch,
        threads=threads,
        points=tuple(points),
        treads=(64, 96, 112, 128, 144, 160, 176, 192),
    )


def sweep(
    *,
    fidelity: bool = True,
    details: bool = True,
    batches: tuple[int, ...] = (1,),
    ratios: tuple[float, ...] = RATIOS,
    methods: Mapping[str, float] = OVERHEAD,
    threads: int | None = 4,
    gain: float = 1.0,
    rounds: int = 10,
    **changes: Any,
) -> SweepReport:
    """A complete sweep of dense and two methods."""
    variants = [facts("zero-tprune", 1.0, fidelity=False)]
    variants += [facts(method, ratio, fidelity=fidelity) for ratio in ratios for method in methods]
    runs = [
        run(ratio, batch=batch, threads=threads, gain=gain, methods=methods, rounds=rounds)
        for batch in batches
        for ratio in ratios or (1.0,)
    ]
    chosen = [("zero-tprune", 1.0), ("zero-tprune", 0.7), ("slice", 0.7)]
    report = SweepReport(
        progress="complete",
        request=SweepRequest(
            model=ModelSource(name="deit_s"), profile="cpu", keep_ratios=(1.0, *ratios), methods=tuple(methods)
        ),
        variants=tuple(variants),
        runs=tuple(runs),
        planned=len(batches) * (1 + len(ratios) * len(methods)),
        profiles=tuple(profile(*one, threads=threads) for one in chosen) if details else (),
        staircases=(staircase(threads=threads),) if details else (),
    )
    return report.model_copy(update=changes)
