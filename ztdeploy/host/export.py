"""From a pruned module to a plain ONNX graph with static token counts."""

from __future__ import annotations

import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnxscript import opset18 as op
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor, nn
from torch.export import ExportedProgram

from ztdeploy.core.errors import ModelError, ZtdeployError
from ztdeploy.core.names import CONFIDENCE, IMAGE, INTO, KEPT, LOGITS, pruning_output
from ztdeploy.core.plan import LayerPlan
from ztdeploy.core.preprocess_spec import ImageInput, PreprocessSpec
from ztdeploy.core.text import first_line
from ztdeploy.host.graph import GraphSpec, apply_passes
from ztdeploy.host.graph.stable_names import rename_scopes
from ztdeploy.host.pruning.pruned_model import PrunedModel

BATCH = "batch"  #: name of the dynamic axis


class Deployable(nn.Module):
    """The module that is traced: the pruned model behind normalisation; its choice of tokens are int32 outputs."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        pruned: PrunedModel,
        preprocess: PreprocessSpec,
        image_input: ImageInput,
        *,
        notes: Callable[[Iterable[str]], None] | None = None,
        confidence: nn.Module | None = None,
    ) -> None:
        """
        Args:
            notes: makes the notes of pruning layers further outputs, and is called with their names. It is a callback,
                because tracing restores a module's attributes.
            confidence: from the output and the notes to `CONFIDENCE`, which becomes a note.
        """
        super().__init__()
        self.pruned, self.image_input, self.notes, self.confidence = pruned, image_input, notes, confidence
        deviation = torch.tensor(preprocess.std).view(1, -1, 1, 1)
        mean = torch.tensor(preprocess.mean).view(1, -1, 1, 1)
        self.register_buffer("scale", 1 / (255 * deviation), persistent=False)
        self.register_buffer("shift", -mean / deviation, persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """From uint8 `[B, H, W, C]` to the model's input, fp32 `[B, C, H, W]`."""
        floats = image.to(torch.float32)  # first, since TensorRT cannot transpose uint8
        return floats.permute(0, 3, 1, 2) * self.scale + self.shift

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """`image` is uint8 `[B, H, W, C]`, or fp32 `[B, C, H, W]` already normalised."""
        tensor = self.normalise(image) if self.image_input == "uint8" else image
        if self.notes is None:
            (output, *choices), notes = self.pruned(tensor), dict[str, Tensor]()
        else:
            (output, *choices), notes = self.pruned.noted(tensor)
            if self.confidence is not None:
                notes |= {CONFIDENCE: self.confidence(output, notes)}
            self.notes(notes)
        return (output, *(indices.to(torch.int32) for indices in choices), *notes.values())


def choice_names(layer: LayerPlan) -> tuple[str, ...]:
    """Names of the graph outputs of a pruning layer."""
    return tuple(pruning_output(layer.block, what) for what in ((KEPT, INTO) if layer.merges else (KEPT,)))


def example_input(spec: GraphSpec, preprocess: PreprocessSpec) -> Tensor:
    height, width, channels = preprocess.shape
    batch = spec.batch or 2  # with 1, the exporter would take a dynamic axis for a constant
    if spec.image_input == "uint8":
        return torch.randint(0, 256, (batch, height, width, channels), dtype=torch.uint8)
    return torch.randn(batch, channels, height, width)


def export_onnx(
    pruned: PrunedModel,
    preprocess: PreprocessSpec,
    spec: GraphSpec,
    *,
    noted: bool = False,
    confidence: nn.Module | None = None,
) -> ir.Model:
    """Trace the module and apply the graph passes; the same module gives the same bytes.

    Args:
        noted: the notes of pruning layers become further outputs, behind the ordinary ones; see `graph.parts`.
        confidence: from the output and the notes to a further note, `CONFIDENCE`.

    Raises:
        ModelError: PyTorch cannot export its code, or that takes only one number of images and the spec asks for any.

    Returns:
        An ONNX model whose initialisers share memory with the module's parameters.
    """
    notes: dict[str, None] = {}  # a module may be traced more than once
    tell = (lambda names: notes.update(dict.fromkeys(names))) if noted else None
    module = Deployable(pruned, preprocess, spec.image_input, notes=tell, confidence=confidence).eval()
    outputs = [LOGITS, *(name for layer in pruned.token_plan.layers for name in choice_names(layer))]
    axes = ({0: torch.export.Dim.AUTO},) if spec.batch is None else None
    with torch.no_grad(), quiet_exporter(), no_garbage_collection(), slices_sought_at_slices(), _exportable():
        traced = torch.export.export(module, (example_input(spec, preprocess),), dynamic_shapes=axes, strict=False)
        if spec.batch is None and not traced.range_constraints:
            raise ModelError(
                "a model whose code fixes the number of images, such as by len(images)",
                "code that takes it from images.shape[0]",
                "change it so, or give --batch 1",
            )
        model = _translated(traced, spec, outputs)
    for value, name in zip(model.graph.outputs[len(outputs) :], notes, strict=True):
        value.name = name
    rename_scopes(model, getattr(pruned.model, "scopes", {}))
    apply_passes(model)
    return model


def _translated(traced: ExportedProgram, spec: GraphSpec, outputs: Sequence[str]) -> ir.Model:
    """The graph of a traced module.

    The exporter would decompose operators of every module, which traces it a second time and takes half of an export.
    That is left out where all of them have a translation.
    """
    decompose = traced.run_decompositions

    def if_needed(table: dict[Any, Callable[..., Any]] | None = None) -> ExportedProgram:
        called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
        return decompose(table) if any(target in (table or {}) or _writes(target) for target in called) else traced

    def translate() -> torch.onnx.ONNXProgram | None:
        return torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=spec.opset,
            dynamic_shapes=({0: BATCH},) if spec.batch is None else None,
            input_names=[IMAGE],
            output_names=outputs,
            custom_translation_table=_translations(),
            verbose=False,
        )

    traced.run_decompositions = if_needed
    try:
        program = translate()
    except torch.onnx.OnnxExporterError:  # the table does not list every operator without a translation
        traced.run_decompositions = decompose
        program = translate()
    assert program is not None
    return program.model


def _writes(target: Any) -> bool:
    """Whether an operator changes its input in place, which nodes of a graph cannot."""
    schema = getattr(target, "_schema", None)
    return schema is not None and schema.is_mutable


@contextmanager
def _exportable() -> Iterator[None]:
    """Turns errors of tracing, which runs a user's code, and of translating it into ours."""
    try:
        yield
    except ZtdeployError:
        raise
    except Exception as error:
        raise ModelError(
            f"a model that PyTorch cannot export ({first_line(error.__cause__ or error)})",
            "code that torch.export takes: no decision by the values of a tensor, and no numpy",
            "change it so",
        ) from error


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations of our own, for operators whose stock translation has more nodes than static shapes need."""
    return {
        torch.ops.aten.scaled_dot_product_attention.default: _plain_attention,
        torch.ops.aten.unbind.int: _unbind,
        torch.ops.aten.adaptive_avg_pool2d.default: _averages,
        torch.ops.aten._adaptive_avg_pool2d.default: _averages,
        torch.ops.aten.to.dtype: _cast,
        torch.ops.aten.rsub.Scalar: _subtracted_from,
    }


def _cast(self: Any, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: str = "") -> Any:
    return op.Identity(self) if self.dtype == dtype else op.Cast(self, to=dtype)


def _subtracted_from(self: Any, other: float, alpha: float = 1.0) -> Any:
    """`other - alpha self`"""
    factor, start = (op.CastLike(op.Constant(value_float=float(number)), self) for number in (alpha, other))
    return op.Sub(start, self if alpha == 1 else op.Mul(self, factor))


def _unbind(self: Any, dim: int = 0) -> Any:
    """One Gather with a scalar index per part, instead of Slice and Squeeze."""
    return [op.Gather(self, op.Constant(value_int=part), axis=dim) for part in range(self.shape[dim])]


def _averages(self: Any, output_size: Any) -> Any:
    """Averages over parts of an image that may overlap, as two products; the stock translation gathers by computed
    indices, whose shapes are not static."""
    rows, columns = (_shares(int(old), int(new)) for old, new in zip(self.shape[-2:], output_size, strict=True))
    down = op.MatMul(op.Constant(value=ir.tensor(rows)), self)
    return op.MatMul(down, op.Constant(value=ir.tensor(columns.T.copy())))


def _shares(old: int, new: int) -> NDArray[np.float32]:
    """`[new, old]`: of each old place in the average of each part, whose ends PyTorch rounds outwards."""
    ends = [(part * old // new, -(-(part + 1) * old // new)) for part in range(new)]
    places = np.arange(old)
    return np.array([((places >= first) & (places < end)) / (end - first) for first, end in ends], np.float32)


def _plain_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q k^T / sqrt(d) + mask) v with an additive mask, in the form that runtimes recognise and fuse."""
    if is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == ir.DataType.BOOL):
        raise NotImplementedError("attention with a mask of truth values, causal or grouped, inside a block")
    factor = scale if scale is not None else float(query.shape[-1]) ** -0.5
    scaled = op.Mul(query, op.Constant(value_float=factor))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch the garbage collector off: the exporter makes millions of objects that live until it ends, and searching
    them for garbage takes up to a third of its time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def slices_sought_at_slices() -> Iterator[None]:
    """Ask the optimiser's rule for two slices of one tensor at slices alone: elsewhere it cannot match, but lists all
    nodes of the graph to find out, which takes a sixth of an export.
    """
    anywhere = slice_split_rule.try_rewrite

    def at_slices(model: ir.Model, graph: ir.Graph | ir.Function, node: ir.Node, **more: Any) -> Any:
        return anywhere(model, graph, node, **more) if node.op_type == "Slice" else None

    slice_split_rule.try_rewrite = at_slices
    try:
        yield
    finally:
        slice_split_rule.try_rewrite = anywhere


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's messages, which are for its developers; errors are still raised."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
