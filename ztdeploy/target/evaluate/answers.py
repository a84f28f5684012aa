"""What engines answer to a few images, small enough to be kept for many: best classes and divergences, or cosines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.cache import cache_errors
from ztdeploy.core.files import open_regular, write

BEST = 5  #: classes that are kept of each answer
#: Fields of which all variants have one in common.
_COMMON: dict[str, tuple[str, int]] = {"content": ("u", 2), "problem": ("U", 1)}


@dataclass(frozen=True)
class Answers:
    """Of v variants, dense first, to n images. An image that could not be read has zeros throughout."""

    #: Of a subclass's fields `[v, n, ...]`: the kind of their type, and how many axes they have.
    OWN: ClassVar[dict[str, tuple[str, int]]] = {}
    content: NDArray[np.uint8]  #: `[n, 32]` sha256 of the files
    problem: NDArray[np.str_]  #: `[n]` why an image could not be read; empty where it could

    @property
    def readable(self) -> NDArray[np.bool_]:
        return np.equal(self.problem, "")

    def __len__(self) -> int:
        return len(self.problem)


@dataclass(frozen=True)
class ClassAnswers(Answers):
    """Of classifiers."""

    OWN: ClassVar[dict[str, tuple[str, int]]] = {
        "best": ("i", 3),
        "probability": ("f", 2),
        "same": ("b", 2),
        "kl": ("f", 2),
    }
    best: NDArray[np.int32]  #: `[v, n, 5]` classes, best first; fewer where the model has fewer
    probability: NDArray[np.float32]  #: `[v, n]` of the best one
    same: NDArray[np.bool_]  #: `[v, n]` whether the answer is dense's
    kl: NDArray[np.float64]  #: `[v, n]` nats from dense


@dataclass(frozen=True)
class VectorAnswers(Answers):
    """Of engines that give an embedding, or a vector for each of P positions."""

    OWN: ClassVar[dict[str, tuple[str, int]]] = {"cosine": ("f", 3), "filled": ("b", 3), "vectors": ("f", 3)}
    cosine: NDArray[np.float32]  #: `[v, n, P]` to dense's vector; P is 1 for embeddings
    filled: NDArray[np.bool_]  #: `[v, n, P]` whether a position's own token is gone, and another stands for it
    vectors: NDArray[np.float32]  #: `[v, n, D]` embeddings of length 1; D is 0 where there are positions


_Answers = TypeVar("_Answers", bound=Answers)


def joined(parts: Sequence[_Answers]) -> _Answers:
    """One after the other; at least one."""
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=_axis(name)) for name in _names(parts[0])
    }
    return type(parts[0])(**arrays)


def chosen(answers: _Answers, places: NDArray[np.bool_]) -> _Answers:
    """Those to some of the images: `[n]`."""
    arrays = {name: np.compress(places, getattr(answers, name), axis=_axis(name)) for name in _names(answers)}
    return type(answers)(**arrays)


def spread(answers: _Answers, problems: Sequence[str]) -> _Answers:
    """Those to the images that could be read, with zeros in the places of the others.

    Args:
        problems: per image why it could not be read; empty for those that answers are of, in their order.
    """
    places = np.equal(np.array(problems, np.str_), "")

    def wide(name: str) -> NDArray[Any]:
        own, axis = getattr(answers, name), _axis(name)
        array = np.zeros((*own.shape[:axis], len(problems), *own.shape[axis + 1 :]), own.dtype)
        array[(slice(None),) * axis + (places,)] = own
        return array

    arrays = {name: wide(name) for name in _names(answers) if name != "problem"}
    return type(answers)(**arrays, problem=np.array(problems, np.str_))


def keep_answers(answers: Answers, path: Path) -> None:
    """Write a file whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: getattr(answers, name) for name in _names(answers)})
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


def _names(answers: Answers) -> list[str]:
    return [field.name for field in fields(answers)]


def _axis(name: str) -> int:
    """Along which the images are."""
    return 0 if name in _COMMON else 1
