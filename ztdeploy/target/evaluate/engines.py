"""Running several engines over many images: each image is decoded once, and goes through all of them at once.

Where a runtime can be called from several threads, a worker decodes a few images and runs every engine on them by
itself, each engine with one thread of its own. Nothing then waits for a decoder, and no idle engine keeps threads
spinning beside a busy one. Other runtimes take turns, while the other workers decode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.cascade import CascadeSetting
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.preprocess_spec import Output
from ztdeploy.target.adaptive.cascade import Staged, Stages, cascade_of
from ztdeploy.target.adaptive.pieces import engine_opener
from ztdeploy.target.backends import get_backend
from ztdeploy.target.backends.base import MemoryMode
from ztdeploy.target.evaluate.answers import (
    ClassAnswers,
    ImageAnswers,
    MapAnswers,
    VectorAnswers,
    chosen,
    class_answers,
    joined,
    map_answers,
    spread,
    vector_answers,
)
from ztdeploy.target.evaluate.data import Decoded, decode
from ztdeploy.target.evaluate.maps import THRESHOLD
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.runner import BundleRunner, engine_of, load_engine

#: With more weights than that, all engines read one copy of them, which is slower.
_MOST_WEIGHTS_BYTES = 2**30
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Workload:
    """Which engines run, and how they are called."""

    bundle: Bundle  #: its files have been compared with their hashes
    variants: tuple[VariantRecord, ...]  #: dense first
    profile: str
    batch: int  #: images per call
    threads: int
    dense_profile: str | None = None  #: the profile of the first, dense engine, where that is another one
    cascade: bool = False  #: the bundle's cascade runs as well
    threshold: float = THRESHOLD  #: of maps, see `compare_maps`

    @property
    def setting(self) -> CascadeSetting | None:
        """How the cascade decides, where it runs."""
        return cascade_of(self.bundle, self.profile)[1] if self.cascade else None

    @property
    def rows(self) -> list[tuple[VariantRecord, ...]]:
        """What answers: each variant, and the stages of the cascade."""
        rows: list[tuple[VariantRecord, ...]] = [(variant,) for variant in self.variants]
        if self.cascade:
            stages = cascade_of(self.bundle, self.profile)[0].stages
            rows.append(tuple(self.bundle.variant(name=stage.variant) for stage in stages))
        return rows

    @property
    def profiles(self) -> list[str]:
        """The profile of each variant's engine."""
        return [self.dense_profile or self.profile, *[self.profile] * (len(self.variants) - 1)]

    @property
    def output(self) -> Output:
        return self.bundle.manifest.model.gives

    @property
    def answers(self) -> type[ImageAnswers]:
        """What is kept of what the engines give."""
        return {"logits": ClassAnswers, "maps": MapAnswers}.get(self.output, VectorAnswers)

    @property
    def concurrent(self) -> bool:
        manifest = self.bundle.manifest
        return all(get_backend(manifest.profiles[name].backend).concurrent for name in self.profiles)

    @property
    def memory(self) -> MemoryMode:
        pairs = zip(self.variants, self.profiles, strict=True)
        weights = [variant.graphs[profile].weights_bytes for variant, profile in pairs]
        return "shared" if sum(weights) > _MOST_WEIGHTS_BYTES and len(weights) > 1 else "speed"

    @property
    def digests(self) -> list[str]:
        """What tells each row's engines from all others, and of a cascade how it decides."""
        bundle, pairs = self.bundle, zip(self.variants, self.profiles, strict=True)
        digests = [bundle.engine_digest(engine_of(bundle, variant, profile)) for variant, profile in pairs]
        if self.cascade:
            digests.append(bundle.cascade_digest(self.profile))
        return digests


@contextmanager
def open_engines(work: Workload) -> Iterator[Callable[[Sequence[Path]], ImageAnswers]]:
    """Open all engines of a workload, and give a function that decodes images and runs all engines on them.

    Any thread may call the function. An image that cannot be read is a problem in its answers. It raises a ParityError
    where an engine gives something else than numbers.
    """
    threads, turn = (1, nullcontext()) if work.concurrent else (work.threads, Lock())
    with ExitStack() as stack:
        runners = stack.enter_context(open_runners(work, threads))
        stages = None
        if work.cascade:
            stages = Stages(work.bundle, work.profile, engine_opener(work.bundle, work.profile, threads, work.memory))
            stack.callback(stages.close)
        yield partial(_answer, work, runners, stages, turn)


@contextmanager
def open_runners(work: Workload, threads: int) -> Iterator[list[BundleRunner]]:
    """The engine of each variant of a workload."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                load_engine(
                    work.bundle,
                    variant=variant.name,
                    profile=profile,
                    threads=threads,
                    memory=work.memory,
                    verify=False,
                )
            )
            for variant, profile in zip(work.variants, work.profiles, strict=True)
        ]


def _answer(
    work: Workload,
    runners: Sequence[BundleRunner],
    stages: Stages | None,
    turn: AbstractContextManager[object],
    paths: Sequence[Path],
) -> ImageAnswers:
    manifest = work.bundle.manifest
    images = [decode(path, manifest.preprocess) for path in paths]
    problems = ["" if isinstance(image, Decoded) else image for image in images]
    good = [image for image in images if isinstance(image, Decoded)]
    names = [repr(str(path)) for path, problem in zip(paths, problems, strict=True) if not problem]
    # Without any, a blank image tells what shape answers have.
    taken = good or [Decoded(np.zeros(manifest.preprocess.shape, np.uint8), bytes(32))]
    pixels = np.stack([image.pixels for image in taken])
    content = np.stack([np.frombuffer(image.digest, np.uint8) for image in taken])
    answers: ImageAnswers
    if work.output == "maps":  # a few at a time, since each may take megabytes
        parts = [slice(at, at + work.batch) for at in range(0, len(pixels), work.batch)]
        found = [_map_answers(work, runners, turn, pixels[part], names[part], content[part]) for part in parts]
        return spread(chosen(joined(found), np.full(len(taken), bool(good))), problems)
    with turn:
        outputs: list[Outputs | Staged] = [_outputs(runner, pixels, names, work.batch) for runner in runners]
        if stages is not None and work.setting is not None:
            outputs.append(stages.run(pixels, names or ["a blank image"], work.setting.thresholds))
    if work.output == "logits":
        answers = class_answers(outputs, content, manifest.model.activation)
    else:
        answers = vector_answers(outputs, work.rows, manifest.model.architecture.patch_tokens, content)
    return spread(chosen(answers, np.full(len(taken), bool(good))), problems)


def _map_answers(
    work: Workload,
    runners: Sequence[BundleRunner],
    turn: AbstractContextManager[object],
    pixels: NDArray[np.uint8],
    names: Sequence[str],
    content: NDArray[np.uint8],
) -> MapAnswers:
    with turn:
        outputs = [runner.infer(pixels, names) for runner in runners]
    return map_answers(outputs, content, work.bundle.manifest.model.activation, work.threshold)


def _outputs(runner: BundleRunner, pixels: NDArray[np.uint8], names: Sequence[str], batch: int) -> Outputs:
    chunks = [slice(at, at + batch) for at in range(0, len(pixels), batch)]
    return Outputs.joined([runner.infer(pixels[chunk], names[chunk]) for chunk in chunks])


def in_order(
    items: Sequence[_Item], work: Callable[[_Item], _Result], workers: int, ahead: int = 2
) -> Generator[tuple[_Item, _Result], None, None]:
    """Work on items in several threads, and give results in the items' order.

    At most `ahead` items per worker are under way or wait to be taken. Where the caller stops, or work fails, nothing
    new is begun, and what is under way is waited for.
    """
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="evaluate") as pool:
        try:
            for item in items:
                if len(waiting) == workers * ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
                waiting.append((item, pool.submit(work, item)))
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
