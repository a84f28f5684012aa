"""The options of pruning methods: what Zero-TPrune's paper leaves open or ablates, and choices of merging."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from ztdeploy.core.records import Record

Start = Literal["boosted", "uniform"]
Join = Literal["rms", "mean"]
Order = Literal["similarity-first", "importance-first"]
Partition = Literal["sequential", "important", "alternate", "random", "full"]
Feature = Literal["keys", "all-keys", "queries", "values", "tokens"]
Metric = Literal["cosine", "dot", "euclidean", "manhattan"]

#: VHF counts the heads whose scores, on the mean-1 scale, have a variance between these. They are no options.
VARIANCE_MIN, VARIANCE_MAX = 0.01, 0.7


class MethodOptions(Record):
    """The `[options]` of a schedule. `ztdeploy.core.methods` says which of them each method knows."""

    #: First vector of page rank: the class token's entry times sqrt(N), or 1 everywhere.
    start: Start = "boosted"
    head_filter: bool = True  #: VHF
    join: Join = "rms"  #: how the heads' scores are joined; "rms" is EIR
    #: I'-S-I; or the I-stage before the S-stage, which then ranks by the I-stage's scores.
    order: Order = "similarity-first"
    #: Which tokens can go in the S-stage (group A); each is compared with the rest (group B). "sequential": the less
    #: important half; "important": the more important half; "alternate": every other token by importance; "random": a
    #: seeded random half by position. "full": all are compared with all, and of each pair the less important one goes.
    partition: Partition = "sequential"
    feature: Feature = "keys"  #: what is compared: vectors averaged over heads, keys of all heads, or the tokens
    metric: Metric = "cosine"  #: distances count as negative similarities
    partner: Feature = "tokens"  #: the feature by whose cosine a merged token finds its partner
    #: A token without a partner at least this similar is dropped; None: all are merged.
    least_similarity: float | None = Field(default=None, ge=-1, le=1)
    proportional: bool = True  #: attention behind a merge adds log(size)
    #: Attention behind a merge shortens averages, the more so the more their parts differ (`MergingLayer.coherent`).
    coherent: bool = True
    #: Exponents of importance, size and distance in a token's novelty.
    importance_power: float = Field(default=1.0, ge=0, le=4)
    size_power: float = Field(default=1.0, ge=0, le=4)
    distance_power: float = Field(default=2.0, ge=0.5, le=8)
    average_power: float = Field(default=0.0, ge=0, le=4)  #: exponent of importance in averages, which weigh by size
    coherence_power: float = Field(default=0.5, ge=0, le=2)  #: exponent of coherence in attention behind a merge
    update_power: float = Field(default=0.0, ge=0, le=2)  #: exponent of coherence in what blocks add to averages

    #: A-ViT's constants, which checkpoints do not hold: those of its published DeiT-Tiny; its DeiT-Small has center 75.
    halting_scale: float = Field(default=10.0, ge=0.1, le=1000)
    halting_center: float = Field(default=30.0, ge=0, le=1000)

    @property
    def changed(self) -> frozenset[str]:
        """The options that are not at their default."""
        return frozenset(self.model_dump(exclude_defaults=True))

    def __str__(self) -> str:
        """The changed options in words, `join = mean, metric = dot`; empty where there are none."""
        return ", ".join(
            f"{name} = {str(value).lower()}" for name, value in self.model_dump(exclude_defaults=True).items()
        )

    def most_similar(self, patches: int, dropped: int) -> int:
        """How many of `patches` tokens can go by similarity where `dropped` tokens go in all."""
        if self.partition == "full":  # all but the most important one
            return min(dropped, patches - 1)
        # With importance first, half of the `patches - dropped + r` tokens that are left for the S-stage.
        return min(dropped, patches - dropped if self.order == "importance-first" else patches // 2)

    def groups(self, live: int, prefix: int) -> tuple[int, int]:
        """The sizes of groups A and B in a layer with `live` tokens, prefix tokens included."""
        if self.partition == "full":
            return live - prefix - 1, live - 1
        half = (live - prefix) // 2
        return half, live - half


DEFAULT_OPTIONS = MethodOptions()


def known_values(name: str) -> tuple[Any, ...]:
    """The values that an option can have; empty where it is a number."""
    annotation = MethodOptions.model_fields[name].annotation
    return (True, False) if annotation is bool else tuple(v for v in get_args(annotation) if isinstance(v, str))


def known_range(name: str) -> tuple[float, float]:
    """The lowest and the highest value of an option that is a number."""
    limits = MethodOptions.model_fields[name].metadata
    return next(one.ge for one in limits if hasattr(one, "ge")), next(one.le for one in limits if hasattr(one, "le"))
