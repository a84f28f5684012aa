"""From kept cosines and embeddings to the figures of a report. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.errors import InputError
from ztdeploy.target.evaluate.answers import VectorAnswers
from ztdeploy.target.evaluate.eval_report import Far, Gallery, Likeness, Mean, Place, Positions, Quantile, Recall
from ztdeploy.target.evaluate.retrieval import first_hits, neighbours, overlaps, with_company
from ztdeploy.target.evaluate.scoring import WORST, change, share
from ztdeploy.target.evaluate.statistics import mean_interval, quantile_interval

#: Neighbours by default.
RECALL_AT = (1, 5, 10)
LOW = 0.05  #: the quantile of cosines that a report has


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


def likeness(answers: VectorAnswers, position: int, images: Sequence[str], seed: int) -> Likeness:
    """One variant against dense.

    Args:
        images: their names.
    """
    cosine = answers.cosine[position].astype(np.float64)
    by_image = cosine.mean(axis=1)
    places = None
    if not answers.vectors.shape[-1]:
        places = _positions(cosine, answers.filled[position], images, seed)
    worst = np.argsort(by_image, kind="stable")[:WORST]
    return Likeness(
        mean=_mean(by_image, seed),
        p5=Quantile(value=float(np.quantile(cosine, LOW)), interval=quantile_interval(cosine, LOW)),
        lowest=float(cosine.min()),
        furthest=tuple(Far(image=images[one], cosine=float(by_image[one])) for one in worst if by_image[one] < 1),
        positions=places,
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
    """Over the images that have such positions, each by its mean: a schedule leaves all with as many."""
    counts = where.sum(axis=1)
    having = counts > 0
    if not having.any():
        return None
    return _mean(np.where(where, cosine, 0).sum(axis=1)[having] / counts[having], seed)


def _mean(values: NDArray[np.float64], seed: int) -> Mean:
    return Mean(value=float(values.mean()), interval=mean_interval(values, seed=seed))


class Finder:
    """What the embeddings of each variant find; dense's neighbours are looked for once."""

    def __init__(
        self, vectors: NDArray[np.float32], accepted: Sequence[frozenset[int]] | None, counts: Sequence[int], seed: int
    ) -> None:
        """
        Args:
            vectors: `[v, n, D]` of length 1, dense first.
            accepted: the classes of each image; None where they are not labelled.
            counts: of neighbours to look at; each at most n - 1.
        """
        self._vectors, self._accepted, self._counts, self._seed = vectors, accepted, counts, seed
        self._asking = None if accepted is None else with_company(accepted)
        self._dense_near = self._near(0, 0) if counts else np.empty((vectors.shape[1], 0), np.int64)
        self._dense_first = self._first(self._dense_near)

    def recalls(self, position: int) -> tuple[Recall, ...]:
        """Of one variant, in a gallery of its own and in dense's; of dense, in its own."""
        if not self._counts:
            return ()
        if not position:
            return self._all("own", self._dense_near, self._dense_first, dense=True)
        own, crossed = self._near(position, position), self._near(position, 0)
        return (*self._all("own", own, self._first(own)), *self._all("dense", crossed, self._first(crossed)))

    def _near(self, queries: int, gallery: int) -> NDArray[np.int64]:
        return neighbours(self._vectors[queries], self._vectors[gallery], max(self._counts))

    def _first(self, near: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Of the images whose class others have as well; None where there are none."""
        if self._accepted is None or self._asking is None or not self._asking.any():
            return None
        return first_hits(near, self._accepted)[self._asking]

    def _all(
        self, gallery: Gallery, near: NDArray[np.int64], first: NDArray[np.int64] | None, *, dense: bool = False
    ) -> tuple[Recall, ...]:
        return tuple(self._one(gallery, near, first, count, dense=dense) for count in self._counts)

    def _one(
        self, gallery: Gallery, near: NDArray[np.int64], first: NDArray[np.int64] | None, count: int, *, dense: bool
    ) -> Recall:
        changed = None
        if first is not None and self._dense_first is not None and not dense:
            changed = change(first < count, self._dense_first < count)
        return Recall(
            k=count,
            gallery=gallery,
            recall=None if first is None else share(first < count),
            change=changed,
            overlap=None if dense else _mean(overlaps(near[:, :count], self._dense_near[:, :count]), self._seed),
        )
