"""From a user's request to an adapter with weights. `load_model` shows the whole job on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.errors import CheckpointError, InputError, MissingExtraError, ModelError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.manifest import TextHeadRecord
from ztdeploy.core.methods import METHODS
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.plan import plan
from ztdeploy.core.preprocess_spec import Activation, ImageSize, Output, PreprocessSpec, given
from ztdeploy.core.records import Record
from ztdeploy.core.schedule import Architecture
from ztdeploy.host.models import adapt
from ztdeploy.host.models.catalogue import CATALOGUE, CatalogueEntry
from ztdeploy.host.models.hf_folder import KINDS, HubConfig
from ztdeploy.host.models.sources import HUB, Source, read_all, source_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ztdeploy.host.models.adapter import ModelAdapter
    from ztdeploy.host.models.checkpoint import Tables
    from ztdeploy.host.models.layouts import Fit
    from ztdeploy.host.models.making import Created
    from ztdeploy.host.models.shapes import Making

KEEP_RATIO = 0.7
_NAMELESS = "its classes have no names: --class-names FILE gives them ('imagenet' those of ImageNet-1k)"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be pruned, and its sources."""

    name: str
    timm_name: str
    adapter: ModelAdapter
    preprocess: PreprocessSpec
    class_names: tuple[str, ...] | None
    weights_source: str
    weights_origin: str
    weights_sha256: str
    entry: CatalogueEntry | None
    text_head: TextHeadRecord | None = None
    preprocess_sources: Mapping[str, str] = field(default_factory=dict)  #: the source of each field of `preprocess`
    remarks: tuple[str, ...] = ()  #: remarks for the user who gave the weights
    activation: Activation = "softmax"  #: the meaning of logits, see `facts.meaning_of`
    activation_source: str = "default"

    @property
    def output(self) -> Output:
        """The kind of output; a model without a head gives embeddings."""
        return given(self.adapter.output, self.adapter.architecture.num_classes)

    def check_classifies(self) -> None:
        """
        Raises:
            InputError: the model does not choose one of several classes, which searches and studies need.
        """
        if self.activation != "softmax" or self.output == "maps":
            what = "maps" if self.output == "maps" else self.activation
            raise InputError(
                f"model '{self.name}', whose outputs are no classes of which one is right ({what})",
                "a model that tells one class of several",
                "compare bundles of it with 'ztdeploy eval'",
            )


def load_model(asked: ModelSource, module: nn.Module | None = None, backbone: str | None = None) -> LoadedModel:
    """Create a model and fill it with weights.

    Args:
        module: a user's own module, instead of the model that `asked` names; it is copied.
        backbone: the path in that module of the model that is to be pruned, see `own_module`.

    Raises:
        InputError: the number of class names is wrong, or the activation makes no sense for the head.
        ModelError: the model is unknown, or its family cannot be pruned soundly.
        CheckpointError: a file cannot be used or does not fit, or a downloaded tensor holds NaN.
        WeightsUnavailableError: the hub cannot be reached and nothing is cached.
    """
    _need_host_half()
    from ztdeploy.host.models import facts
    from ztdeploy.host.models.checkpoint import parameters_sha256
    from ztdeploy.host.models.own_module import surround
    from ztdeploy.host.models.shapes import channels_of
    from ztdeploy.host.models.text_head import read_text_embeddings

    source = source_of(asked) if module is None else _handed_over(module, backbone, asked.image_size)
    texts = None if asked.text_head is None else read_text_embeddings(asked.text_head)
    filled = _filled(source, asked.image_size or source.description.image_size, asked.output)
    model = filled.made.model
    doubts = _check_behaviour(model, source, filled.classes)
    prepared = facts.preprocessing_of(filled.made.config, source, asked, filled.image_size, channels_of(model))
    adapter = adapt(model.eval(), prepared.spec.image_size)
    adapter.pruning_weights = filled.pruning_weights
    if source.whole is not None or getattr(model, "is_dense", False):
        surround(adapter, source.whole or model)
    names, unnamed = _class_names(source, filled.made, adapter.map_shape)
    adapter.give(asked.output)
    if texts is not None:
        adapter.answer_with(texts)
        names = None  # they belonged to the replaced head
    classes = adapter.architecture.num_classes if adapter.map_shape is None else adapter.map_shape[0]
    if adapter.map_shape is None:
        meaning = facts.meaning_of(classes, asked.activation, source.description.problem_type)
    else:
        meaning = facts.meaning_of_maps(classes, asked.activation, source.timm_name)
    if asked.class_names is not None:
        names, unnamed = facts.read_class_names(asked.class_names, classes), ()
    return LoadedModel(
        name=asked.name,
        timm_name=source.timm_name,
        adapter=adapter,
        preprocess=prepared.spec,
        preprocess_sources=prepared.sources,
        class_names=tuple(names) if names and len(names) == classes else None,
        weights_source=source.kind,
        weights_origin=filled.origin,
        weights_sha256=parameters_sha256(adapter.whole),
        entry=CATALOGUE.get(asked.name),
        text_head=None if texts is None else texts.record,
        remarks=(*filled.remarks, *unnamed, *doubts, *prepared.assumed, *meaning.remarks),
        activation=meaning.activation,
        activation_source=meaning.source,
    )


class ModelCheck(Record):
    """A model that can be pruned."""

    name: str
    timm_name: str
    family: str
    image_size: ImageSize
    architecture: Architecture
    layers: tuple[int, ...]  #: the blocks, from 1, behind which the default schedule prunes
    gmacs: float  #: compute of the baseline
    pruned_gmacs: float  #: at keep ratio 0.7
    methods: tuple[str, ...]  #: methods that can be used with it
    map_shape: tuple[int, int, int] | None = None  #: of a dense model: channels, height and width of what it gives


def check_model(name: str, image_size: ImageSize | None = None) -> ModelCheck:
    """Find out without weights whether a model can be pruned, and how.

    Raises:
        ModelError: the model is unknown, or cannot be pruned; the error says why.
    """
    _need_host_half()
    from ztdeploy.host.models.hf_making import make
    from ztdeploy.host.models.making import sketch
    from ztdeploy.host.models.own_module import surround
    from ztdeploy.host.models.shapes import made_for

    source = source_of(ModelSource(name=name, weights="random"))
    size = image_size or source.description.image_size
    if source.hub is not None:
        model: nn.Module = make(source.hub, size, None, name)
    else:
        model = sketch(source.name, size, source.arguments)
    adapter = adapt(model, size or made_for(model))
    if getattr(model, "is_dense", False):
        surround(adapter, model)
    architecture = adapter.architecture
    dense, pruned = (plan(default_schedule(ratio, architecture), architecture) for ratio in (1.0, KEEP_RATIO))
    return ModelCheck(
        name=name,
        timm_name=source.timm_name,
        family=adapter.family,
        image_size=adapter.image_size,
        architecture=architecture,
        layers=tuple(layer.block + 1 for layer in pruned.layers),
        gmacs=plan_gmacs(architecture, dense),
        pruned_gmacs=plan_gmacs(architecture, pruned),
        methods=tuple(method for method in METHODS if _takes(adapter, method)),
        map_shape=adapter.map_shape,
    )


def _takes(adapter: ModelAdapter, method: str) -> bool:
    """Whether the layers of a method can be attached to every block."""
    facts = METHODS[method]
    if facts.needs_class_token and not adapter.architecture.class_token:
        return False
    try:
        for index in range(len(adapter.blocks)):
            undo = adapter.between(index, lambda x: x) if facts.inside else []
            undo += adapter.bias(index, lambda: None) if facts.merges else []
            for one in reversed(undo):
                one()
    except ModelError:
        return False
    return True


def _need_host_half() -> None:
    for module in ("torch", "timm", "onnx_ir", "onnxscript", "safetensors"):
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError(module, "build", "building a bundle") from error


def _handed_over(module: nn.Module, backbone: str | None, size: ImageSize | None) -> Source:
    """A user's own module as a source.

    Raises:
        ModelError: see `own_module.model_of`.
    """
    from ztdeploy.host.models.hf_model import HubModel
    from ztdeploy.host.models.own_module import model_of, unwrapped

    module = unwrapped(module)
    found, whole = model_of(module, backbone, size)
    model: Any = found
    published = getattr(model, "pretrained_cfg", None) or {}
    name, hub = published.get("architecture") or type(model).__name__, None
    if isinstance(model, HubModel):
        name = type(model.tower).__name__
        hub = HubConfig(model.config.model_type, name, {})
    origin = f"a module of class {type(module).__name__}"
    return Source(name, "checkpoint", origin=origin, model=model, whole=whole, hub=hub)


@dataclass(frozen=True)
class _Filled:
    """A model with its weights."""

    made: Created
    image_size: ImageSize | None  #: None: the model's own
    classes: int | None  #: classes of the head in the files; None without a head or without files
    origin: str
    remarks: tuple[str, ...]
    pruning_weights: Mapping[str, Tensor] | None = field(default_factory=dict)  #: see `ModelAdapter`


def _filled(source: Source, size: ImageSize | None, output: Output) -> _Filled:
    """Make the model for a source's files or name, and load its weights.

    Raises:
        ModelError, CheckpointError, WeightsUnavailableError: see `load_model`.
    """
    from ztdeploy.host.models import making as models
    from ztdeploy.host.models.checkpoint import as_weights, check_finite
    from ztdeploy.host.models.shapes import Making, making_of

    if source.model is not None:
        return _as_it_is(source, size)
    if source.hub is not None:
        return _of_hub(source, source.hub, size)
    making, fit = Making(source.arguments, size), None
    if source.files:
        tables = read_all(source.files)  # ahead of the slow part, since it may fail
        if source.is_foreign:
            making = making_of(tables, models.sketch(source.name, size, source.arguments), size, source.origin)
            making = replace(making, arguments={**source.arguments, **making.arguments})
        fit = _fit(tables, source, making, output)
    classes = {} if fit is None or fit.classes is None else {"num_classes": fit.classes}
    arguments = {**making.arguments, **classes}
    if fit is not None and fit.faults:  # ahead of allocation, since a configuration may ask for any size
        _load(models.sketch(source.name, making.image_size, arguments), fit, source)
    made = models.make(source.name, making.image_size, arguments, pretrained=source.is_timms)
    remarks = (*source.remarks, *making.assumed)
    beside: dict[str, Tensor] | None = {}
    if fit is not None:
        origin, remarks = _load(made.model, fit, source), (*remarks, *fit.remarks)
        beside = as_weights(fit.of_pruning, source.origin)
    elif source.is_timms:
        origin = source.timm_name
        check_finite(dict(made.model.named_parameters()), origin)
    else:
        origin, beside = f"seed {models.RANDOM_SEED}", None
    return _Filled(made, making.image_size, arguments.get("num_classes"), origin, remarks, beside)


def _as_it_is(source: Source, size: ImageSize | None) -> _Filled:
    """A model that has its weights already.

    Raises:
        CheckpointError: a weight is not finite.
        ModelError: another image size is asked for.
    """
    from timm.data import resolve_model_data_config

    from ztdeploy.host.models.checkpoint import check_finite
    from ztdeploy.host.models.making import Created
    from ztdeploy.host.models.shapes import made_for

    model: Any = source.model
    own = made_for(model)
    if size not in (None, own):
        fix = f"make it with img_size={size}, or leave --image-size out"
        raise ModelError(f"image size {size} for {source.origin}, made for {own}", str(own), fix)
    check_finite(dict((source.whole or model).named_parameters()), source.origin)
    remarks = (_NAMELESS,) if model.num_classes == 1000 and source.whole is None else ()
    config = resolve_model_data_config(model) if source.hub is None else _usual(source.hub)
    created = Created(model, config, None)
    return _Filled(created, own, model.num_classes, source.origin, remarks)


def _of_hub(source: Source, hub: HubConfig, size: ImageSize | None) -> _Filled:
    """A model of transformers.

    Raises:
        CheckpointError, MissingExtraError, ModelError: see `hf_making.make`.
    """
    from ztdeploy.host.models.hf_making import RANDOM_SEED, make
    from ztdeploy.host.models.making import Created

    state = max(read_all(source.files).values(), key=len) if source.files else None
    model = make(hub, size, state, source.origin)
    origin = source.origin or f"seed {RANDOM_SEED}"
    origin = f"{origin}, positions resampled" if model.resampled else origin
    created = Created(model, _usual(hub), source.description.class_names)
    beside: dict[str, Tensor] | None = {} if source.files else None
    return _Filled(created, model.image_size, model.num_classes, origin, source.remarks, beside)


def _usual(hub: HubConfig) -> dict[str, Any]:
    """The library's pre-processing for a kind of model, under timm's names."""
    from ztdeploy.host.models.hf_processor import said_by

    usual = said_by({}, KINDS[hub.kind].processor)
    return {**usual, "input_size": (3, *usual["image_size"])}


def _fit(tables: Tables, source: Source, making: Making, output: Output) -> Fit:
    """Find the model's tensors in the files.

    Raises:
        CheckpointError: the files hold no classifier, but logits are requested.
    """
    from ztdeploy.host.models.layouts import best_fit
    from ztdeploy.host.models.making import sketch

    model = sketch(source.name, making.image_size, making.arguments)
    fit = best_fit(tables, model, source.origin)
    if fit.faults or fit.head or not model.num_classes:
        return fit
    if output != "logits":
        return replace(fit, classes=0)
    raise CheckpointError(
        f"checkpoint '{source.origin}' holds no head{fit.head_trouble}",
        f"a linear layer behind the {model.embed_dim} features of '{source.name}'",
        "give --output embedding (or features), which needs no head",
    )


def _load(model: nn.Module, fit: Fit, source: Source) -> str:
    """Load a checkpoint into a model.

    Returns:
        The record of the weights, with their sources and remarks.

    Raises:
        CheckpointError: the checkpoint does not fit; the error names a model that it fits, if there is one.
    """
    from ztdeploy.host.models.checkpoint import as_weights, load_strictly
    from ztdeploy.host.models.making import sibling_of

    state = as_weights(fit.state, source.origin)
    try:
        load_strictly(model, state, Path(source.origin), fit.ignored)
    except CheckpointError as error:
        sibling = sibling_of(state, source.name)
        if sibling is None:
            raise
        raise CheckpointError(error.given, error.expected, f"it is of '{sibling}': give --model {sibling}") from error
    return f"{source.origin}, positions resampled" if fit.resampled else source.origin


def _check_behaviour(model: nn.Module, source: Source, classes: int | None) -> tuple[str, ...]:
    """Check that the model computes what the weights were trained for, beyond names and shapes.

    Returns:
        A remark on a remaining doubt.

    Raises:
        ModelError: see `facts.check_activation`.
    """
    from torch.nn import LayerNorm

    from ztdeploy.host.models.facts import check_activation

    if (epsilon := source.description.layer_norm_eps) is not None:
        for module in model.modules():
            if isinstance(module, LayerNorm):
                module.eps = epsilon
        return ()
    if source.hub is not None or not (source.is_timms or source.is_foreign):
        return ()
    doubt = check_activation(model, source.published_name, classes, published=source.is_timms)
    return () if doubt is None else (doubt,)


def _class_names(
    source: Source, made: Created, map_shape: tuple[int, int, int] | None
) -> tuple[Sequence[str] | None, tuple[str, ...]]:
    """Class names of a source, and remarks where its files do not name them."""
    from ztdeploy.host.models.facts import published_names

    if not source.is_foreign:
        return made.class_names, ()
    names: Sequence[str] | None = source.description.class_names
    if names is None and source.origin.startswith(f"{HUB}:timm/"):  # which do not repeat those of ImageNet
        names = published_names(made.model)
    classes = int(getattr(made.model, "num_classes", 0)) if map_shape is None else map_shape[0]
    if map_shape is not None and classes == 1:
        return None, ()  # a value for each position
    if names and len(names) != classes:
        return names, (f"the files name {len(names)} classes, and there are {classes}: none is named",)
    nameless = made.class_names or (source.hub is not None and classes)
    return names, (_NAMELESS,) if nameless and not names else ()
