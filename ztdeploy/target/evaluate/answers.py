"""What engines answer to a few images, small enough to be kept for many: best classes and divergences, cosines, or
figures of maps.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.cache import cache_errors
from ztdeploy.core.files import open_regular, write
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.preprocess_spec import Activation
from ztdeploy.target.adaptive.cascade import Staged
from ztdeploy.target.evaluate.maps import compare_maps
from ztdeploy.target.evaluate.patches import follow
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.postprocess import cosines, divergences, probabilities, same_answers, unit_vectors
from ztdeploy.target.runtime.runner import Answered

BEST = 5  #: classes that are kept of each answer
#: Fields that all variants have in common; their first axis is that of the images.
_COMMON: dict[str, tuple[str, int]] = {"content": ("u", 2), "problem": ("U", 1), "confidence": ("f", 2)}


@dataclass(frozen=True)
class ImageAnswers:
    """Answers of v rows to n images: of variants, dense first, and of a cascade behind them where one ran. An image
    that could not be read has zeros throughout.
    """

    #: The fields `[v, n, ...]` that a subclass adds: the kind of their type, and how many axes they have.
    OWN: ClassVar[dict[str, tuple[str, int]]] = {}
    content: NDArray[np.uint8]  #: `[n, 32]` sha256 of the files
    problem: NDArray[np.str_]  #: `[n]` why an image could not be read; empty where it could
    confidence: NDArray[np.float32]  #: `[n, S - 1]` of the cascade's stages, see `Staged`; S is 1 where none ran

    @property
    def readable(self) -> NDArray[np.bool_]:
        return np.equal(self.problem, "")

    def __len__(self) -> int:
        return len(self.problem)


@dataclass(frozen=True)
class ClassAnswers(ImageAnswers):
    """ImageAnswers of classifiers."""

    OWN = {"best": ("i", 3), "probability": ("f", 2), "same": ("b", 2), "kl": ("f", 2)}  # noqa: RUF012
    best: NDArray[np.int32]  #: `[v, n, 5]` classes, best first; fewer where the model has fewer
    probability: NDArray[np.float32]  #: `[v, n]` probability of the best class
    same: NDArray[np.bool_]  #: `[v, n]` whether the answer is dense's
    kl: NDArray[np.float64]  #: `[v, n]` divergence from dense in nats


@dataclass(frozen=True)
class VectorAnswers(ImageAnswers):
    """ImageAnswers of engines that give an embedding, or a vector for each of P positions."""

    OWN = {"cosine": ("f", 3), "filled": ("b", 3), "vectors": ("f", 3)}  # noqa: RUF012
    cosine: NDArray[np.float32]  #: `[v, n, P]` cosine to dense's vector; P is 1 for embeddings
    filled: NDArray[np.bool_]  #: `[v, n, P]` whether a position's own token is gone, and another stands for it
    vectors: NDArray[np.float32]  #: `[v, n, D]` embeddings of length 1; D is 0 where there are positions


@dataclass(frozen=True)
class MapAnswers(ImageAnswers):
    """ImageAnswers of engines that give a map."""

    OWN = {"figures": ("f", 3)}  # noqa: RUF012
    figures: NDArray[np.float64]  #: `[v, n, 5]` the fields of `MapFigures`; NaN: these maps have no such figure


_Answers = TypeVar("_Answers", bound=ImageAnswers)


def class_answers(
    outputs: Sequence[Outputs | Staged], content: NDArray[np.uint8], activation: Activation = "softmax"
) -> ClassAnswers:
    """What is kept of a classifier's outputs.

    Args:
        outputs: those of each row for the same n images, dense first; logits `[n, classes]`.
        content: `[n, 32]`.
    """
    logits = [one.logits for one in outputs]
    likely = [probabilities(own, activation) for own in logits]
    return ClassAnswers(
        # Of equal logits the first class is the best, as in argmax.
        best=np.stack([np.argsort(-own, axis=-1, kind="stable")[:, :BEST] for own in logits]).astype(np.int32),
        probability=np.stack([own.max(-1) for own in likely if own is not None]).astype(np.float32),
        same=np.stack([same_answers(logits[0], own, activation) for own in logits]),
        kl=np.stack([np.zeros(len(logits[0])), *(divergences(logits[0], own, activation) for own in logits[1:])]),
        content=content,
        problem=np.full(len(content), "", np.str_),
        confidence=_confidence(outputs[-1]),
    )


def vector_answers(
    outputs: Sequence[Outputs | Staged],
    variants: Sequence[Sequence[VariantRecord]],
    patches: int,
    content: NDArray[np.uint8],
) -> VectorAnswers:
    """What is kept of vectors.

    Args:
        outputs: those of each row for the same n images, dense first; embeddings `[n, D]`, or features `[n, P, D]`.
        variants: of each row: its own, or that of each stage of a cascade.
        patches: P; an embedding counts as one position.
        content: `[n, 32]`.
    """
    images, features = len(content), outputs[0].logits.ndim == 3
    like = [cosines(outputs[0].logits, own.logits).reshape(images, -1) for own in outputs]
    like[0][:] = 1.0  # to itself
    if features:
        filled = [filled_places(own, variant, patches) for own, variant in zip(outputs, variants, strict=True)]
        vectors = [np.empty((images, 0))] * len(outputs)
    else:
        filled = [np.zeros((images, 1), np.bool_)] * len(outputs)
        vectors = [unit_vectors(own.logits) for own in outputs]
    return VectorAnswers(
        cosine=np.stack(like).astype(np.float32),
        filled=np.stack(filled),
        vectors=np.stack(vectors).astype(np.float32),
        content=content,
        problem=np.full(images, "", np.str_),
        confidence=_confidence(outputs[-1]),
    )


def map_answers(
    outputs: Sequence[Outputs], content: NDArray[np.uint8], activation: Activation, threshold: float
) -> MapAnswers:
    """What is kept of maps.

    Args:
        outputs: those of each variant for the same n images, dense first; `[n, C, h, w]`.
        content: `[n, 32]`.
        threshold: see `compare_maps`.
    """
    dense = outputs[0].logits

    def figures(own: Outputs, image: int) -> list[float]:
        found = compare_maps(dense[image], own.logits[image], activation, threshold)
        return [np.nan if value is None else value for _, value in found]

    return MapAnswers(
        figures=np.array([[figures(own, image) for image in range(len(dense))] for own in outputs]),
        content=content,
        problem=np.full(len(content), "", np.str_),
        confidence=np.empty((len(content), 0), np.float32),
    )


def _confidence(last: Outputs | Staged) -> NDArray[np.float32]:
    return last.confidence.T if isinstance(last, Staged) else np.empty((len(last.logits), 0), np.float32)


def filled_places(found: Outputs | Staged, variants: Sequence[VariantRecord], patches: int) -> NDArray[np.bool_]:
    """`[n, patches]`: whether the token of each place went, so that its features are those of what stands for it."""
    filled = np.zeros((len(found.logits), patches), np.bool_)
    whole = np.arange(len(filled))
    for part in found.answers if isinstance(found, Staged) else [Answered(found, whole, 0)]:
        variant = variants[part.stage or 0]
        for image, place in enumerate(part.places.tolist() if variant.plan.layers else ()):
            filled[place] = ~follow(variant, part.outputs, image, patches)[-1].stays
    return filled


def joined(parts: Sequence[_Answers]) -> _Answers:
    """The answers of several parts, one after the other; at least one."""
    arrays = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts], axis=_axis(field.name))
        for field in fields(parts[0])
    }
    return type(parts[0])(**arrays)


def chosen(answers: _Answers, places: NDArray[np.bool_]) -> _Answers:
    """The answers to some of the images: `[n]`."""
    return _changed(answers, lambda array, axis: np.compress(places, array, axis=axis))


def spread(answers: _Answers, problems: Sequence[str]) -> _Answers:
    """The answers to the images that could be read, with zeros in the places of the others.

    Args:
        problems: per image why it could not be read; empty for those that answers are of, in their order.
    """
    places = np.equal(np.array(problems, np.str_), "")

    def wide(own: NDArray[Any], axis: int) -> NDArray[Any]:
        if own is answers.problem:
            return np.array(problems, np.str_)
        array = np.zeros((*own.shape[:axis], len(problems), *own.shape[axis + 1 :]), own.dtype)
        array[(slice(None),) * axis + (places,)] = own
        return array

    return _changed(answers, wide)


def _changed(answers: _Answers, change: Callable[[NDArray[Any], int], NDArray[Any]]) -> _Answers:
    """Every array changed along the axis of the images."""
    names = [field.name for field in fields(answers)]
    return type(answers)(**{name: change(getattr(answers, name), _axis(name)) for name in names})


def _axis(name: str) -> int:
    """The axis of a field along which the images are."""
    return 0 if name in _COMMON else 1


def keep_answers(answers: ImageAnswers, path: Path) -> None:
    """Write a file whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{field.name: getattr(answers, field.name) for field in fields(answers)})
    with cache_errors(path.parent):
        write(path, buffer.getbuffer())


def kept_answers(path: Path, kind: type[_Answers], variants: int, images: int) -> _Answers | None:
    """What `keep_answers` wrote; None where there is nothing, or something else."""
    expected = {**_COMMON, **kind.OWN}
    with suppress(OSError, ValueError, KeyError, BadZipFile, EOFError, MemoryError):
        with open_regular(path) as kept, np.load(kept, allow_pickle=False) as file:
            arrays: dict[str, NDArray[Any]] = {name: file[name] for name in expected}
        found = {name: (array.dtype.kind, array.ndim) for name, array in arrays.items()}
        counts = [(images,) if name in _COMMON else (variants, images) for name in arrays]
        right = all(array.shape[: len(count)] == count for array, count in zip(arrays.values(), counts, strict=True))
        if right and found == expected and arrays["content"].shape[1] == 32:
            return kind(**arrays)
    return None
