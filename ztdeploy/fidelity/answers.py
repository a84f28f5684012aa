"""What engines answer to a few images, small enough to be kept for millions: best classes and divergences."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ztdeploy.cache import cache_errors, write_whole

BEST = 5  #: classes that are kept of each answer


@dataclass(frozen=True)
class Answers:
    """Of v variants, dense first, to n images. An image that could not be read has zeros throughout."""

    best: NDArray[np.int32]  #: `[v, n, 5]` classes, best first; fewer where the model has fewer
    probability: NDArray[np.float32]  #: `[v, n]` of the best one
    kl: NDArray[np.float64]  #: `[v, n]` nats from dense
    content: NDArray[np.uint8]  #: `[n, 32]` sha256 of the files
    problem: NDArray[np.str_]  #: `[n]` why an image could not be read; empty where it could

    @property
    def readable(self) -> NDArray[np.bool_]:
        return np.equal(self.problem, "")

    def __len__(self) -> int:
        return len(self.problem)


def joined(parts: Sequence[Answers]) -> Answers:
    """One after the other; at least one."""
    return Answers(
        best=np.concatenate([part.best for part in parts], axis=1),
        probability=np.concatenate([part.probability for part in parts], axis=1),
        kl=np.concatenate([part.kl for part in parts], axis=1),
        content=np.concatenate([part.content for part in parts]),
        problem=np.concatenate([part.problem for part in parts]),
    )


def keep_answers(answers: Answers, path: Path) -> None:
    """Write a file whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{field.name: getattr(answers, field.name) for field in fields(Answers)})
    with cache_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, buffer.getbuffer())


def kept_answers(path: Path, variants: int, images: int) -> Answers | None:
    """What `keep_answers` wrote; None where there is nothing, or something else."""
    with suppress(OSError, ValueError, KeyError, BadZipFile, EOFError, MemoryError):
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, NDArray[Any]] = {field.name: file[field.name] for field in fields(Answers)}
        answers = Answers(**arrays)
        shapes = (answers.best.shape[:2], answers.probability.shape, answers.kl.shape)
        right = all(shape == (variants, images) for shape in shapes) and answers.content.shape == (images, 32)
        kinds = "".join(array.dtype.kind for array in arrays.values())
        if right and answers.problem.shape == (images,) and kinds == "iffuU":
            return answers
    return None
