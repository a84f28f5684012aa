"""What an engine must take and give for a bundle's variant, and whether it does.

An engine is a file from outside. Its hash says that it is the one in the manifest, and nothing about what is in it.
So what it declares is held against the manifest once, when it is loaded, and what it gives is looked at after each
call, in some tens of microseconds: names, types and shapes, then the values. Whoever reads `Outputs` need not check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.errors import BundleError, ParityError
from ztdeploy.core.manifest import Manifest, VariantRecord
from ztdeploy.core.names import IMAGE, INTO, KEPT, LOGITS, pruning_output
from ztdeploy.core.plan import LayerPlan
from ztdeploy.core.preprocess_spec import NOUNS, Output
from ztdeploy.target.backends.base import Array, Signature, TensorFacts


@dataclass(frozen=True)
class Outputs:
    """Raw outputs of one call."""

    logits: NDArray[np.float32]  #: `[B, classes]`; of other outputs `[B, ...]`, see `output_shape`
    kept: tuple[NDArray[np.int32], ...]  #: per pruning layer `[B, k]`, indices into the tokens entering that layer
    into: tuple[NDArray[np.int32], ...] = ()  #: per merging layer `[B, N - k]`: the slots of the others
    #: `[B, n]` each, by name: what a graph with notes gives besides
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """The outputs of one batch that was run in parts."""
        kept, into = joined_layers([part.kept for part in parts]), joined_layers([part.into for part in parts])
        more = {name: np.concatenate([part.more[name] for part in parts]) for name in parts[0].more}
        return cls(np.concatenate([part.logits for part in parts]), kept, into, more)

    def of_images(self, places: NDArray[np.intp]) -> Outputs:
        """The outputs of some of the images: `[m]`."""
        kept, into = (tuple(layer[places] for layer in layers) for layers in (self.kept, self.into))
        return Outputs(self.logits[places], kept, into, {name: value[places] for name, value in self.more.items()})


def joined_layers(parts: Sequence[tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
    """Per layer, the arrays of all parts one after the other."""
    return tuple(np.concatenate(layer) for layer in zip(*parts, strict=True))


@dataclass(frozen=True)
class _Tensor:
    """One tensor as the manifest has it."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]  #: without the batch axis; None: any length

    def declared_by(self, found: TensorFacts, batch: int | None) -> bool:
        """Whether a runtime says the same of it, or leaves a length open."""
        right = found.dtype == self.dtype.name and shape_fits((None, *self.shape), found.shape)
        return right and found.shape[0] in (None, batch)

    def given_by(self, value: object, batch: int) -> bool:
        """Whether a call gave it for so many images."""
        if not isinstance(value, np.ndarray) or value.dtype != self.dtype:
            return False
        return shape_fits((batch, *self.shape), value.shape)

    def words(self, batch: int | None) -> str:
        return _words(self.name, self.dtype.name, (batch, *self.shape))


class Interface:
    """What the engine of one variant for one profile takes and gives."""

    def __init__(self, manifest: Manifest, variant: VariantRecord, profile: str) -> None:
        graph, int32 = variant.graphs[profile], np.dtype(np.int32)
        height, width, channels = manifest.preprocess.shape
        self.name, self.batch = variant.name, graph.batch
        self.noun = NOUNS[manifest.model.gives]
        self.layers = variant.plan.layers
        pixels = (np.dtype(np.uint8), (height, width, channels))
        values = (np.dtype(np.float32), (channels, height, width))
        self._image = _Tensor(IMAGE, *(pixels if graph.image_input == "uint8" else values))
        self._logits = _Tensor(LOGITS, np.dtype(np.float32), output_shape(manifest))
        self._kept = tuple(
            _Tensor(pruning_output(layer.block, KEPT), int32, (layer.tokens_out,)) for layer in self.layers
        )
        self._into = tuple(
            _Tensor(pruning_output(layer.block, INTO), int32, (layer.tokens_in - layer.tokens_out,))
            for layer in self.layers
            if layer.merges
        )
        self._given = {tensor.name: tensor for tensor in (self._logits, *self._kept, *self._into)}

    @property
    def signature(self) -> Signature:
        """The tensors as a runtime would report them; None: any length."""
        tensors = (self._image, *self._given.values())
        taken, *given = (TensorFacts(one.name, one.dtype.name, (self.batch, *one.shape)) for one in tensors)
        return Signature((taken,), tuple(given))

    def check_declared(self, found: Signature, *, noted: bool = False) -> None:
        """Hold what a runtime says of a loaded engine against the manifest.

        Args:
            noted: further outputs are expected.

        Raises:
            BundleError: another number of inputs or outputs, another name, type or shape.
        """
        inputs, outputs = ({one.name: one for one in side} for side in (found.inputs, found.outputs))
        if list(inputs) != [IMAGE] or not self._given.keys() <= outputs.keys() or len(outputs) != len(found.outputs):
            raise self._wrong(
                f"takes {_listed(inputs)} and gives {_listed(outputs)}", f"{IMAGE!r} and {_listed(self._given)}"
            )
        if not noted and len(outputs) > len(self._given):
            raise self._wrong(f"gives {_listed(outputs)}", _listed(self._given))
        if self.batch is None and inputs[IMAGE].shape[:1] not in ((None,), ()):
            raise self._wrong(f"takes {inputs[IMAGE].shape[0]} images at a time", "any number of them")
        declared = {**outputs, **inputs}
        for tensor in (self._image, *self._given.values()):
            if not tensor.declared_by(one := declared[tensor.name], self.batch):
                raise self._wrong(f"has {_words(one.name, one.dtype, one.shape)}", tensor.words(self.batch))

    def outputs(self, raw: Mapping[str, Array], batch: int, images: Sequence[str]) -> Outputs:
        """What one call gave, checked.

        Args:
            raw: what the runtime gave, by name.
            batch: how many images it was given; there may be fewer, where a fixed batch was filled up.
            images: what to call them in an error.

        Raises:
            BundleError: another name, type or shape.
            ParityError: values that no sound engine gives.
        """
        for name, tensor in self._given.items():
            if not tensor.given_by(raw.get(name), batch):
                raise self._wrong(f"gave {_found(name, raw.get(name))}", tensor.words(batch))
        count = len(images)
        logits = raw[LOGITS][:count]
        if not np.isfinite(logits).all():
            first = int((~np.isfinite(logits)).reshape(count, -1).any(-1).argmax())
            raise ParityError(
                f"the engine of '{self.name}' gives infinities or NaN for {images[first]}",
                f"finite {self.noun}",
                "build with a profile of precision fp32, or run: ztdeploy verify",
            )
        kept, into = (tuple(raw[one.name][:count] for one in side) for side in (self._kept, self._into))
        for layer, stay in zip(self.layers, kept, strict=True):
            self._check_kept(layer, stay)
        for layer, slots in zip((layer for layer in self.layers if layer.merges), into, strict=True):
            if slots.size and not (slots.min() >= -1 and slots.max() < layer.tokens_out):
                raise self._wrong_choice(layer, f"slots from 0 to {layer.tokens_out - 1}, or -1 for none")
        others = {name: value for name, value in raw.items() if name not in self._given}
        for name, value in others.items():
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf" or value.shape[:1] != (batch,):
                raise self._wrong(f"gave {_found(name, value)}", f"numbers for {batch} images")
        return Outputs(logits, kept, into, {name: value[:count] for name, value in others.items() if value.ndim == 2})

    def _check_kept(self, layer: LayerPlan, stay: NDArray[np.int32]) -> None:
        """Tokens that stay are in their order, each once, the prefix tokens first."""
        prefix, last = layer.prefix_tokens, stay[:, -1]
        right = (stay[:, 1:] > stay[:, :-1]).all() and stay[:, 0].min() >= 0 and last.max() < layer.tokens_in
        if not right or (prefix and (stay[:, prefix - 1] != prefix - 1).any()):
            raise self._wrong_choice(layer, f"{layer.tokens_out} different ones of {layer.tokens_in}, in their order")

    def _wrong_choice(self, layer: LayerPlan, expected: str) -> ParityError:
        return ParityError(
            f"the choice of tokens of the engine of '{self.name}' at block {layer.block + 1} cannot be right",
            expected,
            "run: ztdeploy verify",
        )

    def _wrong(self, found: str, expected: str) -> BundleError:
        return BundleError(f"the engine of '{self.name}' {found}", expected, "copy or build the bundle again")


def output_shape(manifest: Manifest) -> tuple[int | None, ...]:
    """The shape of what a model gives for one image; None: any length, as that of an embedding."""
    architecture = manifest.model.architecture
    shapes: dict[Output, tuple[int | None, ...]] = {
        "logits": (architecture.num_classes,),
        "embedding": (None,),
        "features": (architecture.patch_tokens, None),
        "maps": manifest.model.map_shape or (),
    }
    return shapes[manifest.model.gives]


def shape_fits(wanted: Sequence[int | None], found: Sequence[int | None]) -> bool:
    """Whether two shapes are one, where a None on either side stands for any length."""
    pairs = zip(wanted, found, strict=False)
    return len(wanted) == len(found) and all(None in pair or pair[0] == pair[1] for pair in pairs)


def shape_words(shape: Sequence[int | None]) -> str:
    """Such as "[any, 3]"."""
    return f"[{', '.join('any' if one is None else str(one) for one in shape)}]"


def _words(name: str, dtype: str, shape: Sequence[int | None]) -> str:
    return f"{name!r} {dtype} {shape_words(shape)}"


def _found(name: str, value: object) -> str:
    """What a call gave, in words."""
    if isinstance(value, np.ndarray):
        return _words(name, value.dtype.name, value.shape)
    return f"nothing named {name!r}" if value is None else f"{name!r} as a {type(value).__name__}"


def _listed(names: Iterable[str]) -> str:
    """Some names; a graph from outside may have any number."""
    first = list(islice(names, 6))
    return ", ".join(repr(name[:80]) for name in first[:5]) + (", ..." if len(first) > 5 else "") or "nothing"
