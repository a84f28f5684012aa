"""Running a bundle: load an engine, pre-process, infer, post-process. No torch, no timm, no onnx."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from threading import Lock, RLock
from types import TracebackType
from typing import TypedDict, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core import arguments
from ztdeploy.core.bundle import WEIGHTS_FILE, Bundle, read_bundle
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, InputError
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.manifest import EngineRecord, GraphRecord, PartRecord, VariantRecord
from ztdeploy.core.names import IMAGE
from ztdeploy.target.backends import first_that_runs, get_backend
from ztdeploy.target.backends.base import MemoryMode, Runner, StoredEngine
from ztdeploy.target.runtime.images import Images, single_images
from ztdeploy.target.runtime.interface import Interface, Outputs
from ztdeploy.target.runtime.postprocess import Prediction, kept_patches, top_labels
from ztdeploy.target.runtime.preprocess import check_pixels, load_pixels, normalise

#: How many images of one call are decoded before the engine runs on them.
_READ_AT_A_TIME = 64


_Runner = TypeVar("_Runner", bound="ImageRunner")


class Lease(ABC):
    """Something open that calls enter and leave. Once retired, nobody enters any more, and whoever leaves last closes
    it.
    """

    def __init__(self) -> None:
        self._lock, self._calls, self._retired = Lock(), 0, False

    @abstractmethod
    def close(self) -> None:
        """Free what it holds."""

    def enter(self) -> bool:
        """Whether a call may use it; whoever got True must leave."""
        with self._lock:
            self._calls += not self._retired
            return not self._retired

    def leave(self) -> None:
        with self._lock:
            self._calls -= 1
            last = self._retired and not self._calls
        if last:
            self.close()

    def retire(self) -> None:
        """Let no further call in, and close when the last one has left. Once is enough."""
        with self._lock:
            last = not self._retired and not self._calls
            self._retired = True
        if last:
            self.close()


class OpenEngine(Lease):
    """All that a call must know of an engine, so that it needs to look nothing up while others switch."""

    def __init__(
        self, variant: VariantRecord, graph: GraphRecord, interface: Interface, runner: Runner, name: str = ""
    ) -> None:
        super().__init__()
        self.variant, self.graph, self.interface, self.runner = variant, graph, interface, runner
        self.name = name  #: under which it is kept open

    def close(self) -> None:
        self.runner.close()


@dataclass(frozen=True)
class Answered:
    """What some images of a call got from one variant."""

    outputs: Outputs
    places: NDArray[np.intp]  #: `[m]`: which images of the call these are
    stage: int | None = None  #: of a cascade, counted from 0


class ImageRunner(ABC):
    """From images to predictions: pre-processing, names of classes, and files that match their hashes. What runs on
    pixels is up to subclasses.
    """

    def __init__(self, bundle: Bundle, *, profile: str, threads: int, memory: MemoryMode, verify: bool) -> None:
        self.bundle, self.profile, self.threads, self.memory = bundle, profile, threads, memory
        self._verify, self._verified = verify, set[str]()
        if bundle.manifest.class_names is not None:
            self._check([bundle.manifest.class_names])
        self._names = class_names(bundle)

    @property
    def _largest_batch(self) -> int:
        return max(self.bundle.manifest.profiles[self.profile].batch.sizes)

    @abstractmethod
    def _calling(self) -> AbstractContextManager[Callable[[NDArray[np.uint8], Sequence[str]], list[Answered]]]:
        """A context in which pixels, uint8 `[B, H, W, C]`, with names of their images, get answers."""

    @abstractmethod
    def close(self) -> None:
        """Close every engine, each when the calls that use it have ended; the next call opens one again."""

    def __call__(self, images: Images, *, top: int = 5, threshold: float | None = None) -> list[Prediction]:
        """Run the engine on one image or many.

            runner("photo.jpg")[0].label
            for prediction in runner("photos", top=1):
                print(prediction.image, prediction.label, prediction.probability)

        Args:
            images: a path of an image or of a folder, the bytes of an image file, a PIL image, an array or a tensor,
                uint8 `[H, W, 3]` or `[N, H, W, 3]`; or a list of these. See `runtime.images.single_images`.
            top: how many labels an image gets at most, the likeliest first.
            threshold: the least probability of a label, from 0 to 1; by default any.

        Returns:
            One `Prediction` for each image, in order; of a folder in the order of names.

        Raises:
            ImageError: an image cannot be read, or is none; says which shape and dtype was expected.
            InputError: `top` is no whole number, or negative; or a threshold where there are no probabilities.
            ParityError: the engine gives what cannot be right.
        """
        manifest = self.bundle.manifest
        top, least = arguments.whole_number("top", top, arguments.CLASSES), self._threshold(threshold)
        if not manifest.model.architecture.num_classes:
            top = 0  # the output is no answer but an embedding, features or a map
        sources = single_images(images, manifest.preprocess.channels)
        if not sources:
            return []
        names = [str(source) if isinstance(source, str | Path) else None for source in sources]
        counted = [f"image {at + 1} of {len(sources)}" if name is None else repr(name) for at, name in enumerate(names)]
        found = dict[int, Prediction]()
        with self._calling() as call:
            for part in slices(len(sources), _READ_AT_A_TIME):
                for one in call(load_pixels(sources[part], manifest.preprocess), counted[part]):
                    for index, place in enumerate(one.places.tolist()):
                        logits = one.outputs.logits[index]
                        found[part.start + place] = Prediction(
                            top_labels(logits, self._names, top, manifest.model.activation, threshold=least)
                            if top
                            else (),
                            logits,
                            kept_patches(one.outputs.kept, index, manifest.model.architecture.prefix_tokens),
                            image=names[part][place],
                            gives=manifest.model.gives,
                            stage=one.stage,
                        )
        return [found[place] for place in sorted(found)]

    def _threshold(self, given: float | None) -> float | None:
        """
        Raises:
            InputError: it is no probability, or there are no probabilities.
        """
        if given is None:
            return None
        least, model = arguments.number("threshold", given), self.bundle.manifest.model
        text = f"threshold = {least:g}"
        if model.gives != "logits" or model.activation == "none":
            given_so = f"{text} for a model whose outputs are no probabilities"
            raise InputError(given_so, "none", "leave the threshold out")
        if not 0 <= least <= 1:
            raise InputError(text, "a probability from 0 to 1", "give another threshold")
        return least

    def _check(self, names: list[str]) -> None:
        fresh = [name for name in names if name not in self._verified]
        if self._verify:
            self.bundle.verify_files(fresh)
        self._verified.update(fresh)

    def __enter__(self: _Runner) -> _Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BundleRunner(ImageRunner):
    """One bundle's engines behind one call; the keep ratio can be switched at any time.

    With memory "speed" one engine is open at a time and its weights are packed for its kernels. With "shared"
    every engine that was used stays open and all read one copy of the weights, at some cost in speed.
    """

    def __init__(self, bundle: Bundle, *, profile: str, threads: int, memory: MemoryMode, verify: bool) -> None:
        super().__init__(bundle, profile=profile, threads=threads, memory=memory, verify=verify)
        self._switching = RLock()  # whoever opens or closes engines; calls do not wait for it
        self._open: dict[str, OpenEngine] = {}
        self._active: OpenEngine | None = None  #: what calls use from now on
        self._variant: VariantRecord = bundle.manifest.dense

    def switch(self, keep_ratio: float | None = None, *, variant: str | None = None) -> None:
        """Run another variant from now on. Calls of other threads that are under way end on the one before.

        Raises:
            BundleError: the bundle does not hold it, or it is damaged; the runner stays on the one before.
            InputError: a keep ratio that is no number, or a name that is no text.
        """
        self._run(self.bundle.variant(keep_ratio, variant))

    def adopt(self, variant: str, runner: Runner) -> None:
        """Run something else for a variant than the bundle's own engine, and switch to it.

        Raises:
            BundleError: it takes or gives something else than the variant's engine does; it is closed.
        """
        with self._switching:
            self._activate(self._opened(self.bundle.variant(name=variant), runner, noted=True))

    @property
    def _keeps_all(self) -> bool:
        """Whether every engine that was used stays open."""
        return self.memory == "shared"

    @property
    def variant(self) -> VariantRecord:
        return self._variant

    @property
    def keep_ratio(self) -> float | None:
        return self.variant.keep_ratio

    @property
    def graph(self) -> GraphRecord:
        return self.variant.graphs[self.profile]

    def __repr__(self) -> str:
        names = f"{self.bundle.name!r}, variant={self.variant.name!r}, profile={self.profile!r}"
        return f"BundleRunner({names}{f', threads={self.threads}' if self.threads else ''})"

    def infer(self, pixels: NDArray[np.uint8], names: Sequence[str] = ()) -> Outputs:
        """Run on resized and cropped pixels, uint8 `[B, H, W, C]`; batches of any size are cut to fit the engine.

        Any thread may call it. All images of a call go through the engine of one variant, whoever switches meanwhile.

        Args:
            names: what to call the images in an error; by default they are counted.

        Raises:
            BundleError: the engine gives something else than its variant's outputs.
            ParityError: values that cannot be right, such as infinities.
        """
        check_pixels(pixels, self.bundle.manifest.preprocess, least=1)
        count = len(pixels)
        images = [name or f"image {at + 1} of {count}" for at, name in enumerate(names or [""] * count)]
        engine = self._entered()
        try:
            return self._infer(engine, pixels, images)
        finally:
            engine.leave()

    def _infer(self, engine: OpenEngine, pixels: NDArray[np.uint8], images: Sequence[str]) -> Outputs:
        size = engine.graph.batch or self._largest_batch
        parts = (self._infer_part(engine, pixels[part], images[part]) for part in slices(len(pixels), size))
        return Outputs.joined(list(parts))

    def _infer_part(self, engine: OpenEngine, pixels: NDArray[np.uint8], images: Sequence[str]) -> Outputs:
        count, batch = len(pixels), engine.graph.batch
        if batch is not None and count < batch:  # a fixed batch is filled up with copies, whose results are dropped
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], batch - count, axis=0)])
        normalised = engine.graph.image_input != "uint8"
        feed = normalise(pixels, self.bundle.manifest.preprocess) if normalised else pixels
        return engine.interface.outputs(engine.runner.infer({IMAGE: feed}), len(pixels), images)

    @contextmanager
    def _calling(self) -> Iterator[Callable[[NDArray[np.uint8], Sequence[str]], list[Answered]]]:
        engine = self._entered()
        try:
            yield lambda pixels, names: [Answered(self._infer(engine, pixels, names), np.arange(len(pixels)))]
        finally:
            engine.leave()

    def close(self) -> None:
        with self._switching:
            self._active = None
            while self._open:
                self._open.popitem()[1].retire()

    def _entered(self) -> OpenEngine:
        """The engine of the variant at hand, which the caller has entered; opened again after `close`."""
        while True:
            engine = self._active
            if engine is not None and engine.enter():
                return engine
            with self._switching:  # whoever retires an engine names the next one first, or none
                if self._active is None:
                    self._run(self._variant)

    def _run(self, variant: VariantRecord) -> None:
        """Have calls use a variant's engine from now on; it is opened if it is not open."""
        with self._switching:
            self._activate(self._open.get(variant.name) or self._opened(variant, self._load(variant)))

    def _opened(self, variant: VariantRecord, runner: Runner, *, noted: bool = False, name: str = "") -> OpenEngine:
        interface = Interface(self.bundle.manifest, variant, self.profile)
        try:
            interface.check_declared(runner.signature, noted=noted)
        except BaseException:
            runner.close()
            raise
        return OpenEngine(variant, variant.graphs[self.profile], interface, runner, name or variant.name)

    def _activate(self, engine: OpenEngine) -> None:
        """Have calls use an engine from now on, and retire those that are not kept."""
        before = self._open
        self._open = {**(before if self._keeps_all else {}), engine.name: engine}
        self._active, self._variant = engine, engine.variant
        for one in before.values():
            if one is not self._open.get(one.name):
                one.retire()

    def _load(self, variant: VariantRecord, threads: int | None = None) -> Runner:
        engine = engine_of(self.bundle, variant, self.profile)
        files = self.bundle.files_of_engine(variant, self.profile)
        self._check(files)
        for name in files:  # none of them leads to another file, whether hashes are compared or not
            self.bundle.path(name)
        stored = stored_engine(self.bundle, variant, self.profile)
        return get_backend(engine.backend).load(stored, threads=threads or self.threads, memory=self.memory)


def slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def load_engine(
    bundle: str | PathLike[str] | Bundle,
    *,
    keep_ratio: float | None = None,
    variant: str | None = None,
    profile: str | None = None,
    threads: int | None = None,
    memory: MemoryMode = "speed",
    verify: bool = True,
) -> BundleRunner:
    """Open a bundle and load one of its engines, which runs until it is switched; see `ztdeploy.load`."""
    runner = BundleRunner(**opening(bundle, profile=profile, threads=threads, memory=memory, verify=verify))
    runner.switch(keep_ratio, variant=variant)
    return runner


class Opening(TypedDict):
    """What every runner of a bundle takes."""

    bundle: Bundle
    profile: str
    threads: int
    memory: MemoryMode
    verify: bool


def opening(
    bundle: str | PathLike[str] | Bundle, *, profile: str | None, threads: int | None, memory: MemoryMode, verify: bool
) -> Opening:
    """What a runner takes, from what a user gave; raises as `ztdeploy.load`."""
    arguments.one_of("memory", memory, get_args(MemoryMode))
    count = None if threads is None else arguments.threads(threads)
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    name = runnable_profile(opened) if profile is None else opened.profile_name(profile)
    wanted = usable_threads(opened.manifest.profiles[name].threads) if count is None else count
    return Opening(bundle=opened, profile=name, threads=wanted, memory=memory, verify=verify)


def class_names(bundle: Bundle) -> list[str] | None:
    """The names of the model's classes, in their order; None where the bundle has none.

    Raises:
        BundleError: not as many, or no text.
    """
    name = bundle.manifest.class_names
    if name is None:
        return None
    try:
        names = bundle.path(name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BundleError(f"'{name}' is not text", "UTF-8, a class per line", "build the bundle again") from error
    classes = bundle.manifest.model.classes
    if len(names) != classes:
        raise BundleError(
            f"'{name}' names {len(names)} classes", f"{classes}, as the model has", "build the bundle again"
        )
    return names


def runnable_profile(bundle: Bundle) -> str:
    """The first profile with engines that this machine can run.

    Raises:
        InputError: there are no engines.
        EnvironmentLacksError: this machine can run none of them.
    """
    profiles = bundle.manifest.profiles
    with_engines = [name for name in profiles if any(name in variant.engines for variant in bundle.manifest.variants)]
    if not with_engines:
        return bundle.profile_name(None)  # which says what to do
    found, reasons = first_that_runs(profiles[name] for name in with_engines)
    if found is None:
        raise EnvironmentLacksError(
            f"no engine of {bundle.root} runs here: {reasons}",
            "a machine that one of its profiles describes",
            "run it there, or build with --profile cpu as well",
        )
    return found.name


def engine_of(bundle: Bundle, variant: PartRecord, profile: str) -> EngineRecord:
    """The variant's engine for a profile.

    Raises:
        InputError: there is none, with the reason.
    """
    if profile in variant.engines:
        return variant.engines[profile]
    raise InputError(
        f"{bundle.root} holds no engine for profile '{profile}' (it is built on the device)",
        "a profile with an engine",
        f"run on the device: ztdeploy finalize {bundle.root}",
    )


def stored_engine(bundle: Bundle, variant: PartRecord, profile: str) -> StoredEngine:
    """The same engine as what a backend loads; raises as `engine_of`."""
    engine = engine_of(bundle, variant, profile)
    source = variant.graphs[profile].source(engine.fingerprint.plugins)
    assert source is not None
    sha256 = bundle.manifest.files[source].sha256
    return StoredEngine(bundle.path(engine.file), engine.fingerprint, sha256, bundle.path(WEIGHTS_FILE))
