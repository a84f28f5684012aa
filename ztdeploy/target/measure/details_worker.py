"""The process in which one engine is looked into, or a few blocks are timed; nothing else runs in it.

Started by `measure.details`; answers each `DetailsOrder` on standard input with an `OperatorProfile` or a `Staircase`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.errors import BundleError
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.names import TOKENS
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.records import Record, from_json
from ztdeploy.core.setting import Setting
from ztdeploy.target.backends import get_backend
from ztdeploy.target.backends.base import Insight, Runner
from ztdeploy.target.measure.operators import take_apart
from ztdeploy.target.measure.staircase import find_treads, token_counts
from ztdeploy.target.measure.sweep_report import OperatorProfile, Staircase, TokenStep
from ztdeploy.target.measure.turns import milliseconds, turn_orders
from ztdeploy.target.measure.worker import prepare, reply
from ztdeploy.target.runtime.runner import BundleRunner, stored_engine

#: Calls of which the first ones still allocate.
_WARM_UP = 3
_MOST_CALLS, _FEWEST_CALLS = 20, 5
#: A round of the staircase takes each count once.
_MOST_ROUNDS, _FEWEST_ROUNDS = 40, 7
_MOST_COUNTS = 400
#: About what a call takes, as a share of the longest, where counts lie between a quarter of it and all of it.
_MEAN = 0.6


class DetailsOrder(Record):
    """What to look into."""

    bundle: Path
    profile: str
    variant: str | None  #: whose operators; None: the token staircase
    image_size: ImageSize  #: the bundle's
    batch: int
    threads: int
    seconds: float  #: about what it may take, beyond starting

    @property
    def setting(self) -> Setting:
        return Setting(self.image_size, self.batch, self.threads)

    @property
    def label(self) -> str:
        what = "the token staircase" if self.variant is None else f"the operators of {self.variant}"
        return f"{what} at {self.setting}"


def main() -> None:
    """Carry out orders until standard input ends."""
    answers = prepare()
    for line in sys.stdin:
        order = from_json(DetailsOrder, line)
        carry_out = partial(climb, order) if order.variant is None else partial(take_profile, order, order.variant)
        reply(answers, carry_out)


def take_profile(order: DetailsOrder, name: str) -> OperatorProfile:
    """An engine's operator profile.

    Raises:
        ZtdeployError: the engine cannot be loaded, has changed, or its runtime's account cannot be read.
    """
    bundle = read_bundle(order.bundle)
    variant = bundle.variant(name=name)
    engine = stored_engine(bundle, variant, order.profile)
    bundle.verify_files(bundle.files_of_engine(variant, order.profile))
    runner = BundleRunner(bundle, profile=order.profile, threads=order.threads, memory="speed", verify=False)
    spec = bundle.manifest.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (order.batch, *spec.shape), dtype=np.uint8)
    with scratch_folder() as folder:
        insight = insight_of(bundle, order.profile)
        profiled = insight.load_profiled(engine, threads=order.threads, folder=folder)
        runner.adopt(name, profiled)
        for _ in range(_WARM_UP):
            runner.infer(pixels)
        begun, done = time.monotonic(), 0
        while done < _FEWEST_CALLS or (done < _MOST_CALLS and time.monotonic() - begun < order.seconds):
            runner.infer(pixels)
            done += 1
        return take_apart(profiled.finish()[-done:], name, order.setting)


def climb(order: DetailsOrder) -> Staircase:
    """The time of the bundle's blocks at many token counts, which take turns in every round.

    Raises:
        ZtdeployError: the blocks' graph is missing, has changed, or cannot be run.
    """
    bundle = read_bundle(order.bundle)
    if order.profile not in bundle.manifest.blocks:
        raise BundleError(
            f"{bundle.root} has no blocks of their own", "those of a newer build", "build the bundle again"
        )
    blocks = bundle.manifest.blocks[order.profile]
    bundle.verify_files(bundle.files_of_graph(blocks.file))
    runner = insight_of(bundle, order.profile).load_graph(bundle.path(blocks.file), threads=order.threads)
    architecture = bundle.manifest.model.architecture
    call = _timed_call(runner, order.batch, architecture.embed_dim)
    longest = median(call(architecture.tokens) for _ in range(_FEWEST_ROUNDS))
    affordable = order.seconds * 1000 / (_MEAN * longest * (1 + _FEWEST_ROUNDS))
    counts = token_counts(architecture.tokens, max(2, min(_MOST_COUNTS, int(affordable))))
    rounds = _rounds(call, counts, order.seconds)
    points = [median(own[place] for own in rounds) / blocks.count for place in range(len(counts))]
    return Staircase(
        image_size=bundle.manifest.preprocess.image_size,
        batch=order.batch,
        threads=order.threads,
        points=tuple(TokenStep(tokens=n, block_ms=round(ms, 5)) for n, ms in zip(counts, points, strict=True)),
        treads=find_treads(counts, rounds),
        rounds=len(rounds),
    )


def _timed_call(runner: Runner, batch: int, width: int) -> Callable[[int], float]:
    """Milliseconds of one call of the blocks, by the number of tokens."""

    @cache
    def feeds(tokens: int) -> dict[str, Any]:
        shape = (batch, tokens, width)
        return {TOKENS: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}

    def call(tokens: int) -> float:
        given = feeds(tokens)
        return milliseconds(lambda: runner.infer(given))

    return call


def _rounds(call: Callable[[int], float], counts: tuple[int, ...], seconds: float) -> list[list[float]]:
    """Per round, one time per count; each round in an order of its own, so that drift hits all alike."""
    rounds: list[list[float]] = []
    begun = time.monotonic()
    for order in turn_orders(len(counts), 1 + _MOST_ROUNDS, seed=0):
        times = {place: call(counts[place]) for place in order}
        rounds.append([times[place] for place in range(len(counts))])
        if len(rounds) > _FEWEST_ROUNDS and time.monotonic() - begun > seconds:
            break
    return rounds[1:]  # the first one allocates


def insight_of(bundle: Bundle, profile: str) -> Insight:
    """
    Raises:
        BundleError: the profile's runtime offers none.
    """
    name = bundle.manifest.profiles[profile].backend
    backend = get_backend(name)
    if not isinstance(backend, Insight):
        raise BundleError(
            f"engines of {name}, which say nothing about their parts", "ONNX Runtime's", "use --no-details"
        )
    return backend


if __name__ == "__main__":
    main()
