"""What Zero-TPrune's paper leaves open or ablates, and what merging leaves to choose. The defaults are the method."""

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

#: VHF: a head counts whose scores, on the mean-1 scale, have a variance within these. No option.
VARIANCE_MIN, VARIANCE_MAX = 0.01, 0.7


class MethodOptions(Record):
    """The `[options]` of a schedule. Which of them a method knows stands in `ztdeploy.core.methods`."""

    start: Start = "boosted"  #: the class token's entry of the first vector times sqrt(N), or 1 for all
    head_filter: bool = True  #: VHF
    join: Join = "rms"  #: of heads; "rms" is EIR
    order: Order = "similarity-first"  #: I'-S-I, or the I-stage before the S-stage (which then ranks by its scores)
    #: Of the S-stage: who can go (group A), compared with whom (group B). The less important half, or the more
    #: important one, or every other token by importance, or a seeded random half by position, with the rest; or every
    #: token with every other, the less important one of a pair to go.
    partition: Partition = "sequential"
    feature: Feature = "keys"  #: that is compared: vectors averaged over heads, keys of all heads, or the tokens
    metric: Metric = "cosine"  #: by which it is compared; distances count as negative similarities
    partner: Feature = "tokens"  #: by whose cosine a merged token finds its partner
    least_similarity: float | None = Field(default=None, ge=-1, le=1)  #: below it a token is dropped; None: all merge
    proportional: bool = True  #: attention behind a merge adds log(size)
    #: attention behind a merge takes what was averaged as shorter, the more its parts differ (`MergingLayer.coherent`)
    coherent: bool = True
    #: Of novelty: exponents of importance, size and distance.
    importance_power: float = Field(default=1.0, ge=0, le=4)
    size_power: float = Field(default=1.0, ge=0, le=4)
    distance_power: float = Field(default=2.0, ge=0.5, le=8)
    average_power: float = Field(default=0.0, ge=0, le=4)  #: averages are weighed by size times importance to this
    coherence_power: float = Field(default=0.5, ge=0, le=2)  #: of coherence, as attention behind a merge takes it
    update_power: float = Field(default=0.0, ge=0, le=2)  #: of coherence, as what blocks add to averages takes it

    @property
    def changed(self) -> frozenset[str]:
        """The options that are not at their default."""
        return frozenset(self.model_dump(exclude_defaults=True))

    def __str__(self) -> str:
        """Those options in words, `join = mean, metric = dot`; empty where there are none."""
        return ", ".join(
            f"{name} = {str(value).lower()}" for name, value in self.model_dump(exclude_defaults=True).items()
        )

    def most_similar(self, patches: int, dropped: int) -> int:
        """How many of `patches` tokens can go by similarity where `dropped` go altogether."""
        if self.partition == "full":  # all but the most important one
            return min(dropped, patches - 1)
        # With importance first, half of the `patches - dropped + r` tokens that are left for the S-stage.
        return min(dropped, patches - dropped if self.order == "importance-first" else patches // 2)

    def groups(self, live: int, prefix: int) -> tuple[int, int]:
        """Between how many tokens similarities are computed in a layer with `live` tokens, prefix tokens among them."""
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
