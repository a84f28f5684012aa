"""What a cascade decides by: records that both halves read. What it consists of is in `core/manifest.py`.

A cascade runs its cheapest stage on every image. Where that stage is not confident, the image goes on to the next
stage, at last to the baseline. All stages share the blocks in front of their first different pruning layer.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ztdeploy.core.records import FiniteRecord

#: The confidence of a stage in its output for an image; the higher, the surer. `host/confidence.py` computes it.
#: "margin": the difference of the two largest probabilities; of sigmoid outputs, the smallest distance of any from
#: even odds. "closeness": for embeddings and features, how close tokens that went were to tokens that stayed.
Signal = Literal["margin", "closeness"]
#: What reports call a cascade, where variants have their names.
CASCADE = "cascade"
#: A threshold above every margin.
ALL_GO_ON = 2.0
_ROUNDING = 1e-6
Share = Annotated[float, Field(ge=0, le=1)]


def percent_below(share: float) -> str:
    """A bound in words, never rounded up."""
    return f"{math.floor(1000 * share) / 10:.1f} %"


class CascadeGoal(FiniteRecord):
    """What a cascade is asked for: an agreement with the baseline, or a share of images that may go on."""

    agreement: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_rerun: Annotated[float, Field(gt=0, lt=1)] | None = None
    #: From this cosine on, an embedding or features agree with the baseline's; classes agree or do not.
    min_cosine: Annotated[float, Field(gt=0, lt=1)] = 0.95


class Guarantee(FiniteRecord):
    """A bound on how often a cascade agrees with the baseline, and the images that it comes from.

    The images need no labels. The bound holds for images that are drawn as these were, and for no others.
    """

    data: str  #: what the images are called
    data_sha256: str  #: of their names and contents
    images: int = Field(ge=1)
    asked: Share | None  #: agreement that was asked for; None: a share of images that may go on was asked for instead
    failures: int = Field(ge=0)  #: images whose answer was not the baseline's
    bound: Share  #: agreement is at least this
    confidence: Share = 0.95  #: that the bound holds
    min_cosine: float | None = None  #: an embedding or features agree from this cosine on; None: the same class
    by: Literal["engines", "graphs"] = "engines"  #: what ran; the graphs in ONNX Runtime where no engine can run

    @model_validator(mode="after")
    def _consistent(self) -> Guarantee:
        if self.failures > self.images or self.bound > self.agreement:
            raise ValueError("a bound above what was measured")
        if self.asked is not None and self.bound < self.asked - _ROUNDING:
            raise ValueError("a bound below what was asked for")
        return self

    @property
    def agreement(self) -> float:
        """The share of these images on which the cascade agrees with the baseline."""
        return 1 - self.failures / self.images

    @property
    def words(self) -> str:
        """What is guaranteed, in words that follow the cascade's name."""
        of = "" if self.min_cosine is None else f" (a cosine of {self.min_cosine:g} or more)"
        ran = "" if self.by == "engines" else "; its graphs ran in ONNX Runtime, its engines did not"
        return (
            f"answers as the baseline{of} on at least {percent_below(self.bound)} of images like these,"
            f" with {100 * self.confidence:.0f} % confidence; measured {100 * self.agreement:.1f} % on {self.images}"
            f" images of '{self.data}'{ran}"
        )


class CascadeSetting(FiniteRecord):
    """How a cascade decides with the engines of one profile."""

    #: Per stage but the last: an image goes on where the confidence is below it.
    thresholds: Annotated[tuple[float, ...], Field(min_length=1)]
    #: Per stage: share of the calibration images that it runs on; 1 for the first.
    shares: Annotated[tuple[Share, ...], Field(min_length=2)]
    guarantee: Guarantee
    #: Quantiles of the first stage's confidence in the calibration images, by which a runner knows other images.
    quantiles: Annotated[tuple[float, ...], Field(min_length=1)]
    gmacs: float = Field(gt=0)  #: mean multiply-adds of one image, in units of 1e9
    #: Per stage: median milliseconds of one image that ends there, on the machine of the build; None: never measured.
    stage_ms: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CascadeSetting:
        if self.shares[0] != 1 or list(self.shares) != sorted(self.shares, reverse=True):
            raise ValueError("shares that do not fall from 1")
        if list(self.quantiles) != sorted(self.quantiles):
            raise ValueError("quantiles that do not rise")
        if self.guarantee.agreement < self.shares[-1] - _ROUNDING:
            raise ValueError("more images that do not agree than do not go on to the baseline")
        return self

    @property
    def mean_ms(self) -> float | None:
        """The expected latency of one image; None: never measured."""
        if self.stage_ms is None:
            return None
        ends = [share - later for share, later in zip(self.shares, (*self.shares[1:], 0.0), strict=True)]
        return sum(share * ms for share, ms in zip(ends, self.stage_ms, strict=True))

    @property
    def worst_ms(self) -> float | None:
        """The latency of an image that goes through all stages; None: never measured."""
        return None if self.stage_ms is None else self.stage_ms[-1]
