"""What an evaluation says: records that are JSON on disk, with a schema version."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ztdeploy.core.arguments import MIN_AGREEMENT
from ztdeploy.core.brief import Brief, Shown
from ztdeploy.core.preprocess_spec import Activation, Output
from ztdeploy.core.records import Record
from ztdeploy.core.verdict import Verdict
from ztdeploy.target.measure.bench_report import BundleFacts
from ztdeploy.target.measure.report_file import check_overwritable, holds_kind
from ztdeploy.target.measure.statistics import Interval

SCHEMA_VERSION: Literal[1] = 1
KIND: Literal["ztdeploy-eval"] = "ztdeploy-eval"


class EvalRequest(Record):
    """What to evaluate. Empty tuples and None stand for the defaults that are described."""

    bundle: Path
    data: Path
    limit: int | None = None  #: at most so many images, equally many of every class; by default all
    seed: int = 0  #: decides which images a limit takes, and what the bootstrap draws
    keep_ratios: tuple[float, ...] = ()  #: which variants; by default all. The dense one is always evaluated
    variants: tuple[str, ...] = ()  #: names of variants
    profile: str | None = None  #: run the engines of this profile; by default the first that runs here
    batch: int | None = None  #: images per call; by default the profile's smallest
    threads: int | None = None  #: by default the profile's, bounded by what the process may use
    dense_profile: str | None = None  #: compare with this profile's dense engine; by default with that of `profile`
    strict: bool = False  #: an image that cannot be read is an error
    recall_at: tuple[int, ...] = ()  #: numbers of neighbours, for embeddings; by default 1, 5 and 10
    min_agreement: float = MIN_AGREEMENT  #: what the verdict asks of a variant; mean cosine where there are vectors
    max_error: float | None = None  #: what it asks of maps instead, see `verdict.held`
    min_iou: float | None = None
    threshold: float | None = None  #: probability above which a position of a map is a yes; by default 0.5
    cascade: bool | None = None  #: run the bundle's cascade as well; by default where no variants are chosen


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
    found: int  #: images in the data set, before any limit
    images: int  #: images that were evaluated
    classes: int | None  #: distinct labels among them
    ignored: int  #: files whose names are not those of images
    unreadable: tuple[Unreadable, ...] = ()


class Share(Record):
    """A share of the images, with Wilson's interval."""

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
    """A mean over all images, with a bootstrap interval."""

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
    """A quantile with Woodruff's interval."""

    value: float
    interval: Interval


class Far(Record):
    image: str
    cosine: float  #: the mean over positions, where a model gives features


class Place(Record):
    image: str
    position: int  #: row by row of the grid, from 0
    cosine: float


class Positions(Record):
    """Cosines of features by position: a position's own token is kept, or another token stands for it (filled)."""

    kept: Mean | None  #: mean cosine of positions whose token is kept; None without any
    filled: Mean | None  #: mean cosine of filled positions; None without any
    filled_share: float  #: share of the positions that are filled
    lowest: Place
    mean: tuple[float, ...]  #: `[P]` cosine of each position, over the images
    filled_at: tuple[float, ...]  #: `[P]` share of the images in which a position is filled


class Likeness(Record):
    """Cosine of a variant's embedding, or of the features of each position, to dense's of the same image."""

    mean: Mean  #: over images, and positions
    p5: Quantile  #: 5 % are below; of images, or of positions
    lowest: float
    furthest: tuple[Far, ...]  #: the images with the lowest cosine, lowest first
    positions: Positions | None  #: None where the model gives no features


class MapFigures(Record):
    """How near a variant's map of an image is to the baseline's; None: such maps have no such figure."""

    error: float  #: mean absolute error: of probabilities; of values as a share of the baseline's range on the image
    iou: float | None  #: intersection over union of what is above the threshold, or of classes; None of values
    same: float | None  #: share of positions with the baseline's class; None without classes
    rank: float | None  #: Spearman's correlation of values; None of probabilities
    cosine: float | None  #: of the channels of a position, mean over positions; None of one channel


class FarMap(MapFigures):
    image: str


class MapNearness(Record):
    """How near a variant's maps are to the baseline's: means over images; see `MapFigures`."""

    error: Mean
    iou: Mean | None
    same: Mean | None
    rank: Mean | None
    cosine: Mean | None
    furthest: tuple[FarMap, ...]  #: the images with the lowest IoU, or of values with the highest error; worst first


Gallery = Literal["own", "dense"]


class Recall(Record):
    """What embeddings find: the nearest of all other images."""

    k: int  #: neighbours that are looked at
    gallery: Gallery  #: which engine embeds the other images; the variant itself embeds the query
    recall: Share | None  #: images with a neighbour of their own class; None without labels
    change: Change | None  #: recall less that of dense in its own gallery
    overlap: Mean | None  #: share of the neighbours that are also dense's; None for dense itself


class StageReached(Record):
    """A stage of a cascade."""

    variant: str
    reached: Share  #: images that it ran on
    expected: float  #: share of the calibration images that it ran on


class WentOn(Record):
    """An image that the first stage of a cascade was not confident in."""

    image: str
    confidence: float  #: of the first stage
    variant: str  #: the stage that answered


class CascadeScore(Record):
    """How a cascade decided on the images, and whether its bound on agreement holds for them."""

    stages: tuple[StageReached, ...]
    agreement: Share  #: images that agree with the baseline in the sense of the bound
    bound: float  #: the agreement that was promised, from calibration images
    calibrated_on: str  #: what those are called
    held: bool | None  #: whether agreement reaches the bound; None: the baseline was another profile's
    unlike: str | None  #: warning that the images are unlike the calibration images; None: nothing says so
    worst_gmacs: float  #: of an image that goes through all stages
    went_on: tuple[WentOn, ...]  #: all that went on, the least confident first

    @property
    def sentence(self) -> str:
        """Whether the bound holds, for people."""
        found, bound = self.agreement, f"the bound of {100 * self.bound:.1f} % from '{self.calibrated_on}'"
        text = (
            f"The cascade agrees with the baseline on {100 * found.value:.1f} % of these images"
            f" ({found.interval.scaled(100):.1f})"
        )
        if self.held is None:
            return f"{text}; its bound is about the baseline of its own profile."
        if self.held:
            return f"{text}: {bound} is reached."
        by_chance = found.interval.high >= self.bound
        return f"{text}: {bound} is missed, {'which chance explains' if by_chance else 'by more than chance explains'}."


class VariantScore(Record):
    variant: str
    profile: str | None = None  #: the profile of the dense engine, where that is another one than the report's
    keep_ratio: float | None
    method: str
    gmacs: float
    engine_sha256: str
    top1: Share | None  #: where the images are labelled
    top5: Share | None  #: where the images are labelled and there are more than 5 classes
    against_dense: AgainstDense | None  #: None for dense itself, and where a model gives vectors or maps
    likeness: Likeness | None = None  #: None for dense itself, for classifiers and for maps
    maps: MapNearness | None = None  #: None for dense itself, and where a model gives no maps
    recalls: tuple[Recall, ...] = ()  #: by gallery and k; empty where a model gives no embedding
    cascade: CascadeScore | None = None  #: of the row of a cascade, whose GMACs are a mean over the images

    @property
    def label(self) -> str:
        """Its name, with the profile where that is another than the report's."""
        return self.variant if self.profile is None else f"{self.variant} ({self.profile})"


class EvalReport(Shown, Record):
    kind: Literal["ztdeploy-eval"] = KIND
    schema_version: Literal[1] = SCHEMA_VERSION
    created: str
    request: EvalRequest
    bundle: BundleFacts
    output: Output = "logits"
    activation: Activation = "softmax"  #: what logits mean
    grid: tuple[int, int] | None = None  #: rows and columns of patches; None in reports of older versions
    data: DataFacts
    variants: tuple[VariantScore, ...]  #: dense first, the cascade last
    verdict: Verdict | None = None  #: None in reports of older versions

    @property
    def dense(self) -> VariantScore:
        return self.variants[0]

    @property
    def cascade(self) -> CascadeScore | None:
        return self.variants[-1].cascade

    def brief(self) -> Brief:
        """The images, and a row for each variant with what pruning changes."""
        if self.output == "maps":
            return self._brief_of_maps()
        data, vectors = self.data, self.output != "logits"
        columns = ["variant", "GMACs", *(["top-1"] if data.labelled and not vectors else [])]
        columns += ["mean cosine"] if vectors else ["same answer", "mean KL"]
        rows = []
        for score in self.variants:
            against, like = score.against_dense, score.likeness
            row = [score.label, f"{score.gmacs:.3g}", *([_percent(score.top1)] if "top-1" in columns else [])]
            row += (
                [_mean(like.mean if like else None)] if vectors else [_percent(against.agreement if against else None)]
            )
            rows.append(row if vectors else [*row, _mean(against.kl if against else None)])
        return Brief(self._headline, columns, rows)

    def _brief_of_maps(self) -> Brief:
        overlap = self.activation != "none"
        columns = ["variant", "GMACs", *(["mean IoU"] if overlap else []), "mean error"]
        rows = []
        for score in self.variants:
            figures = [score.maps.error if score.maps else None]
            figures[:0] = [score.maps.iou if score.maps else None] if overlap else []
            rows.append([score.label, f"{score.gmacs:.3g}", *map(_mean, figures)])
        return Brief(self._headline, columns, rows)

    @property
    def _headline(self) -> str:
        name, counted = Path(self.bundle.path).resolve().name, f"{self.data.images} images of '{self.data.name}'"
        found = f"{len(self.variants)} variants" if self.verdict is None else self.verdict.sentence
        return f"{name} ({self.bundle.profile}) on {counted}: {found}"


def _percent(share: Share | None) -> str:
    return "-" if share is None else f"{100 * share.value:.1f} %"


def _mean(mean: Mean | None) -> str:
    return "-" if mean is None else f"{mean.value:.4f}"


def check_eval_path(out: Path) -> None:
    """Fail early where a report could not be written in the end.

    Raises:
        OutputError: the file exists and is no such report, or cannot be written.
    """
    check_overwritable(out, "report of 'ztdeploy eval'", lambda: holds_kind(out, KIND))
