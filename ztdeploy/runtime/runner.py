"""Running a bundle: load an engine, pre-process, infer, post-process. No torch, no timm, no onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from ztdeploy.backends import PLANNED, backend_exists, first_that_runs, get_backend
from ztdeploy.backends.base import MemoryMode, Runner
from ztdeploy.backends.threads import usable_threads
from ztdeploy.bundle import WEIGHTS_FILE, Bundle, read_bundle
from ztdeploy.errors import BundleError, EnvironmentLacksError, ImageError
from ztdeploy.manifest import EngineRecord, GraphRecord, VariantRecord
from ztdeploy.runtime.inputs import ImageSource, load_pixels
from ztdeploy.runtime.postprocess import Prediction, kept_patches, top_labels
from ztdeploy.runtime.preprocess import normalise

IMAGE, LOGITS = "image", "logits"


@dataclass(frozen=True)
class Outputs:
    """Raw outputs of one call."""

    logits: NDArray[np.float32]  #: `[B, classes]`
    kept: tuple[NDArray[np.int32], ...]  #: per pruning layer `[B, k]`, indices into the tokens entering that layer
    into: tuple[NDArray[np.int32], ...] = ()  #: per merging layer `[B, N - k]`: the slots of the others
    #: `[B, n]` each, by name: what a graph with notes gives besides
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """Those of one batch that was run in parts."""
        kept, into = (
            tuple(np.concatenate(layer) for layer in zip(*(getattr(part, name) for part in parts), strict=True))
            for name in ("kept", "into")
        )
        more = {name: np.concatenate([part.more[name] for part in parts]) for name in parts[0].more}
        return cls(np.concatenate([part.logits for part in parts]), kept, into, more)


class BundleRunner(AbstractContextManager["BundleRunner"]):
    """One bundle's engines behind one call; the keep ratio can be switched at any time.

    With memory "speed" one engine is open at a time and its weights are packed for its kernels. With "shared"
    every engine that was used stays open and all read one copy of the weights, at some cost in speed.
    """

    def __init__(self, bundle: Bundle, *, profile: str, threads: int, memory: MemoryMode, verify: bool) -> None:
        self.bundle, self.profile, self.threads, self.memory = bundle, profile, threads, memory
        self._verify, self._verified = verify, set[str]()
        self._open: dict[str, Runner] = {}
        self._names = self._class_names()
        self.variant: VariantRecord = bundle.manifest.dense

    def switch(self, keep_ratio: float | None = None, *, variant: str | None = None) -> None:
        """Run another variant from now on.

        Raises:
            BundleError: the bundle does not hold it; the runner stays on the one before.
        """
        chosen = self.bundle.variant(keep_ratio, variant)
        if chosen.name not in self._open:
            runner = self._load(chosen)
            if self.memory == "speed":
                self.close()
            self._open[chosen.name] = runner
        self.variant = chosen

    def adopt(self, variant: str, runner: Runner) -> None:
        """Run something else for a variant than the bundle's own engine, and switch to it."""
        self._open[variant] = runner
        self.switch(variant=variant)

    @property
    def keep_ratio(self) -> float | None:
        return self.variant.keep_ratio

    @property
    def graph(self) -> GraphRecord:
        return self.variant.graphs[self.profile]

    def __call__(self, images: ImageSource | Sequence[ImageSource], *, top: int = 5) -> list[Prediction]:
        """Classify images given as paths, PIL images or uint8 arrays `[H, W, 3]`; one or many.

        A model without a classifier gives no labels, and its embedding as `logits`.

        Raises:
            ImageError: an image cannot be read.
        """
        sources: list[ImageSource] = [images] if isinstance(images, str | Path | Image | np.ndarray) else list(images)
        if not sources:
            return []
        outputs = self.infer(load_pixels(sources, self.bundle.manifest.preprocess))
        prefix = self.bundle.manifest.model.architecture.prefix_tokens
        if not self.bundle.manifest.model.architecture.num_classes:
            top = 0  # the output is an embedding
        return [
            Prediction(top_labels(logits, self._names, top), logits, kept_patches(outputs.kept, index, prefix))
            for index, logits in enumerate(outputs.logits)
        ]

    def infer(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Run on resized and cropped pixels, uint8 `[B, S, S, 3]`; batches of any size are cut to fit the engine."""
        spec = self.bundle.manifest.preprocess
        shape = (spec.image_size, spec.image_size, 3)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != shape or not len(pixels):
            raise ImageError(
                f"pixels of type {pixels.dtype} and shape {list(pixels.shape)}",
                f"uint8 [B, {spec.image_size}, {spec.image_size}, 3], B at least 1",
                "pass images to the runner itself, or pre-process them with ztdeploy.runtime.preprocess",
            )
        size = self.graph.batch or max(self.bundle.manifest.profiles[self.profile].batch.sizes)
        parts = [self._infer_part(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        return Outputs.joined(parts)

    def _infer_part(self, pixels: NDArray[np.uint8]) -> Outputs:
        count, batch = len(pixels), self.graph.batch
        if batch is not None and count < batch:  # a fixed batch is filled up with copies, whose results are dropped
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], batch - count, axis=0)])
        feed: NDArray[Any] = (
            pixels if self.graph.image_input == "uint8" else normalise(pixels, self.bundle.manifest.preprocess)
        )
        if self.variant.name not in self._open:  # after close()
            self.switch(variant=self.variant.name)
        raw = self._open[self.variant.name].infer({IMAGE: feed})
        layers = self.variant.plan.layers
        kept = [f"blocks.{layer.block}/prune/kept" for layer in layers]
        into = [f"blocks.{layer.block}/prune/into" for layer in layers if layer.merges]
        if missing := {LOGITS, *kept, *into} - raw.keys():
            raise BundleError(
                f"the engine of '{self.variant.name}' lacks {sorted(missing)}",
                "all outputs of its plan",
                "build the bundle again",
            )
        others = {name: values for name, values in raw.items() if name not in {LOGITS, *kept, *into}}
        more = {name: values[:count] for name, values in others.items() if values.ndim == 2}
        stays, slots = (tuple(raw[name][:count] for name in names) for names in (kept, into))
        return Outputs(raw[LOGITS][:count], stays, slots, more)

    def close(self) -> None:
        """Close every engine; the next call opens one again."""
        while self._open:
            self._open.popitem()[1].close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, variant: VariantRecord) -> Runner:
        engine, graph = engine_of(self.bundle, variant, self.profile), variant.graphs[self.profile]
        source = graph.source(engine.fingerprint.plugins)
        if source is None:
            raise BundleError(
                f"an engine with plugins for '{variant.name}', whose graph has none",
                "the graph that it was built from",
                f"run: ztdeploy finalize {self.bundle.root}",
            )
        self._check([*engine.files, source, WEIGHTS_FILE])
        return get_backend(engine.backend).load(
            self.bundle.path(engine.file),
            engine.fingerprint,
            graph_sha256=self.bundle.manifest.files[source].sha256,
            weights=self.bundle.path(WEIGHTS_FILE),
            threads=self.threads,
            memory=self.memory,
        )

    def _check(self, names: list[str]) -> None:
        fresh = [name for name in names if name not in self._verified]
        if self._verify:
            self.bundle.verify_files(fresh)
        self._verified.update(fresh)

    def _class_names(self) -> list[str] | None:
        name = self.bundle.manifest.class_names
        if name is None:
            return None
        self._check([name])
        return class_names(self.bundle)


def load(
    bundle: str | Path | Bundle,
    *,
    keep_ratio: float | None = None,
    variant: str | None = None,
    profile: str | None = None,
    threads: int | None = None,
    memory: MemoryMode = "speed",
    verify: bool = True,
) -> BundleRunner:
    """Open a bundle and load one of its engines.

    Args:
        bundle: the folder that `ztdeploy build` wrote.
        keep_ratio: which variant to run; by default the first that was asked for at build time.
        variant: the same by name, for variants made from a schedule file.
        profile: whose engines to run; by default the first profile with engines that this machine can run.
        threads: intra-op threads; by default the profile's, bounded by what the process may use.
        memory: "speed", or "shared" to keep several variants open on one copy of the weights.
        verify: compare the files that are read with their hashes first.

    Raises:
        BundleError: damaged, of a newer schema, or without that variant or profile.
        EngineMismatchError: the engine belongs to another runtime version; says what to run.
    """
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    name = runnable_profile(opened) if profile is None else opened.profile_name(profile)
    wanted = usable_threads(opened.manifest.profiles[name].threads) if threads is None else max(1, threads)
    runner = BundleRunner(opened, profile=name, threads=wanted, memory=memory, verify=verify)
    runner.switch(keep_ratio, variant=variant)
    return runner


def class_names(bundle: Bundle) -> list[str] | None:
    """One per class of the model; None where the bundle has none.

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
    classes = bundle.manifest.model.architecture.num_classes
    if len(names) != classes:
        raise BundleError(
            f"'{name}' names {len(names)} classes", f"{classes}, as the model has", "build the bundle again"
        )
    return names


def runnable_profile(bundle: Bundle) -> str:
    """The first profile with engines that this machine can run.

    Raises:
        BundleError: there are no engines.
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


def engine_of(bundle: Bundle, variant: VariantRecord, profile: str) -> EngineRecord:
    """The variant's engine for a profile.

    Raises:
        BundleError: there is none, with the reason.
    """
    if profile in variant.engines:
        return variant.engines[profile]
    backend = bundle.manifest.profiles[profile].backend
    planned = not backend_exists(backend)
    reason = f"{PLANNED[backend]} cannot be built by this version" if planned else "it is built on the device"
    raise BundleError(
        f"{bundle.root} holds no engine for profile '{profile}' ({reason})",
        "a profile with an engine",
        "run its ONNX graph with the device's own tools, or build with --profile cpu as well"
        if planned
        else f"run on the device: ztdeploy finalize {bundle.root}",
    )
