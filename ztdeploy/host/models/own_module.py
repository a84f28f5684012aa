"""A user's own module as a model: the vision transformer in it, its backbone, with everything around that.

The module's code is not analysed but run. There are two ways to take it:

- A classifier that hands its images to a timm model and goes on with what that gives: the module with an identity in
  the model's place becomes the model's head, and the model with that head must give what the module gives.
- Anything else, such as a dense head that reads the tokens of several blocks: the whole module takes the images, and
  finds a token for every place of the image wherever it reads tokens, see `PrunedModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ztdeploy.core.errors import ModelError, ZtdeployError
from ztdeploy.core.names import BLOCKS, PRUNE
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.schedule import LayerSpec, PruningSchedule
from ztdeploy.core.text import one_line, printable
from ztdeploy.host.models import families, refused
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.models.hf_model import TOWERS, HubModel, is_tower, library
from ztdeploy.host.models.shapes import channels_of, made_for
from ztdeploy.host.pruning.pruned_model import PrunedModel

#: What wraps a module without changing what it computes, by the attribute that holds the module.
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
#: Images that a module and the model with its head are compared on.
_COMPARED = 2
#: Axes of logits, of a map of one channel without an axis for it, and of a map.
_LOGITS, _CHANNEL, _MAP = 2, 3, 4


class Surrounded(nn.Module):
    """A module with a backbone in it, as a model that gives one tensor."""

    def __init__(self, whole: nn.Module, blocks: str) -> None:
        """
        Args:
            blocks: the path of the backbone's blocks in the module.
        """
        super().__init__()
        self.whole, self._blocks = whole, blocks

    @property
    def scopes(self) -> Mapping[str, str]:
        """The path of the blocks in this module, and what graphs call it."""
        return {f"whole.{self._blocks}": BLOCKS}

    def forward(self, images: Tensor) -> Any:
        """From `[B, C, H, W]` to what the module gives."""
        return self.whole(images)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that `torch.compile`, or training on several devices, has wrapped."""
    while (holder := _WRAPPERS.get(type(module).__name__)) is not None and isinstance(module, nn.Module):
        module = getattr(module, holder)
    return module


def backbone_within(module: nn.Module, backbone: str | None = None) -> tuple[str, nn.Module]:
    """The one model of a known family of timm's, or tower of transformers, in a module, and where it is: "" where it is
    the module itself.

    Args:
        backbone: where it is; None: the only one.

    Raises:
        ModelError: there is none, or there are several, or something else is in that place.
    """
    kinds, name = tuple(family.model_class for family in families()), type(module).__name__
    found = {path: part for path, part in module.named_modules() if isinstance(part, kinds) or is_tower(part)}
    if backbone is not None:
        if backbone not in found:
            raise _no_backbone(module, backbone, list(found))
        return backbone, found[backbone]
    if type(module).__module__.startswith("transformers."):
        fix = "write it with module.save_pretrained('DIR'), and give hf:DIR"
        raise ModelError(f"a module of class {name}, which is of transformers", "a folder with it", fix)
    if "" in found:
        return "", module
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        given = f"a module of class {name} with {len(found)} models in it ({', '.join(found)})"
        raise ModelError(given, "one model", f"give backbone='{next(iter(found))}', or one of them by itself")
    for part in module.modules():
        if type(part).__module__.startswith("timm.models."):
            raise refused(f"a module of class {name}, with a {type(part).__name__} in it,", type(part).__module__)
    raise refused(f"a module of class {name}", type(module).__module__)


def _no_backbone(module: nn.Module, path: str, known: list[str]) -> ModelError:
    there = next((f"a {type(part).__name__}" for name, part in module.named_modules() if name == path), "nothing")
    return ModelError(
        f"backbone '{printable(path)}' of a module of class {type(module).__name__}, where there is {there}",
        f"a vision transformer of timm's, or a tower of transformers: {', '.join(TOWERS)}",
        f"give {' or '.join(repr(one) for one in known)}" if known else "choose another model",
    )


def model_of(
    module: nn.Module, backbone: str | None = None, size: ImageSize | None = None
) -> tuple[nn.Module, Surrounded | None]:
    """A module as a model: a copy, in fp32, on the CPU, for evaluation.

    Args:
        backbone: the path of the model in the module, which makes the whole module take the images.
        size: of images; None: what the model was made for.

    Returns:
        A model of a known family; and what takes the images, where that is not this model with the module as its head.

    Raises:
        ModelError: the module cannot be copied or run, holds no such model or several, or its forward cannot be taken
            either way; with the reason.
    """
    module = unwrapped(module)
    backbone_within(module, backbone)
    if any(path.endswith(PRUNE) for path, _ in module.named_modules()):  # whose hooks a copy would share
        raise ModelError("a module that is already pruned", "an untouched one", "detach() what 'prune' returned first")
    try:
        whole = deepcopy(module).cpu().float().eval()
    except Exception as error:  # of somebody else's code
        raise _unsound(module, f"cannot be copied ({one_line(error)})", "a module that can be copied") from error
    path, model = backbone_within(whole, backbone)
    if backbone is not None or is_dense(whole, path, model):
        return within(whole, path, model, size)
    if path:
        _give_head(whole, path, model)
    return model, None


def is_dense(whole: nn.Module, path: str, model: Any) -> bool:
    """Whether a module, whose backbone nobody named, cannot be a head for its model."""
    if is_tower(model) or not path:
        return is_tower(model)
    try:
        output = _run(whole, _images_for(model), "a module that takes images")
    except ModelError:  # whoever runs it next says so
        return False
    return isinstance(output, Tensor) and output.dim() in (_CHANNEL, _MAP)


def within(whole: nn.Module, path: str, model: Any, size: ImageSize | None = None) -> tuple[nn.Module, Surrounded]:
    """A model for images of a size, changed in place, and the module around it as what takes the images.

    Args:
        path: of the model in the module.

    Raises:
        ModelError: the model cannot take images of that size.
    """
    if is_tower(model):
        library()
        model = HubModel(model, size)
        return model, Surrounded(whole, f"{path}.{model.parts.blocks}".removeprefix("."))
    if size not in (None, made_for(model)):
        try:
            model.set_input_size(img_size=tuple(size))
        except Exception as error:  # timm's checks are of many kinds
            problem = f"cannot take images of size {size} ({one_line(error)})"
            raise _unsound(whole, problem, f"{made_for(model)}, or a size that patches divide") from error
    return model, Surrounded(whole, f"{path}.{BLOCKS}")


def surround(adapter: ModelAdapter, whole: nn.Module) -> None:
    """Make what an adapter's model is in take the images: see what it gives, and try whether it can be pruned.

    Raises:
        ModelError: it gives no tensor of a known kind, or does something to tokens that pruning does not allow.
    """
    images = _images_for(adapter.model, adapter.image_size)
    inner = whole.whole if isinstance(whole, Surrounded) else whole
    output = _run(whole, images, f"a module that takes images [B, C, H, W] of size {adapter.image_size}")
    if not isinstance(output, Tensor) or output.dim() not in (_LOGITS, _CHANNEL, _MAP) or len(output) != len(images):
        raise _unsound(inner, f"gives {_words(output)}", "a map [B, C, h, w] or [B, h, w], or logits [B, classes]")
    adapter.surround(whole, output.shape[1:], _macs_without_blocks(adapter, whole, images))
    facts = adapter.architecture
    tried = range(1, min(facts.depth, facts.patch_tokens - 1) + 1)
    trial = PruningSchedule(name="trial", method="slice", layers=tuple(LayerSpec(block=one, drop=1) for one in tried))
    with PrunedModel(adapter, trial) as pruned:
        _run(pruned, images, "a forward that takes what blocks give as it is", inner)


def _macs_without_blocks(adapter: ModelAdapter, whole: nn.Module, images: Tensor) -> int:
    """The multiply-adds of a module for one of the images, while its blocks hand on what they are given."""
    try:
        for block in adapter.blocks:
            vars(block)["forward"] = lambda x, *_arguments, **_named: x
        with FlopCounterMode(display=False) as counter:
            _run(whole, images, "a module that takes images")
    finally:
        for block in adapter.blocks:
            vars(block).pop("forward", None)
    return int(counter.get_total_flops()) // (2 * len(images))


def _give_head(whole: nn.Module, path: str, model: Any) -> None:
    """Make everything that a module does behind its model the model's head, in place."""
    if not isinstance(getattr(model, "head", None), nn.Module) or getattr(model, "head_dist", None) is not None:
        raise _unsound(whole, f"goes on behind '{path}', which has several heads or none", "a model with one head")
    images = _images_for(model)
    with torch.no_grad():
        wanted = _watched(whole, path, model, images)
        whole.set_submodule(path, nn.Identity())
        model.head = whole if isinstance(model.head, nn.Identity) else nn.Sequential(model.head, whole)
        model.num_classes = wanted.shape[1]
        try:
            given = model(images)
        except Exception as error:
            problem = f"does more than go on with what '{path}' gives ({one_line(error)})"
            raise _unsound(whole, problem, f"a forward such as head(self.{path}(images))", path) from error
        if not isinstance(given, Tensor) or given.shape != wanted.shape or not _close(given, wanted):
            problem = f"does more than go on with what '{path}' gives: without its own images its answers differ"
            raise _unsound(whole, problem, f"a forward such as head(self.{path}(images))", path)


def _watched(whole: nn.Module, path: str, model: nn.Module, images: Tensor) -> Tensor:
    """What a module gives for images, `[B, classes]`, if it hands the images to its model as they are, once.

    Raises:
        ModelError: it does not.
    """
    seen: list[Any] = []
    watch = model.register_forward_pre_hook(lambda _model, inputs: seen.extend(inputs[:1]))
    try:
        output = _run(whole, images, "a module that takes images [B, C, H, W] of its model's size")
    finally:
        watch.remove()
    expected = f"a forward such as head(self.{path}(images))"
    if not seen:
        problem = f"does not call '{path}' as a whole: what it reads inside has other tokens once they are pruned"
        raise _unsound(whole, problem, expected, path)
    if len(seen) > 1:
        raise _unsound(whole, f"calls '{path}' {len(seen)} times for one image", expected)
    if not isinstance(seen[0], Tensor) or seen[0].shape != images.shape or not torch.equal(seen[0], images):
        problem = f"changes images before '{path}' sees them"
        raise _unsound(whole, problem, f"{expected}; what changes images belongs into mean, std and image_size", path)
    if not isinstance(output, Tensor) or output.dim() != _LOGITS or len(output) != len(images):
        raise _unsound(whole, f"gives {_words(output)}", "a tensor [B, classes] or [B, C, h, w]")
    return output


def _images_for(model: Any, size: ImageSize | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_COMPARED, channels_of(model), *(size or made_for(model)), generator=generator)
    return images.to(next(model.parameters()))


def _run(module: nn.Module, images: Tensor, expected: str, inner: nn.Module | None = None) -> Any:
    """What a module gives for images; whatever it is in, it is run for evaluation.

    Raises:
        ModelError: it fails.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            return module(images)
    except ZtdeployError:
        raise
    except Exception as error:
        problem = f"cannot run on images of shape {list(images.shape)} ({one_line(error)})"
        raise _unsound(inner or module, problem, expected) from error
    finally:
        for part, training in modes:
            part.training = training


def _close(given: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(given, wanted, rtol=1e-4, atol=1e-5 * max(1.0, float(wanted.abs().max())))


def _words(output: object) -> str:
    shape = f"shape {list(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
    return f"something of {shape}"


def _unsound(module: nn.Module, problem: str, expected: str, backbone: str | None = None) -> ModelError:
    other = "give the timm model in it by itself" if backbone is None else f"give backbone='{backbone}'"
    return ModelError(
        f"a module of class {type(module).__name__}, which {problem}", expected, f"change it so, or {other}"
    )
