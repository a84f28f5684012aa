"""What Zero-TPrune's paper leaves open or ablates, and what merging leaves to choose. The defaults are the method."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Start = Literal["boosted", "uniform"]
Join = Literal["rms", "mean"]
Order = Literal["similarity-first", "importance-first"]
Partition = Literal["sequential", "important", "alternate", "random", "full"]
Feature = Literal["keys", "all-keys", "queries", "values", "tokens"]
Metric = Literal["cosine", "dot", "euclidean", "manhattan"]


class MethodOptions(BaseModel):
    """The `[options]` of a schedule. Which of them a method knows stands in `ztdeploy.methods`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: Start = "boosted"  #: the class token's entry of the first vector times sqrt(N), or 1 for all
    head_filter: bool = True  #: VHF
    join: Join = "rms"  #: of heads; "rms" is EIR
    order: Order = "similarity-first"  #: I'-S-I, or the I-stage before the S-stage (which then ranks by its scores)
    #: Of the S-stage: who can go (group A), compared with whom (group B). The less important half, or the more
    #: important one, or every other token, or a seeded random half, with the rest; or every token with every other.
    partition: Partition = "sequential"
    feature: Feature = "keys"  #: of the S-stage: vectors averaged over heads, keys of all heads, or the tokens
    metric: Metric = "cosine"  #: of the S-stage
    partner: Feature = "tokens"  #: by whose cosine a merged token finds its partner
    least_similarity: float | None = Field(default=None, ge=-1, le=1)  #: below it a token is dropped; None: all merge
    proportional: bool = True  #: attention behind a merge adds log(size)

    @property
    def changed(self) -> frozenset[str]:
        """The options that are not at their default."""
        return frozenset(self.model_dump(exclude_defaults=True))
