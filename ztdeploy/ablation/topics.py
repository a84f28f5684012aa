"""What each table holds: rows that differ in one thing, all at the same multiply-adds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from ztdeploy.ablation.topic_names import Topic
from ztdeploy.equal_cost import at_cost
from ztdeploy.options import Feature, MethodOptions, Metric, Partition
from ztdeploy.schedule import Architecture, PruningSchedule, default_schedule, iterations_by_position, uniform_schedule

RANDOM_DRAWS = 3
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Iterations in the first quarter of the blocks, the middle and the last quarter; the paper's are the second.
ITERATIONS = ((50, 50, 50), (30, 5, 1), (10, 5, 1), (3, 3, 1), (1, 1, 1))
LEAST_SIMILARITIES = (0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Row:
    label: str
    schedule: PruningSchedule
    draw: int | None = None  #: which tokens stay is drawn at random, for every image anew

    @property
    def key(self) -> tuple[PruningSchedule, int | None]:
        """Rows of one key are one and the same computation."""
        return self.schedule.model_copy(update={"name": "any", "keep_ratio": None}), self.draw


@dataclass(frozen=True)
class TopicRows:
    topic: Topic
    title: str
    question: str
    reference: str  #: a row's label
    rows: tuple[Row, ...]
    cumulative: bool = False  #: each row adds something to the one above it


@dataclass(frozen=True)
class Bases:
    """What rows are variations of, at the cost that is asked for."""

    plain: PruningSchedule  #: the default method and schedule
    merging: PruningSchedule  #: zero-tprune-merge with its own layers
    merging_there: PruningSchedule  #: zero-tprune-merge where the plain one's layers stand


def bases(architecture: Architecture, share: float) -> Bases:
    """
    Args:
        share: of the dense model's multiply-adds.
    """

    def at(make: Callable[[float], PruningSchedule]) -> PruningSchedule:
        return at_cost(make, architecture, share)

    merge = "zero-tprune-merge"
    return Bases(
        plain=at(partial(default_schedule, architecture=architecture)),
        merging=at(partial(default_schedule, architecture=architecture, method=merge)),
        merging_there=at(partial(uniform_schedule, depth=architecture.depth, method=merge)),
    )


def topics(found: Bases, depth: int, only: Sequence[Topic] = ()) -> list[TopicRows]:
    """The tables, in their order; by default all."""
    made = {
        "contribution": partial(_contribution, found),
        "partition": partial(_partition, found.plain),
        "feature": partial(_feature, found.plain),
        "metric": partial(_metric, found.plain),
        "iterations": partial(_iterations, found.plain, depth),
        "order": partial(_order, found.plain),
        "share": partial(_share, found.plain),
        "start": partial(_start, found.plain),
        "merge": partial(_merge, found.merging),
    }
    return [make() for topic, make in made.items() if not only or topic in only]


def with_options(schedule: PruningSchedule, **options: Any) -> PruningSchedule:
    return schedule.model_copy(update={"options": MethodOptions(**options)})


def with_share(schedule: PruningSchedule, share: float) -> PruningSchedule:
    layers = tuple(layer.model_copy(update={"similarity_share": share}) for layer in schedule.layers)
    return schedule.model_copy(update={"layers": layers})


def with_iterations(schedule: PruningSchedule, depth: int, counts: tuple[int, int, int]) -> PruningSchedule:
    layers = tuple(
        layer.model_copy(update={"iterations": iterations_by_position(layer.block, depth, counts)})
        for layer in schedule.layers
    )
    return schedule.model_copy(update={"layers": layers})


def _contribution(found: Bases) -> TopicRows:
    ranked = with_share(found.plain, 0.0)
    random = ranked.model_copy(update={"method": "random"})
    return TopicRows(
        "contribution",
        "What each part contributes",
        "How much of the whole is each part of the method, added one by one as in the paper's table?",
        "+ S-stage",
        (
            *(Row(f"random, draw {draw + 1}", random, draw) for draw in range(RANDOM_DRAWS)),
            Row("WPR", with_options(ranked, join="mean", head_filter=False)),
            Row("+ EIR", with_options(ranked, head_filter=False)),
            Row("+ VHF", ranked),
            Row("+ S-stage", found.plain),
            Row("+ merging", found.merging_there),
            Row("+ late layers", found.merging),
        ),
        cumulative=True,
    )


def _partition(plain: PruningSchedule) -> TopicRows:
    names: tuple[Partition, ...] = get_args(Partition)
    return TopicRows(
        "partition",
        "Partition of the S-stage",
        "Which tokens can go because they are similar to another one?",
        "sequential",
        tuple(Row(name, with_options(plain, partition=name)) for name in names),
    )


def _feature(plain: PruningSchedule) -> TopicRows:
    names: tuple[Feature, ...] = get_args(Feature)
    return TopicRows(
        "feature",
        "Feature of the S-stage",
        "By which vectors are tokens compared?",
        "keys",
        tuple(Row(name, with_options(plain, feature=name)) for name in names),
    )


def _metric(plain: PruningSchedule) -> TopicRows:
    names: tuple[Metric, ...] = get_args(Metric)
    return TopicRows(
        "metric",
        "Metric of the S-stage",
        "How are the vectors of two tokens compared?",
        "cosine",
        tuple(Row(name, with_options(plain, metric=name)) for name in names),
    )


def _iterations(plain: PruningSchedule, depth: int) -> TopicRows:
    def row(counts: tuple[int, int, int]) -> Row:
        return Row(", ".join(map(str, counts)), with_iterations(plain, depth, counts))

    # Where no layer stands in the first quarter, some of them are one.
    distinct = {made.key: made for made in map(row, reversed(ITERATIONS))}
    most, *fewer = reversed(distinct.values())
    return TopicRows(
        "iterations",
        "Iterations of the I-stage",
        "What does a ranking that has not converged cost? Counts: first quarter of the blocks, middle, last quarter.",
        most.label,
        (most, *fewer, Row("default", plain)),
    )


def _order(plain: PruningSchedule) -> TopicRows:
    return TopicRows(
        "order",
        "Order of the stages",
        "Does it matter that near-duplicates go before the important tokens are chosen?",
        "I'-S-I",
        (Row("I'-S-I", plain), Row("I-S", with_options(plain, order="importance-first"))),
    )


def _share(plain: PruningSchedule) -> TopicRows:
    default = plain.layers[0].similarity_share
    return TopicRows(
        "share",
        "Similarity share",
        "How much of what goes shall go by similarity (S-stage), the rest by importance (I-stage)?",
        f"{default:g}",
        tuple(Row(f"{share:g}", with_share(plain, share)) for share in SHARES),
    )


def _start(plain: PruningSchedule) -> TopicRows:
    return TopicRows(
        "start",
        "Start of the ranking",
        "Does the class token's head start of sqrt(N) matter?",
        "boosted",
        (Row("boosted", plain), Row("uniform", with_options(plain, start="uniform"))),
    )


def _merge(merging: PruningSchedule) -> TopicRows:
    partners: tuple[Feature, ...] = get_args(Feature)
    default = MethodOptions().partner
    return TopicRows(
        "merge",
        "Merging (zero-tprune-merge)",
        "How is a merged token's partner found, and what must later attention know?",
        "default",
        (
            Row("default", merging),
            *(Row(f"partner by {name}", with_options(merging, partner=name)) for name in partners if name != default),
            *(
                Row(f"drop below {least:g}", with_options(merging, least_similarity=least))
                for least in LEAST_SIMILARITIES
            ),
            Row("not proportional", with_options(merging, proportional=False)),
        ),
    )
