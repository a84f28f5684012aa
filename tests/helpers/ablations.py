"""Answers to images that nobody ran, and reports made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.ablation.answers import Part
from benchmarks.ablation.ranking import ITERATIONS
from benchmarks.ablation.report import AblateReport, AblateRequest, ModelFacts
from benchmarks.ablation.scoring import Scorer
from benchmarks.ablation.topic_names import Topic
from benchmarks.ablation.topics import bases, topics
from helpers.architectures import SMALL
from ztdeploy.core.model_source import ModelSource
from ztdeploy.target.evaluate.eval_report import DataFacts
from ztdeploy.target.evaluate.scoring import hits, share
from ztdeploy.target.measure.machine import read_machine


def model_facts(name: str, *, dense_gmacs: float) -> ModelFacts:
    return ModelFacts(
        name=name,
        timm_name=f"{name}.of_timm",
        weights="checkpoint",
        origin=f"{name}.safetensors",
        sha256="0" * 64,
        depth=SMALL.depth,
        tokens=SMALL.tokens,
        dense_gmacs=dense_gmacs,
    )


def report(
    only: tuple[Topic, ...] = (), *, images: int = 60, labelled: bool = True, name: str = "vit_small"
) -> AblateReport:
    """Of made-up answers: the further down a row stands, the further it is from dense."""
    generator, found = np.random.default_rng(0), topics(bases(SMALL, 0.65), only)
    rows = list({row.key: row for table in found for row in table.rows}.values())
    dense = generator.integers(0, 10, images).astype(np.int32)
    best = np.where(generator.random((len(rows), images)) < 0.9, dense, (dense + 1) % 10).astype(np.int32)
    kl = generator.gamma(1, 0.05, images) * (1 + 0.1 * np.arange(len(rows))[:, None])
    turns = np.linspace(0.7, 1.2, len(ITERATIONS))
    overlap = np.clip(turns[:, None] + generator.normal(0, 0.01, (SMALL.depth, len(turns), images)), 0, 1)
    overlap[:, -1] = 1  # with itself
    answers = Part(dense, best, kl + generator.gamma(1, 0.002, kl.shape), overlap, overlap)
    accepted = [frozenset([int(one)]) for one in dense] if labelled else None
    scorer = Scorer(SMALL, {row.key: place for place, row in enumerate(rows)}, answers, accepted, 0)
    return AblateReport(
        created="2026-01-02T03:04:05+00:00",
        request=AblateRequest(model=ModelSource(name=name), data=Path("photographs"), only=only),
        model=model_facts(name, dense_gmacs=1.0),
        machine=read_machine(),
        data=DataFacts(
            name=f"photographs of {name}",
            path="photographs",
            rule="listed in labels.json",
            labelled=labelled,
            digest="1" * 64,
            found=images,
            images=images,
            classes=10 if labelled else None,
            ignored=0,
        ),
        share=0.65,
        keep_ratio=0.7,
        dense_top1=None if accepted is None else share(hits(dense[:, None], accepted)),
        tables=tuple(map(scorer.table, found)),
        convergence=scorer.convergence(35) if any(table.topic == "iterations" for table in found) else None,
    )
