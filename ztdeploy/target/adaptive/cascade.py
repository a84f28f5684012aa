"""Running a cascade: its cheapest stage on every image, later ones where that is not confident."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import WEIGHTS_FILE, Bundle
from ztdeploy.core.cascade import CascadeSetting
from ztdeploy.core.errors import BundleError, InputError, ParityError
from ztdeploy.core.manifest import CascadeRecord
from ztdeploy.core.names import CONFIDENCE, IMAGE, TOKENS
from ztdeploy.target.adaptive.guarantee import unlike
from ztdeploy.target.adaptive.pieces import Chained, Open, engine_opener
from ztdeploy.target.backends.base import MemoryMode, Runner
from ztdeploy.target.runtime.interface import Interface, Outputs, shape_fits, shape_words
from ztdeploy.target.runtime.parity import LOGIT_TOLERANCE, golden_pixels
from ztdeploy.target.runtime.postprocess import margins
from ztdeploy.target.runtime.preprocess import check_pixels, normalise
from ztdeploy.target.runtime.runner import Answered, ImageRunner, Lease, slices

_log = logging.getLogger(__name__)
#: After so many images, and each time that there are twice as many, their confidence is compared with the calibration
#: images'; after the last number counting starts again.
_FIRST_LOOK, _LAST_LOOK = 32, 1024
#: How often one look takes like images for unlike ones at first. It falls with the square of the times that counting
#: has started again, so that a runner that runs for ever does not warn in the end for having looked so often.
_LEVEL = 0.005


@dataclass(frozen=True)
class Staged:
    """What the stages of a cascade gave to the images of one call."""

    ran: tuple[Answered, ...]  #: by stage that ran, on the images that it ran on
    stage: NDArray[np.int64]  #: `[B]`: the stage that answered each image, from 0
    confidence: NDArray[np.float32]  #: `[S - 1, B]`: of each stage but the last; NaN where it did not run

    @property
    def answers(self) -> tuple[Answered, ...]:
        """By stage, for the images that it answered; only stages that answered any."""
        answered = ((one, np.flatnonzero(self.stage[one.places] == one.stage)) for one in self.ran)
        return tuple(
            Answered(one.outputs.of_images(own), one.places[own], one.stage) for one, own in answered if len(own)
        )

    @property
    def logits(self) -> NDArray[np.float32]:
        """The output for each image, `[B, ...]`."""
        found: NDArray[np.float32] = self.ran[0].outputs.logits.copy()
        for one in self.ran[1:]:
            found[one.places] = one.outputs.logits
        return found


class Stages(Lease):
    """The open pieces of a cascade. Any thread may call it; images of a call are regrouped for each stage."""

    def __init__(self, bundle: Bundle, profile: str, opened: Open) -> None:
        """
        Raises:
            BundleError: a piece takes or gives something else than it should.
        """
        super().__init__()
        manifest = bundle.manifest
        assert manifest.cascade is not None
        self._bundle, self._record, graph = bundle, manifest.cascade, manifest.cascade.prefix.graphs[profile]
        self._normalised, self._fixed = graph.image_input != "uint8", graph.batch
        self._size = graph.batch or max(manifest.profiles[profile].batch.sizes)
        self._tokens = (manifest.model.architecture.tokens, manifest.model.architecture.embed_dim)
        self._runners = list[Runner]()
        try:
            for piece in self._record.pieces:
                self._runners.append(opened(piece))
            self.variants = [bundle.variant(name=stage.variant) for stage in self._record.stages]
            self._interfaces = [Interface(manifest, variant, profile) for variant in self.variants]
            prefix, *tails = self._runners
            for interface, tail in zip(self._interfaces, tails, strict=True):
                self._check_declared(prefix, tail, last=tail is tails[-1])
                interface.check_declared(Chained(prefix, tail).signature, noted=tail is not tails[-1])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for runner in self._runners:
            runner.close()

    def _check_declared(self, prefix: Runner, tail: Runner, *, last: bool) -> None:
        """
        Raises:
            BundleError: a prefix or a tail hands over or takes something else than tokens, or has no confidence.
        """
        given, taken = prefix.signature.outputs, tail.signature.inputs
        for one in (*given, *taken):
            right = one.name == TOKENS and one.dtype == "float32" and shape_fits((None, *self._tokens), one.shape)
            if not right or len(given) > 1 or len(taken) > 1:
                raise self._damaged(f"hands over {one.name!r} {one.dtype} {shape_words(one.shape)}", self._tokens_words)
        if not last and CONFIDENCE not in {one.name for one in tail.signature.outputs}:
            raise self._damaged("has a stage that does not say how confident it is", f"an output {CONFIDENCE!r}")

    @property
    def _tokens_words(self) -> str:
        return f"{TOKENS!r} float32 [any, {self._tokens[0]}, {self._tokens[1]}]"

    def _damaged(self, found: str, expected: str) -> BundleError:
        return BundleError(f"the cascade of {self._bundle.root} {found}", expected, "copy or build the bundle again")

    def run(self, pixels: NDArray[np.uint8], names: Sequence[str], thresholds: Sequence[float]) -> Staged:
        """Run the stages on images, each on those that the stage before was not confident in.

        Args:
            pixels: uint8 `[B, H, W, C]`.
            names: what to call the images in an error.
            thresholds: of each stage but the last; inf sends every image on, -inf none.
        """
        count, (_prefix, *tails) = len(pixels), self._runners
        tokens, left = self._prefix(pixels), np.arange(count)
        reached = np.zeros(count, np.int64)
        confidence = np.full((len(thresholds), count), np.nan, np.float32)
        ran = list[Answered]()
        for stage, (tail, interface) in enumerate(zip(tails, self._interfaces, strict=True)):
            outputs, sure = self._tail(tail, interface, tokens[left], [names[place] for place in left.tolist()])
            stays = np.ones(len(left), np.bool_)
            if stage < len(thresholds):
                confidence[stage, left] = sure
                stays = sure >= thresholds[stage]
            reached[left[stays]] = stage
            ran.append(Answered(outputs, left, stage))
            left = left[~stays]
            if not len(left):
                break
        return Staged(tuple(ran), reached, confidence)

    def run_all(
        self, pixels: NDArray[np.uint8], names: Sequence[str]
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
        """The output of every stage for every image, and the confidence `[S - 1, B]` of each but the last."""
        tokens, (_prefix, *tails) = self._prefix(pixels), self._runners
        found = [self._tail(*one, tokens, names) for one in zip(tails, self._interfaces, strict=True)]
        return [outputs.logits for outputs, _ in found], np.stack([sure for _, sure in found[:-1]])

    def _prefix(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The tokens that are handed over, fp32 `[B, N, D]`."""
        feed: NDArray[Any] = normalise(pixels, self._bundle.manifest.preprocess) if self._normalised else pixels
        found = []
        for part in slices(len(feed), self._size):
            whole = self._filled(feed[part])
            tokens = self._runners[0].infer({IMAGE: whole}).get(TOKENS)
            right = isinstance(tokens, np.ndarray) and tokens.dtype == np.float32
            if tokens is None or not right or tokens.shape != (len(whole), *self._tokens):
                raise self._damaged("has a prefix that gives something else than tokens", self._tokens_words)
            found.append(tokens[: len(feed[part])])
        return np.concatenate(found)

    def _tail(
        self, tail: Runner, interface: Interface, tokens: NDArray[np.float32], names: Sequence[str]
    ) -> tuple[Outputs, NDArray[np.float32]]:
        """A stage's outputs, and its confidence `[B]`; the last stage's is not known, and 0."""
        outputs, sure = [], []
        for part in slices(len(tokens), self._size):
            whole = self._filled(tokens[part])
            raw = tail.infer({TOKENS: whole})
            outputs.append(interface.outputs(raw, len(whole), names[part]))
            last = interface is self._interfaces[-1]
            found = np.zeros(len(whole), np.float32) if last else raw.get(CONFIDENCE)
            if found is None or found.shape != (len(whole),) or not np.isfinite(found).all():
                raise self._damaged(
                    "has a stage that does not say how confident it is",
                    f"a finite number for each of {len(whole)} images",
                )
            sure.append(found[: len(names[part])])
        return Outputs.joined(outputs), np.concatenate(sure)

    def _filled(self, batch: NDArray[Any]) -> NDArray[Any]:
        """A fixed batch is filled up with copies, whose results are dropped."""
        missing = 0 if self._fixed is None else self._fixed - len(batch)
        return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch


class CascadeRunner(ImageRunner):
    """A cascade behind one call. It counts how many images went on, and warns where they are unlike the images that
    its guarantee comes from.
    """

    def __init__(self, bundle: Bundle, *, profile: str, threads: int, memory: MemoryMode, verify: bool) -> None:
        """
        Raises:
            InputError: the bundle has no cascade, or none that decides for this profile.
        """
        super().__init__(bundle, profile=profile, threads=threads, memory=memory, verify=verify)
        self.cascade, self.setting = cascade_of(bundle, profile)
        self._opening, self._counting = RLock(), RLock()
        self._counts = [0] * len(self.cascade.stages)
        self._seen, self._rounds, self.unlike = list[NDArray[np.float32]](), 1, False
        self._stages: Stages | None = self._open()

    @property
    def counts(self) -> tuple[int, ...]:
        """How many images each stage has answered so far."""
        with self._counting:
            return tuple(self._counts)

    def infer(self, pixels: NDArray[np.uint8], names: Sequence[str] = ()) -> Staged:
        """Run on resized and cropped pixels, uint8 `[B, H, W, C]`, as `BundleRunner.infer`.

        Args:
            names: what to call the images in an error; by default they are counted.

        Raises:
            BundleError, ParityError: a stage gives what it should not.
        """
        check_pixels(pixels, self.bundle.manifest.preprocess, least=1)
        count = len(pixels)
        images = [name or f"image {at + 1} of {count}" for at, name in enumerate(names or [""] * count)]
        stages = self._entered()
        try:
            return self._run(stages, pixels, images)
        finally:
            stages.leave()

    @contextmanager
    def _calling(self) -> Iterator[Callable[[NDArray[np.uint8], Sequence[str]], list[Answered]]]:
        stages = self._entered()
        try:
            yield lambda pixels, names: list(self._run(stages, pixels, names).answers)
        finally:
            stages.leave()

    def _run(self, stages: Stages, pixels: NDArray[np.uint8], names: Sequence[str]) -> Staged:
        found = stages.run(pixels, names, self.setting.thresholds)
        with self._counting:
            for stage, more in enumerate(np.bincount(found.stage, minlength=len(self._counts)).tolist()):
                self._counts[stage] += more
            self._look_at(found.confidence[0])
        return found

    def _look_at(self, confidence: NDArray[np.float32]) -> None:
        """Compare the first stage's confidence with what it was in the calibration images, now and then."""
        before = sum(map(len, self._seen))
        self._seen.append(confidence)
        now = before + len(confidence)
        looks = [_FIRST_LOOK << step for step in range((_LAST_LOOK // _FIRST_LOOK).bit_length())]
        if any(before < look <= now for look in looks):
            seen, guarantee = np.concatenate(self._seen), self.setting.guarantee
            level = _LEVEL / self._rounds**2
            if not self.unlike and unlike(seen, self.setting.quantiles, guarantee.images, level):
                self.unlike = True
                _log.warning("%s", self.warning)
        if now >= _LAST_LOOK:
            self._seen.clear()
            self._rounds += 1

    @property
    def warning(self) -> str | None:
        """What to tell a user whose images are unlike the calibration images; None: nothing says that they are."""
        if not self.unlike:
            return None
        return unlike_words(self.setting, sum(self.counts[1:]), sum(self.counts))

    def _open(self) -> Stages:
        files = {file for part in self.cascade.pieces for file in self.bundle.files_of_engine(part, self.profile)}
        self._check(sorted({*files, WEIGHTS_FILE}))
        for name in files:
            self.bundle.path(name)
        return Stages(self.bundle, self.profile, engine_opener(self.bundle, self.profile, self.threads, self.memory))

    def _entered(self) -> Stages:
        while True:
            stages = self._stages
            if stages is not None and stages.enter():
                return stages
            with self._opening:
                if self._stages is None:
                    self._stages = self._open()

    def close(self) -> None:
        with self._opening:
            stages, self._stages = self._stages, None
            if stages is not None:
                stages.retire()

    def __repr__(self) -> str:
        return f"CascadeRunner({self.bundle.name!r}, {self.cascade.chain!r}, profile={self.profile!r})"


def check_decisions(bundle: Bundle, profile: str, opened: Open) -> None:
    """Hold the confidence of all stages in the golden images as a batch against that in each image alone, and against
    their outputs where these tell it.

    Raises:
        BundleError: a piece takes or gives something else than it should.
        ParityError: it differs by more than the precision explains.
    """
    pixels, stages = golden_pixels(bundle), Stages(bundle, profile, opened)
    names = [f"golden image {place + 1}" for place in range(len(pixels))]
    try:
        outputs, together = stages.run_all(pixels, names)
        alone = [stages.run_all(pixels[at : at + 1], names[at : at + 1])[1] for at in range(len(pixels))]
    finally:
        stages.close()
    model, cascade = bundle.manifest.model, bundle.manifest.cascade
    assert cascade is not None
    known = [np.concatenate(alone, axis=1)]
    if cascade.signal == "margin":
        known += [np.stack([margins(logits, model.activation) for logits in outputs[:-1]])]
    apart = max(float(np.abs(together - one).max()) for one in known)
    most = LOGIT_TOLERANCE[cascade.prefix.graphs[profile].precision]
    if apart > most:
        raise ParityError(
            f"the cascade ({profile}) has a stage whose confidence in the golden images differs by {apart:.1e}",
            f"at most {most:.0e}",
            "copy or build the bundle again",
        )


def unlike_words(setting: CascadeSetting, went_on: int, total: int) -> str:
    """The warning that images are unlike the calibration images, of which so many went on from the first stage."""
    return (
        f"these images are unlike '{setting.guarantee.data}', on which the cascade was calibrated: {went_on} of {total}"
        f" went on from the first stage, where {100 * setting.shares[1]:.0f} % were expected; its bound on agreement"
        " is not promised for them; build again with --calib and images like these"
    )


def cascade_of(bundle: Bundle, profile: str) -> tuple[CascadeRecord, CascadeSetting]:
    """A bundle's cascade, and how it decides with the engines of a profile.

    Raises:
        InputError: there is none.
    """
    cascade = bundle.manifest.cascade
    if cascade is None:
        raise InputError(
            f"{bundle.root} has no cascade", "a bundle that was built with one", "build with --cascade 0.99 --calib DIR"
        )
    if profile not in cascade.settings:
        why = next((f": {one.given}" for one in bundle.manifest.failed if one.profile == profile), "")
        raise InputError(
            f"the cascade of {bundle.root} has no thresholds for profile '{profile}'{why}",
            f"one of: {', '.join(cascade.settings) or 'none'}",
            "build again where the engines of that profile run",
        )
    return cascade, cascade.settings[profile]
