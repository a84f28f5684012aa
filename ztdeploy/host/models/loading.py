"""From a model's name to an adapter with weights in it: the package, a file, the hub, or random."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztdeploy.core.errors import CheckpointError, MissingExtraError, ModelError, WeightsUnavailableError, nearest
from ztdeploy.core.manifest import TextHeadRecord
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import Activation, ImageSize, Output, PreprocessSpec, given
from ztdeploy.core.text import first_line
from ztdeploy.host.models import adapt, hub, refused
from ztdeploy.host.models.catalogue import CATALOGUE, MODULES, CatalogueEntry, near_short_name
from ztdeploy.host.models.descriptions import Description
from ztdeploy.host.models.folders import read_all
from ztdeploy.host.models.sources import Source, source_of

if TYPE_CHECKING:
    from torch import nn

    from ztdeploy.host.models.adapter import ModelAdapter
    from ztdeploy.host.models.checkpoint import Tables
    from ztdeploy.host.models.layouts import Fit
    from ztdeploy.host.models.shapes import Making

    #: A model, its pre-processing in timm's words, and the names of its classes as it was published.
    _Created = tuple[nn.Module, Mapping[str, Any], Sequence[str] | None]

RANDOM_SEED = 0
_AS_PUBLISHED: Mapping[str, Any] = {}
_NOTHING_SAID = Description("timm", None)
_NAMELESS = "its classes have no names: --class-names FILE gives them ('imagenet' those of ImageNet-1k)"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be pruned, and where it came from."""

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
    preprocess_sources: Mapping[str, str] = field(default_factory=dict)  #: who says each field of `preprocess`
    remarks: tuple[str, ...] = ()  #: what whoever gave the weights should know, in words
    activation: Activation = "softmax"  #: of logits, see `models.activation`
    activation_source: str = "default"

    @property
    def output(self) -> Output:
        """What it gives; a model without a head gives embeddings."""
        return given(self.adapter.output, self.adapter.architecture.num_classes)


def load_model(asked: ModelSource) -> LoadedModel:
    """Create a model and fill it with weights.

    Raises:
        InputError: the class names are not as many as the classes, or the activation says nothing about the head.
        ModelError: unknown, or of a family that cannot be pruned soundly.
        CheckpointError: a file is unusable or does not fit, or a downloaded tensor holds NaN.
        WeightsUnavailableError: the hub cannot be reached and nothing is cached.
    """
    _need_host_half()
    from ztdeploy.host.models.activation import meaning_of
    from ztdeploy.host.models.behaviour import check_activation, set_epsilon
    from ztdeploy.host.models.checkpoint import parameters_sha256
    from ztdeploy.host.models.class_names import read_class_names
    from ztdeploy.host.models.preprocessing import OPTION, preprocessing_of
    from ztdeploy.host.models.shapes import channels_of
    from ztdeploy.host.models.text_head import read_text_embeddings

    source = source_of(asked)
    said = source.description or _NOTHING_SAID
    size = asked.image_size or said.image_size
    texts = None if asked.text_head is None else read_text_embeddings(asked.text_head)
    filled = _filled(source, size, asked.output)
    model, remarks = filled.model, filled.remarks
    names, unnamed = _class_names(source, model, filled.class_names)
    remarks += unnamed if asked.class_names is None else ()
    if said.layer_norm_eps is not None:
        set_epsilon(model, said.layer_norm_eps)
    elif source.is_timms or source.is_foreign:
        doubt = check_activation(model, source.published_name, filled.classes, published=source.is_timms)
        remarks += () if doubt is None else (doubt,)
    prepared = preprocessing_of(
        filled.config,
        said.preprocess,
        asked.preprocess,
        sources={**said.sources, **({} if asked.image_size is None else {"image_size": OPTION})},
        default="that of the package" if source.shipped else f"timm's for {source.timm_name}",
        size=filled.image_size,
        channels=channels_of(model),
        doubtful=source.kind == "checkpoint" and source.shipped is None,
    )
    adapter = adapt(model.eval(), prepared.spec.image_size)
    adapter.give(asked.output)
    if texts is not None:
        adapter.answer_with(texts)
        names = None  # those of the head that it had
    classes = adapter.architecture.num_classes
    meaning = meaning_of(classes, asked.activation, said.problem_type)
    if asked.class_names is not None:
        names = read_class_names(asked.class_names, classes)
    return LoadedModel(
        name=asked.name,
        timm_name=source.timm_name,
        adapter=adapter,
        preprocess=prepared.spec,
        preprocess_sources=prepared.sources,
        class_names=tuple(names) if names and len(names) == classes else None,
        weights_source=source.kind,
        weights_origin=filled.origin,
        weights_sha256=parameters_sha256(model),
        entry=CATALOGUE.get(asked.name),
        text_head=None if texts is None else texts.record,
        remarks=(*remarks, *prepared.assumed, *(() if meaning.remark is None else (meaning.remark,))),
        activation=meaning.activation,
        activation_source=meaning.source,
    )


@dataclass(frozen=True)
class _Filled:
    """A model with its weights."""

    model: nn.Module
    config: Mapping[str, Any]  #: pre-processing in timm's words
    class_names: Sequence[str] | None  #: as the model was published
    image_size: ImageSize | None  #: None: the model's own
    classes: int | None  #: of the head in the files; None where they have none, or there are no files
    origin: str
    remarks: tuple[str, ...]


def _filled(source: Source, size: ImageSize | None, output: Output) -> _Filled:
    """Make the model that a source's files fit, or that its name stands for, and fill it.

    Raises:
        ModelError, CheckpointError, WeightsUnavailableError: see `load_model`.
    """
    from ztdeploy.host.models.checkpoint import check_finite
    from ztdeploy.host.models.shapes import Making, making_of

    making, fit = Making(source.arguments, size), None
    if source.files:
        tables = read_all(source.files)  # before the slow part, for it may be unusable
        if source.is_foreign:
            making = making_of(tables, sketch(source.name, size, source.arguments), size, source.origin)
            making = replace(making, arguments={**source.arguments, **making.arguments})
        fit = _fit(tables, source, making, output)
    classes = {} if fit is None or fit.classes is None else {"num_classes": fit.classes}
    arguments = {**making.arguments, **classes}
    if fit is not None and fit.faults:  # said before memory is taken, for a configuration may ask for any size
        _load(sketch(source.name, making.image_size, arguments), fit, source)
    model, config, names = _create(source.name, making.image_size, arguments, pretrained=source.is_timms)
    remarks = (*source.remarks, *making.assumed)
    if fit is not None:
        origin, remarks = _load(model, fit, source), (*remarks, *fit.remarks)
    elif source.is_timms:
        origin = source.timm_name
        check_finite(dict(model.named_parameters()), origin)
    else:
        origin = f"seed {RANDOM_SEED}"
    return _Filled(model, config, names, making.image_size, arguments.get("num_classes"), origin, remarks)


def _class_names(
    source: Source, model: nn.Module, published: Sequence[str] | None
) -> tuple[Sequence[str] | None, tuple[str, ...]]:
    """What a source calls the classes, and what to say where its files do not name them."""
    if not source.is_foreign:
        return published, ()
    names, classes = source.class_names(model), int(getattr(model, "num_classes", 0))
    if names and len(names) != classes:
        return names, (f"the files name {len(names)} classes, and there are {classes}: none is named",)
    return names, (_NAMELESS,) if published and not names else ()


def sketch(name: str, image_size: ImageSize | None = None, arguments: Mapping[str, Any] = _AS_PUBLISHED) -> nn.Module:
    """A model by its name without any values in it, made in no time.

    Raises:
        ModelError: unknown, of no family, or timm cannot make it at that size.
    """
    import torch

    _need_host_half()
    with torch.device("meta"):
        return _create(name, image_size, arguments, pretrained=False)[0].eval()


def sketched_size(model: nn.Module) -> ImageSize:
    """The image size that a model is made for."""
    embed: Any = model.patch_embed
    rows, columns = embed.grid_size
    height, width = embed.patch_size
    return ImageSize(rows * height, columns * width)


def _fit(tables: Tables, source: Source, making: Making, output: Output) -> Fit:
    """What of a file is the model's.

    Raises:
        CheckpointError: it holds no classifier, and the model's logits are asked for.
    """
    from ztdeploy.host.models.layouts import best_fit

    model: Any = sketch(source.name, making.image_size, making.arguments)
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
    """Fill a model with a checkpoint.

    Returns:
        Where the weights come from, with what was changed about them.

    Raises:
        CheckpointError: it does not fit; names the model that it does fit, where one is found.
    """
    from ztdeploy.host.models.checkpoint import as_weights, load_strictly
    from ztdeploy.host.models.siblings import sibling_of

    state = as_weights(fit.state, source.origin)
    try:
        load_strictly(model, state, Path(source.origin), fit.ignored)
    except CheckpointError as error:
        sibling = sibling_of(state, source.name)
        if sibling is None:
            raise
        raise CheckpointError(error.given, error.expected, f"it is of '{sibling}': give --model {sibling}") from error
    return f"{source.origin}, positions resampled" if fit.resampled else source.origin


def _need_host_half() -> None:
    for module in ("torch", "timm", "onnx_ir", "onnxscript", "safetensors"):
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError(module, "build", "building a bundle") from error


def _create(name: str, size: ImageSize | None, arguments: Mapping[str, Any], *, pretrained: bool) -> _Created:
    """The model, its preprocessing in timm's words, and its class names.

    Args:
        name: a short name, or timm's.
        arguments: what differs from the model as it was published, in timm's words.

    Raises:
        ModelError: unknown, of no family, or timm cannot make it so.
    """
    import timm
    import torch

    from ztdeploy.host.models.lvvit_module import SIZES

    entry = CATALOGUE.get(name)
    timm_name = entry.timm_name if entry else name
    torch.manual_seed(RANDOM_SEED)
    if entry is not None and entry.shipped is not None:
        return _create_shipped(name, entry.shipped, size, arguments)
    if timm_name in SIZES:
        return _create_lvvit(timm_name, size, arguments, pretrained=pretrained)
    if not timm.is_model(timm_name):
        known = [one for modules in MODULES.values() for module in modules for one in timm.list_models(module=module)]
        near = near_short_name(name) or nearest(name, known, 0.5)  # of timm's, those that are not refused
        fix = f"did you mean '{near}'?" if near else "run 'ztdeploy models'"
        raise ModelError(f"model '{name}'", "a short name or a name that timm knows", fix)
    module = timm.model_entrypoint(timm_name).__module__
    if module.rpartition(".")[2] not in {one for modules in MODULES.values() for one in modules}:
        raise refused(f"model '{name}'", module)
    if size is not None:
        arguments = {**arguments, "img_size": size.height if size.height == size.width else tuple(size)}
    return _create_timms(timm_name, arguments, pretrained=pretrained)


def _create_shipped(name: str, folder: Path, size: ImageSize | None, arguments: Mapping[str, Any]) -> _Created:
    """The model whose weights are in the package."""
    from timm.models.vision_transformer import VisionTransformer

    facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    own_size = ImageSize.of(facts["architecture"]["img_size"])
    if size not in (None, own_size):
        raise ModelError(f"image size {size} for '{name}'", str(own_size), "leave --image-size out")
    config = {**facts["preprocessing"], "input_size": (3, *own_size)}
    return VisionTransformer(**{**facts["architecture"], **arguments}), config, tuple(facts["classes"])


def _create_timms(name: str, arguments: Mapping[str, Any], *, pretrained: bool) -> _Created:
    import timm
    from timm.data import resolve_model_data_config

    from ztdeploy.host.models.class_names import published_names

    if strange := sorted(arguments.keys() - _arguments_of_models()):
        raise ModelError(
            f"'{name}' with '{strange[0][:80]}', which says nothing about a model",
            "arguments of the model's class",
            "remove it from model_args in config.json",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's remarks on names that have moved
            model = _download(name, arguments) if pretrained else timm.create_model(name, **arguments)
    except (TypeError, AssertionError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
        options = ", ".join(f"{option} {value}" for option, value in arguments.items())
        raise ModelError(
            f"timm cannot make '{name}'{f' with {options}' if options else ''} ({first_line(error)})",
            "a vision transformer and a size that its patch size divides",
            "change --model or --image-size",
        ) from error
    return model, resolve_model_data_config(model), published_names(model)


@cache
def _arguments_of_models() -> frozenset[str]:
    """What models are made with. timm takes others as well, that read files or ask the hub: no configuration may."""
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    return frozenset(name for made in (VisionTransformer, Eva, Beit) for name in signature(made).parameters)


def _create_lvvit(name: str, size: ImageSize | None, arguments: Mapping[str, Any], *, pretrained: bool) -> _Created:
    """LV-ViT, of which no hub has weights."""
    from ztdeploy.host.models.class_names import published_names
    from ztdeploy.host.models.lvvit_module import make_lvvit
    from ztdeploy.host.models.residual import check_divides

    if pretrained:
        raise WeightsUnavailableError(
            f"pretrained weights of '{name}' are on no model hub",
            "its published checkpoint",
            "give --checkpoint FILE, or --weights random to measure latency only",
        )
    if size is not None:
        check_divides(size, (16, 16))
    if foreign := sorted(arguments.keys() - {"num_classes", "in_chans"}):
        raise ModelError(f"'{name}' with {', '.join(foreign)}", "its published form", "choose another --model")
    model = make_lvvit(name, size, **arguments)
    return model, dict(model.pretrained_cfg), published_names(model)


def _download(timm_name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Create a model with weights from the hub or its cache, without waiting for a hub that isn't there."""
    import huggingface_hub.constants
    import timm

    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = offline or not hub.reachable()
    try:
        model: nn.Module = timm.create_model(timm_name, pretrained=True, **arguments)
    except (OSError, RuntimeError, LookupError) as error:
        reason = str(error).lower()
        if not isinstance(error, OSError) and ("pretrained" not in reason or "invalid pretrained tag" in reason):
            raise
        raise WeightsUnavailableError(
            f"pretrained weights of '{timm_name}' are neither cached nor to be had from the model hub",
            "a cached or downloadable checkpoint",
            "give --checkpoint FILE, or --weights random to measure latency only",
        ) from error
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = offline
    return model
