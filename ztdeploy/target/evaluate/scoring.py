"""From answers and labels to the figures of a report. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.errors import InputError
from ztdeploy.target.evaluate.answers import ClassAnswers, MapAnswers, VectorAnswers
from ztdeploy.target.evaluate.eval_report import (
    AgainstDense,
    Answer,
    Apart,
    Change,
    Far,
    FarMap,
    Likeness,
    MapFigures,
    MapNearness,
    Mean,
    Place,
    Positions,
    Quantile,
    Recall,
    Share,
)
from ztdeploy.target.evaluate.statistics import mean_interval, paired_interval, quantile_interval
from ztdeploy.target.measure.statistics import wilson_interval

WORST = 10  #: images that a report names per variant
#: How many neighbours are looked at by default.
RECALL_AT = (1, 5, 10)
LOW = 0.05  #: the quantile of cosines that a report has
#: Similarities that are held at once.
_AT_ONCE = 8_000_000


def share(right: NDArray[np.bool_]) -> Share:
    count, total = int(right.sum()), len(right)
    return Share(count=count, total=total, interval=wilson_interval(count, total))


def mean(values: NDArray[np.float64], seed: int) -> Mean:
    """The mean over images: one value each, `[n]`."""
    return Mean(value=float(values.mean()), interval=mean_interval(values, seed=seed))


def hits(best: NDArray[np.int32], accepted: Sequence[frozenset[int]]) -> NDArray[np.bool_]:
    """Whether any of an image's classes `[n, k]` is accepted: `[n]`."""
    return np.array([not right.isdisjoint(row) for row, right in zip(best.tolist(), accepted, strict=True)], np.bool_)


def change(variant: NDArray[np.bool_], dense: NDArray[np.bool_]) -> Change:
    """How the share of right answers `[n]` differs, the images being the same."""
    gained, lost, total = int((variant & ~dense).sum()), int((dense & ~variant).sum()), len(dense)
    interval = paired_interval(gained, lost, total)
    return Change(gained=gained, lost=lost, value=(gained - lost) / total, interval=interval)


# -------------------- classes


def against_dense(
    answers: ClassAnswers,
    position: int,
    images: Sequence[str],
    accepted: Sequence[frozenset[int]] | None,
    names: Sequence[str] | None,
    seed: int,
) -> AgainstDense:
    """One variant of the answers, all of whose images could be read, against dense.

    Args:
        images: their names.
        accepted: what counts as right for each; None where they are not labelled.
        names: the names of the classes, if they have any.
    """
    first, kl = answers.best[:, :, :1], answers.kl[position]

    def name_of(index: int) -> str:
        return names[index] if names else f"class {index}"

    def answer(variant: int, image: int) -> Answer:
        index, probability = int(first[variant, image, 0]), float(answers.probability[variant, image])
        return Answer(index=index, name=name_of(index), probability=round(probability, 6))

    return AgainstDense(
        agreement=share(answers.same[position]),
        kl=mean(kl, seed),
        change=None if accepted is None else change(hits(first[position], accepted), hits(first[0], accepted)),
        worst=tuple(
            Apart(
                image=images[image],
                kl=float(kl[image]),
                dense=answer(0, image),
                variant=answer(position, image),
                labels=() if accepted is None else tuple(map(name_of, sorted(accepted[image]))),
            )
            for image in np.argsort(-kl, kind="stable")[:WORST].tolist()
            if kl[image] > 0
        ),
    )


# -------------------- vectors


def likeness(answers: VectorAnswers, position: int, images: Sequence[str], seed: int) -> Likeness:
    """How alike one variant's vectors are to dense's.

    Args:
        images: their names.
    """
    cosine = answers.cosine[position].astype(np.float64)
    by_image = cosine.mean(axis=1)
    embeddings = answers.vectors.shape[-1] > 0
    return Likeness(
        mean=mean(by_image, seed),
        p5=Quantile(value=float(np.quantile(cosine, LOW)), interval=quantile_interval(cosine, LOW)),
        lowest=float(cosine.min()),
        furthest=tuple(
            Far(image=images[one], cosine=float(by_image[one]))
            for one in np.argsort(by_image, kind="stable")[:WORST].tolist()
            if by_image[one] < 1
        ),
        positions=None if embeddings else _positions(cosine, answers.filled[position], images, seed),
    )


def _positions(cosine: NDArray[np.float64], filled: NDArray[np.bool_], images: Sequence[str], seed: int) -> Positions:
    image, place = np.unravel_index(int(cosine.argmin()), cosine.shape)
    return Positions(
        kept=_mean_where(cosine, ~filled, seed),
        filled=_mean_where(cosine, filled, seed),
        filled_share=float(filled.mean()),
        lowest=Place(image=images[int(image)], position=int(place), cosine=float(cosine.min())),
        mean=tuple(cosine.mean(axis=0).tolist()),
        filled_at=tuple(filled.mean(axis=0).tolist()),
    )


def _mean_where(cosine: NDArray[np.float64], where: NDArray[np.bool_], seed: int) -> Mean | None:
    """The mean over the images that have such positions; each image counts by its own mean."""
    counts = where.sum(axis=1)
    having = counts > 0
    return mean(np.where(where, cosine, 0).sum(axis=1)[having] / counts[having], seed) if having.any() else None


# -------------------- maps


def map_nearness(answers: MapAnswers, position: int, images: Sequence[str], seed: int) -> MapNearness:
    """How near one variant's maps are to dense's.

    Args:
        images: their names.
    """
    figures = dict(zip(MapFigures.model_fields, answers.figures[position].T, strict=True))
    known = {name: values for name, values in figures.items() if not np.isnan(values).any()}
    apart = -known["iou"] if "iou" in known else known["error"]
    return MapNearness(
        **{name: mean(known[name], seed) if name in known else None for name in figures},
        furthest=tuple(
            FarMap(image=images[one], **{name: float(known[name][one]) if name in known else None for name in figures})
            for one in np.lexsort((-known["error"], -apart))[:WORST].tolist()
            if known["error"][one] > 0
        ),
    )


# -------------------- embeddings that find images, each image asking for its nearest among all others


def recall_counts(asked: Sequence[int], images: int) -> tuple[int, ...]:
    """How many neighbours to look at: what is asked for, or the usual as far as there are so many.

    Raises:
        InputError: one asked for is none, or more than there are other images.
    """
    for count in asked:
        if not 1 <= count < images:
            raise InputError(
                f"--recall-at {count} with {images} images",
                f"from 1 to {images - 1}, the other images" if images > 1 else "at least 2 images",
                "give fewer neighbours, or more images",
            )
    return tuple(sorted(set(asked))) or tuple(count for count in RECALL_AT if count < images)


def recalls(
    vectors: NDArray[np.float32], accepted: Sequence[frozenset[int]] | None, counts: Sequence[int], seed: int
) -> list[tuple[Recall, ...]]:
    """What each variant's embeddings find among its own embeddings, and among dense's; dense is asked once.

    Args:
        vectors: `[v, n, D]` of length 1, dense first.
        accepted: the classes of each image; None where they are not labelled.
        counts: how many neighbours to look at; each at most n - 1.
    """
    if not counts:
        return [()] * len(vectors)
    asking = None if accepted is None else with_company(accepted)
    dense = vectors[0]
    dense_near = neighbours(dense, dense, max(counts))

    def first(near: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """First hits of the images that share their class with another one; None without such images."""
        return first_hits(near, accepted)[asking] if accepted and asking is not None and asking.any() else None

    dense_first = first(dense_near)
    found = []
    for position, own in enumerate(vectors):
        galleries = {"own": own, "dense": dense} if position else {"own": own}
        scored = []
        for gallery, others in galleries.items():
            near = neighbours(own, others, max(counts)) if position else dense_near
            places = first(near)
            for count in counts:
                right = None if places is None else places < count
                changed = None
                if position and right is not None and dense_first is not None:
                    changed = change(right, dense_first < count)
                overlap = mean(overlaps(near[:, :count], dense_near[:, :count]), seed) if position else None
                scored.append(
                    Recall(
                        k=count,
                        gallery=gallery,
                        recall=None if right is None else share(right),
                        change=changed,
                        overlap=overlap,
                    )
                )
        found.append(tuple(scored))
    return found


def neighbours(queries: NDArray[np.float32], gallery: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The nearest of a gallery by cosine, nearest first; of equals, the one that comes first. Never the image itself.

    Args:
        queries, gallery: `[n, D]` of length 1, of the same images in the same order.
        count: from 1 to n - 1.

    Returns:
        `[n, count]` indices.
    """
    images, rows = len(queries), max(1, _AT_ONCE // len(queries))
    found = np.empty((images, count), np.int64)
    for start in range(0, images, rows):
        part = queries[start : start + rows] @ gallery.T
        own = np.arange(len(part))
        part[own, start + own] = -np.inf
        near = np.sort(np.argpartition(-part, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(part, near, 1), axis=1, kind="stable")
        found[start : start + len(part)] = np.take_along_axis(near, order, 1)
    return found


def with_company(accepted: Sequence[frozenset[int]]) -> NDArray[np.bool_]:
    """`[n]`: whether any other image has one of an image's classes; without, nothing could be found for it."""
    counts = Counter(label for one in accepted for label in one)
    return np.array([any(counts[label] > 1 for label in one) for one in accepted], np.bool_)


def first_hits(near: NDArray[np.int64], accepted: Sequence[frozenset[int]]) -> NDArray[np.int64]:
    """`[n]`: at which place from 0 the first neighbour with one of an image's classes is; k where none of k has."""
    most = near.shape[1]
    return np.array(
        [
            next((place for place, other in enumerate(row) if not own.isdisjoint(accepted[other])), most)
            for own, row in zip(accepted, near.tolist(), strict=True)
        ],
        np.int64,
    )


def overlaps(near: NDArray[np.int64], dense: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of each image's k neighbours that are among dense's k as well: two `[n, k]` give `[n]`."""
    return np.array(
        [len(set(own) & set(theirs)) / len(own) for own, theirs in zip(near.tolist(), dense.tolist(), strict=True)]
    )
