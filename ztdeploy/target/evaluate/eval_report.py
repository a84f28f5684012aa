"""What an evaluation says: records that are JSON on disk, with a schema version."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ztdeploy.core.files import write
from ztdeploy.core.preprocess_spec import Activation, Output
from ztdeploy.core.records import Record, to_json
from ztdeploy.target.measure.bench_report import BundleFacts
from ztdeploy.target.measure.report_file import check_overwritable, holds_kind
from ztdeploy.target.measure.statistics import Interval

SCHEMA_VERSION: Literal[1] = 1
KIND: Literal["ztdeploy-eval"] = "ztdeploy-eval"


class EvalRequest(Record):
    """What to evaluate. Empty tuples and None stand for the defaults that are described."""

    bundle: Path
    data: Path
    limit: int | None = None  #: images, of every class alike; by default all
    seed: int = 0  #: of the limit and of the bootstrap
    keep_ratios: tuple[float, ...] = ()  #: by default all variants; dense comes by itself
    variants: tuple[str, ...] = ()  #: the same by name
    profile: str | None = None  #: by default the first whose engines run here
    batch: int | None = None  #: images per call; by default the profile's smallest
    threads: int | None = None  #: by default what the profile says, within what the process may use
    dense_profile: str | None = None  #: whose dense engine all are held against; by default the same profile's
    strict: bool = False  #: an image that cannot be read is an error
    recall_at: tuple[int, ...] = ()  #: neighbours, of embeddings; by default 1, 5 and 10, as far as there are so many


class Unreadable(Record):
    image: str
    reason: str


class DataFacts(Record):
    """What the images were."""

    name: str
    path: str
    rule: str  #: how images come by their labels, in words
    labelled: bool
    digest: str  #: sha256 of names, contents and accepted classes of all images that were evaluated
    found: int  #: images there, before any limit
    images: int  #: that were evaluated
    classes: int | None  #: distinct labels among them
    ignored: int  #: files that are no images by their names
    unreadable: tuple[Unreadable, ...] = ()


class Share(Record):
    """How many of the images; Wilson's interval."""

    count: int
    total: int
    interval: Interval

    @property
    def value(self) -> float:
        return self.count / self.total


class Change(Record):
    """Top-1 of a variant less that of dense, on the same images, as a share; Tango's interval."""

    gained: int  #: images that only the variant has right
    lost: int  #: images that only dense has right
    value: float
    interval: Interval


class Mean(Record):
    """Over all images; bootstrap interval."""

    value: float
    interval: Interval


class Answer(Record):
    index: int
    name: str
    probability: float


class Apart(Record):
    """An image on which the variant is far from dense."""

    image: str
    kl: float  #: nats
    dense: Answer
    variant: Answer
    labels: tuple[str, ...]  #: what counts as right


class AgainstDense(Record):
    agreement: Share  #: images with dense's answer
    kl: Mean  #: KL(dense || variant), nats
    change: Change | None  #: where the images are labelled
    worst: tuple[Apart, ...]  #: the images with the highest divergence, highest first


class Quantile(Record):
    """Woodruff's interval."""

    value: float
    interval: Interval


class Far(Record):
    image: str
    cosine: float  #: of features, the mean over positions


class Place(Record):
    image: str
    position: int  #: row by row of the grid, from 0
    cosine: float


class Positions(Record):
    """Of features: whether a position's own token is still there, or what stands for it fills it."""

    kept: Mean | None  #: cosine where the token is there; None where no position has one
    filled: Mean | None  #: cosine where another's features stand; None where no position is so
    filled_share: float  #: of all positions
    lowest: Place
    mean: tuple[float, ...]  #: `[P]` cosine of each position, over the images
    filled_at: tuple[float, ...]  #: `[P]` share of the images in which a position is filled


class Likeness(Record):
    """Cosine of a variant's embedding, or of the features of each position, to dense's of the same image."""

    mean: Mean  #: over images, and positions
    p5: Quantile  #: 5 % are below; of images, or of positions
    lowest: float
    furthest: tuple[Far, ...]  #: the images with the lowest cosine, lowest first
    positions: Positions | None  #: of features


Gallery = Literal["own", "dense"]


class Recall(Record):
    """What embeddings find: the nearest of all other images."""

    k: int  #: neighbours that are looked at
    gallery: Gallery  #: whose embeddings the other images have; the queries are the variant's
    recall: Share | None  #: images with one of their class among them; None where the images are not labelled
    change: Change | None  #: less that of dense in its own gallery
    overlap: Mean | None  #: share of them that are among dense's nearest as well; None for dense itself


class VariantScore(Record):
    variant: str
    profile: str | None = None  #: of a dense engine of another profile
    keep_ratio: float | None
    method: str
    gmacs: float
    engine_sha256: str
    top1: Share | None  #: where the images are labelled
    top5: Share | None  #: likewise, and where there are more than 5 classes
    against_dense: AgainstDense | None  #: of classifiers; None for dense itself
    likeness: Likeness | None = None  #: of embeddings and features; None for dense itself
    recalls: tuple[Recall, ...] = ()  #: of embeddings, by gallery and k

    @property
    def label(self) -> str:
        """Its name, with the profile where that is another than the report's."""
        return self.variant if self.profile is None else f"{self.variant} ({self.profile})"


class EvalReport(Record):
    kind: Literal["ztdeploy-eval"] = KIND
    schema_version: Literal[1] = SCHEMA_VERSION
    created: str
    request: EvalRequest
    bundle: BundleFacts
    output: Output = "logits"
    activation: Activation = "softmax"  #: of logits
    grid: tuple[int, int] | None = None  #: rows and columns of patches; None in reports of older versions
    data: DataFacts
    variants: tuple[VariantScore, ...]  #: dense first

    @property
    def dense(self) -> VariantScore:
        return self.variants[0]


def write_eval(report: EvalReport, out: Path) -> None:
    """Write a report, whole or not at all, in place of an earlier one.

    Raises:
        OutputError: the file exists and is no such report, or cannot be written.
    """
    check_eval_path(out)
    write(out, to_json(report, indent=1) + "\n")


def check_eval_path(out: Path) -> None:
    """
    Raises:
        OutputError: see `check_overwritable`.
    """
    check_overwritable(out, "report of 'ztdeploy eval'", lambda: holds_kind(out, KIND))
