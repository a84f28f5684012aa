"""What each table holds: rows that differ in one thing, all at the same multiply-adds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from benchmarks.ablation.topic_names import Topic
from ztdeploy.core.cost import at_cost, share_of_dense
from ztdeploy.core.keep_ratio import default_schedule, uniform_schedule
from ztdeploy.core.methods import PAPER_METHOD
from ztdeploy.core.options import Feature, MethodOptions, Metric, Partition, Start
from ztdeploy.core.plan import iterations_by_position
from ztdeploy.core.schedule import Architecture, PruningSchedule

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
    merging: PruningSchedule  #: zero-tprune-merge with the layers that it has by default
    merging_there: PruningSchedule  #: zero-tprune-merge where the plain one's layers stand
    architecture: Architecture
    share: float  #: of dense's multiply-adds
    preset: str = "default"  #: where layers stand

    def varied(self, base: PruningSchedule, **options: Any) -> PruningSchedule:
        """A base with options. Where these change what it costs, another keep ratio makes up for it."""
        made = with_options(base, **options)
        if share_of_dense(made, self.architecture) == share_of_dense(base, self.architecture):
            return made

        def make(keep_ratio: float) -> PruningSchedule:
            schedule = default_schedule(keep_ratio, self.architecture, method=base.method, preset=self.preset)
            return with_options(schedule, **options)

        return at_cost(make, self.architecture, self.share)


def bases(architecture: Architecture, share: float, preset: str = "default", keep_ratio: float | None = None) -> Bases:
    """
    Args:
        share: of the dense model's multiply-adds.
        preset: where layers stand, see `schedule.PRESETS`.
        keep_ratio: of the default schedule, where it is what decides the share.
    """
    default = partial(default_schedule, architecture=architecture, method=PAPER_METHOD, preset=preset)

    def at(make: Callable[[float], PruningSchedule]) -> PruningSchedule:
        return at_cost(make, architecture, share)

    merge = "zero-tprune-merge"
    return Bases(
        plain=at(default) if keep_ratio is None else default(keep_ratio),
        merging=at(partial(default, method=merge)),
        merging_there=at(partial(uniform_schedule, depth=architecture.depth, method=merge, preset=preset)),
        architecture=architecture,
        share=share,
        preset=preset,
    )


def topics(found: Bases, only: Sequence[Topic] = ()) -> list[TopicRows]:
    """The tables, in their order; by default all."""
    made = {
        "contribution": partial(_contribution, found),
        "partition": partial(_option, "partition", found),
        "feature": partial(_option, "feature", found),
        "metric": partial(_option, "metric", found),
        "iterations": partial(_iterations, found.plain, found.architecture.depth),
        "order": partial(_option, "order", found),
        "share": partial(_share, found.plain),
        "start": partial(_option, "start", found),
        "merge": partial(_merge, found),
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
            # With a preset, its own layers are the preset's.
            *([Row("+ late layers", found.merging)] if found.merging.layers != found.merging_there.layers else []),
        ),
        cumulative=True,
    )


@dataclass(frozen=True)
class OptionTopic:
    """One option of the default method, by itself."""

    title: str
    question: str
    reference: str  #: a row's label
    values: Mapping[str, str]  #: by label


def _by_value(literal: Any) -> dict[str, str]:
    return {value: value for value in get_args(literal)}


OPTIONS: dict[Topic, OptionTopic] = {
    "partition": OptionTopic(
        "Partition of the S-stage",
        "Which tokens can go because they are similar to another one?",
        "sequential",
        _by_value(Partition),
    ),
    "feature": OptionTopic(
        "Feature of the S-stage",
        "By which vectors are tokens compared? Those of the tokens are known only behind the block, which then has to "
        "compute all of them: at equal cost fewer stay.",
        "keys",
        _by_value(Feature),
    ),
    "metric": OptionTopic(
        "Metric of the S-stage", "How are the vectors of two tokens compared?", "cosine", _by_value(Metric)
    ),
    "order": OptionTopic(
        "Order of the stages",
        "Does it matter that near-duplicates go before the important tokens are chosen?",
        "I'-S-I",
        {"I'-S-I": "similarity-first", "I-S": "importance-first"},
    ),
    "start": OptionTopic(
        "Start of the ranking", "Does the class token's head start of sqrt(N) matter?", "boosted", _by_value(Start)
    ),
}


def _option(option: Topic, found: Bases) -> TopicRows:
    topic = OPTIONS[option]
    rows = tuple(Row(label, found.varied(found.plain, **{option: value})) for label, value in topic.values.items())
    return TopicRows(option, topic.title, topic.question, topic.reference, rows)


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


def _share(plain: PruningSchedule) -> TopicRows:
    default = plain.layers[0].similarity_share
    return TopicRows(
        "share",
        "Similarity share",
        "How much of what goes shall go by similarity (S-stage), the rest by importance (I-stage)?",
        f"{default:g}",
        tuple(Row(f"{share:g}", with_share(plain, share)) for share in SHARES),
    )


def _merge(found: Bases) -> TopicRows:
    partners: tuple[Feature, ...] = get_args(Feature)
    default = MethodOptions().partner
    return TopicRows(
        "merge",
        "Merging (zero-tprune-merge)",
        "How is a merged token's partner found, and what must later attention know?",
        "default",
        (
            Row("default", found.merging),
            *(
                Row(f"partner by {name}", found.varied(found.merging, partner=name))
                for name in partners
                if name != default
            ),
            *(
                Row(f"drop below {least:g}", found.varied(found.merging, least_similarity=least))
                for least in LEAST_SIMILARITIES
            ),
            Row("not proportional", found.varied(found.merging, proportional=False)),
            Row("full length", found.varied(found.merging, coherent=False)),
            Row("novelty-merge", found.varied(found.merging.model_copy(update={"method": "novelty-merge"}))),
        ),
    )
