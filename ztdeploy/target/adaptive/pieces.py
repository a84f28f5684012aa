"""The pieces of a cascade: open them, run prefix and tail as one engine, and hold them against the whole variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.manifest import ParityRecord, PartRecord
from ztdeploy.core.names import TOKENS
from ztdeploy.target.backends import get_backend, load_graph
from ztdeploy.target.backends.base import Array, MemoryMode, Runner, Signature
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.parity import Reference, compare, compare_drift, golden_pixels, golden_reference
from ztdeploy.target.runtime.runner import BundleRunner, engine_of, stored_engine

#: Opens a variant or a piece of one.
Open = Callable[[PartRecord], Runner]


class Chained:
    """A prefix and a tail as one engine, which takes images and gives what the tail gives."""

    def __init__(self, prefix: Runner, tail: Runner) -> None:
        self.prefix, self.tail = prefix, tail

    @property
    def signature(self) -> Signature:
        return Signature(self.prefix.signature.inputs, self.tail.signature.outputs)

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self.tail.infer({TOKENS: self.prefix.infer(feeds)[TOKENS]})

    def close(self) -> None:
        self.prefix.close()
        self.tail.close()


def engine_opener(bundle: Bundle, profile: str, threads: int, memory: MemoryMode = "speed") -> Open:
    """Opens the engines of a profile. Their files have been compared with their hashes."""

    def opened(part: PartRecord) -> Runner:
        backend = get_backend(engine_of(bundle, part, profile).backend)
        return backend.load(stored_engine(bundle, part, profile), threads=threads, memory=memory)

    return opened


def graph_opener(bundle: Bundle, profile: str, threads: int) -> Open:
    """Opens the graphs of a profile in ONNX Runtime, where its engines cannot run."""
    return lambda part: load_graph(bundle.root / part.graphs[profile].file, threads)


def chained_stage(bundle: Bundle, name: str, opened: Open) -> Chained:
    """The prefix and one tail of a bundle's cascade, which has it.

    Args:
        name: of the tail.
    """
    cascade = bundle.manifest.cascade
    assert cascade is not None
    prefix = opened(cascade.prefix)
    try:
        return Chained(prefix, opened(next(stage for stage in cascade.stages if stage.name == name)))
    except BaseException:
        prefix.close()
        raise


def check_pieces(bundle: Bundle, runner: BundleRunner, opened: Open) -> dict[str, ParityRecord]:
    """Hold prefix and tail of each stage against the whole variant, on the golden images as a batch and on the first.

    Args:
        runner: of a profile of the bundle; it is left with another engine.

    Returns:
        By the name of the stage's tail.

    Raises:
        ParityError: another choice of tokens that is no tie, or other outputs.
    """
    cascade, model, found = bundle.manifest.cascade, bundle.manifest.model, dict[str, ParityRecord]()
    for stage in cascade.stages if cascade else ():
        assert cascade is not None
        variant = bundle.variant(name=stage.variant)
        graph, blocks = variant.graphs[runner.profile], [layer.block for layer in variant.plan.layers]
        runner.adopt(variant.name, opened(variant))
        whole = _run_twice(bundle, runner)
        runner.adopt(variant.name, chained_stage(bundle, stage.name, opened))
        actual = _run_twice(bundle, runner)
        gaps = golden_reference(bundle, variant).of_images([*range(len(whole.logits) - 1), 0]).gaps
        reference = Reference(whole.logits, whole.kept, gaps, replayed=False, into=whole.into)
        name = f"{variant.name} ({runner.profile}), cut in front of block {cascade.block + 1}"
        if graph.precision == "fp32":
            parity = compare(name, blocks, actual, reference)
        else:  # a runtime may round other values to low precision where it has two graphs instead of one
            parity = compare_drift(name, blocks, actual, reference, graph, model.gives, model.activation)
        found[stage.name] = parity.model_copy(update={"against": "graph"})
    return found


def _run_twice(bundle: Bundle, runner: BundleRunner) -> Outputs:
    pixels = golden_pixels(bundle)
    parts = [runner.infer(pixels), runner.infer(pixels[:1])]
    return Outputs.joined([replace(part, more={}) for part in parts])
