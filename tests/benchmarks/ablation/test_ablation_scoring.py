"""Figures and sentences of the tables, on answers whose differences are known."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.ablations import SMALL

from benchmarks.ablation.answers import Part
from benchmarks.ablation.findings import outcome, summary, table_findings
from benchmarks.ablation.ranking import ITERATIONS
from benchmarks.ablation.report import RowScore, Table
from benchmarks.ablation.scoring import Scorer
from benchmarks.ablation.topics import TopicRows, bases, topics
from ztdeploy.target.evaluate.statistics import mean_interval, paired_interval
from ztdeploy.target.measure.statistics import wilson_interval

IMAGES = 40
FOUND = {table.topic: table for table in topics(bases(SMALL, 0.65))}
GENERATOR = np.random.default_rng(3)
#: What all rows have in common, and what hides any difference between them that is not paired.
COMMON = GENERATOR.gamma(1, 1.0, IMAGES)


def scored(table: TopicRows, kl: dict[str, np.ndarray], *, best: np.ndarray | None = None) -> Table:
    """A table of rows with these divergences; rows without any have what all have in common."""
    rows = np.stack([kl.get(row.label, COMMON) for row in table.rows])
    dense = np.zeros(IMAGES, np.int32)
    best = np.zeros((len(rows), IMAGES), np.int32) if best is None else best
    none = np.zeros((0, 0, IMAGES))
    places = {row.key: place for place, row in enumerate(table.rows)}
    return Scorer(SMALL, places, Part(dense, best, rows, none, none), [frozenset([0])] * IMAGES, 0).table(table)


def row(table: Table, label: str) -> RowScore:
    return next(one for one in table.rows if one.label == label)


def test_differences_are_paired_by_image() -> None:
    small = GENERATOR.normal(0.01, 0.02, IMAGES)
    table = scored(FOUND["metric"], {"dot": COMMON + small, "euclidean": COMMON - 0.001})
    found = row(table, "dot")
    assert found.difference is not None
    assert found.difference.value == pytest.approx(small.mean())
    expected = mean_interval(small)
    assert found.difference.interval.low == pytest.approx(expected.low)
    assert found.difference.interval.high == pytest.approx(expected.high)
    assert row(table, "cosine").difference is None
    assert [outcome(one.difference) for one in table.rows] == ["", "higher", "lower", "the same"]
    assert found.kl.interval.contains(row(table, "cosine").kl.value), "unpaired, nothing would show"
    higher, lower, same = table_findings(table)
    assert higher.startswith("Shown: further from dense than 'cosine': dot +0.0")
    assert lower.startswith("Shown: nearer to dense than 'cosine': euclidean -0.0010")
    assert same == "The same answers as 'cosine': manhattan."
    assert table.findings == (higher, lower, same)


def test_what_an_interval_does_not_show() -> None:
    noise = GENERATOR.normal(0, 1, IMAGES)
    table = scored(FOUND["start"], {"uniform": COMMON + noise - noise.mean()})
    (sentence,) = table.findings
    assert sentence.startswith("Not shown: any difference from 'boosted' for uniform ")


def test_a_staircase_compares_with_the_row_above() -> None:
    steps = [0.5, 0.9, 1.3, 0.4, 0.3, 0.3, 0.1, 0.2, 0.1]
    labels = [one.label for one in FOUND["contribution"].rows]
    table = scored(FOUND["contribution"], {label: COMMON + add for label, add in zip(labels, steps, strict=True)})
    values = [None if one.step is None else round(one.step.value, 6) for one in table.rows]
    assert values == [None, None, None, -0.5, -0.1, 0.0, -0.2, 0.1, -0.1], "WPR against the mean of all draws"
    assert round(row(table, "WPR").difference.value, 6) == 0.3  # type: ignore[union-attr]
    assert table.findings[0].startswith("Shown: further from dense than the row above: + merging +0.1000")
    assert "WPR -0.5000" in table.findings[1]


def test_agreement_and_top1() -> None:
    best = np.zeros((2, IMAGES), np.int32)
    best[1, :7] = 3
    uniform = row(scored(FOUND["start"], {}, best=best), "uniform")
    assert uniform.agreement.count == IMAGES - 7
    assert uniform.agreement.interval == wilson_interval(IMAGES - 7, IMAGES)
    assert uniform.change is not None
    assert (uniform.change.gained, uniform.change.lost) == (0, 7)
    assert uniform.change.interval == paired_interval(0, 7, IMAGES)


def test_a_ranking_is_settled_where_it_stays_so() -> None:
    overlap = np.full((SMALL.depth, len(ITERATIONS), IMAGES), 1.0)
    overlap[0, :5] = 0.9  # 1 to 10 iterations
    overlap[1, 2] = 0.98  # it looks settled after 1, and is not
    part = Part(np.zeros(IMAGES, np.int32), np.zeros((0, IMAGES), np.int32), np.zeros((0, IMAGES)), overlap, overlap)
    found = Scorer(SMALL, {}, part, None, 0).convergence(40)
    assert [block.settled for block in found.blocks] == [20, 5, 1, 1, 1, 1]
    assert "block 1: 20; block 2: 5; blocks 3 to 6: 1." in found.findings[0]


def test_summary_says_how_much_is_chance() -> None:
    from helpers.ablations import report

    made = report(("partition", "metric"))
    sentences = summary(made)
    assert sentences[0] == "Shown to matter here: partition, metric."
    assert "Each of the 7 intervals" in sentences[-1]
