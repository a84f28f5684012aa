"""Running several engines over many images: each image is decoded once, and goes through all of them at once.

Where a runtime can be called from several threads, a worker decodes a few images and runs every engine on them by
itself, each engine with one thread of its own. Nothing then waits for a decoder, and no idle engine keeps threads
spinning beside a busy one. Other runtimes take turns, while the other workers decode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.preprocess_spec import Output
from ztdeploy.target.backends.base import MemoryMode
from ztdeploy.target.evaluate.answers import Answers, ClassAnswers, VectorAnswers, chosen, spread
from ztdeploy.target.evaluate.decoding import Decoded, decode
from ztdeploy.target.evaluate.summaries import class_answers, vector_answers
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.runner import BundleRunner, load

#: Runtimes whose engines may be called from several threads at once.
CONCURRENT = ("onnxruntime",)
#: With more weights than that, all engines read one copy of them, which is slower.
_MOST_WEIGHTS_BYTES = 2**30
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Workload:
    """Which engines, and how they are called."""

    bundle: Bundle  #: its files compared with their hashes already
    variants: tuple[str, ...]  #: dense first
    profile: str
    batch: int  #: images per call
    threads: int
    dense_profile: str | None = None  #: whose engine the first one is; None: the same. Else dense comes twice

    def profile_of(self, position: int) -> str:
        return self.dense_profile if self.dense_profile is not None and not position else self.profile

    @property
    def output(self) -> Output:
        return self.bundle.manifest.model.gives

    @property
    def answers(self) -> type[Answers]:
        """What is kept of what the engines give."""
        return ClassAnswers if self.output == "logits" else VectorAnswers

    @property
    def concurrent(self) -> bool:
        profiles = self.bundle.manifest.profiles
        return all(profiles[self.profile_of(position)].backend in CONCURRENT for position in range(len(self.variants)))

    @property
    def memory(self) -> MemoryMode:
        weights = [
            self.bundle.variant(name=name).graphs[self.profile_of(position)].weights_bytes
            for position, name in enumerate(self.variants)
        ]
        return "shared" if sum(weights) > _MOST_WEIGHTS_BYTES and len(weights) > 1 else "speed"


class Engines(AbstractContextManager["Engines"]):
    """All engines of a workload, open."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self._turn: AbstractContextManager[object] = nullcontext() if work.concurrent else Lock()
        self._open = ExitStack()
        self._runners: list[BundleRunner] = []
        threads = 1 if work.concurrent else work.threads
        with ExitStack() as opening:
            for position, name in enumerate(work.variants):
                runner = load(
                    work.bundle,
                    variant=name,
                    profile=work.profile_of(position),
                    threads=threads,
                    memory=work.memory,
                    verify=False,
                )
                self._runners.append(opening.enter_context(runner))
            self._open = opening.pop_all()

    def answer(self, paths: Sequence[Path]) -> Answers:
        """Decode images and run all engines on them; an image that cannot be read is a problem in the answers.

        Raises:
            ParityError: an engine gives something else than numbers.
        """
        images = [decode(path, self.work.bundle.manifest.preprocess) for path in paths]
        problems = ["" if isinstance(image, Decoded) else image for image in images]
        good = [image for image in images if isinstance(image, Decoded)]
        if not good:  # a blank image tells of what shape answers are
            shape = self.work.bundle.manifest.preprocess.shape
            blank = self._summary(self._outputs(np.zeros((1, *shape), np.uint8)), [bytes(32)])
            return spread(chosen(blank, np.zeros(1, np.bool_)), problems)
        readable = [repr(str(path)) for path, problem in zip(paths, problems, strict=True) if not problem]
        outputs = self._outputs(np.stack([image.pixels for image in good]), readable)
        return spread(self._summary(outputs, [image.digest for image in good]), problems)

    def _outputs(self, pixels: NDArray[np.uint8], names: Sequence[str] = ()) -> list[Outputs]:
        """Of each engine for n images; n at least 1."""
        chunks = [slice(at, at + self.work.batch) for at in range(0, len(pixels), self.work.batch)]
        with self._turn:
            return [
                Outputs.joined([runner.infer(pixels[chunk], names[chunk]) for chunk in chunks])
                for runner in self._runners
            ]

    def _summary(self, outputs: Sequence[Outputs], digests: Sequence[bytes]) -> Answers:
        content = np.stack([np.frombuffer(digest, np.uint8) for digest in digests])
        if self.work.answers is ClassAnswers:
            return class_answers(outputs, content, self.work.bundle.manifest.model.activation)
        variants = [self.work.bundle.variant(name=name) for name in self.work.variants]
        return vector_answers(outputs, variants, self.work.bundle.manifest.model.architecture.patch_tokens, content)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


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
