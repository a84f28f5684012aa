"""A user's own module as a model: the timm model in it, with everything behind that model as its head.

The module's code is not analysed but run: the module with an identity in the model's place becomes the model's head,
and the model with that head must give what the module gives.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ztdeploy.core.errors import ModelError
from ztdeploy.core.names import PRUNE
from ztdeploy.core.text import one_line
from ztdeploy.host.models import families, refused
from ztdeploy.host.models.shapes import channels_of, made_for

#: What wraps a module without changing what it computes, by the attribute that holds the module.
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
#: Images that a module and the model with its head are compared on.
_COMPARED = 2


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that `torch.compile`, or training on several devices, has wrapped."""
    while (holder := _WRAPPERS.get(type(module).__name__)) is not None and isinstance(module, nn.Module):
        module = getattr(module, holder)
    return module


def model_within(module: nn.Module) -> tuple[str, nn.Module]:
    """The one model of a known family in a module, and where it is: "" where it is the module itself.

    Raises:
        ModelError: there is none, or several.
    """
    kinds, name = tuple(family.model_class for family in families()), type(module).__name__
    found = {path: part for path, part in module.named_modules() if isinstance(part, kinds)}
    if "" in found:
        return "", module
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        given = f"a module of class {name} with {len(found)} models in it ({', '.join(found)})"
        raise ModelError(given, "one model", f"give one of them, such as module.{next(iter(found))}")
    for part in module.modules():
        if type(part).__module__.startswith("timm.models."):
            raise refused(f"a module of class {name}, with a {type(part).__name__} in it,", type(part).__module__)
    if hasattr(module, "save_pretrained"):
        fix = "write it with module.save_pretrained('DIR'), and give the path of that folder"
        raise ModelError(f"a module of class {name}, which is not timm's", "a model of timm's in it", fix)
    raise refused(f"a module of class {name}", type(module).__module__)


def model_of(module: nn.Module) -> nn.Module:
    """A model of a known family that gives what a module gives: a copy, in fp32, on the CPU, for evaluation.

    Raises:
        ModelError: the module cannot be copied, holds no such model or several, or does more with images than hand them
            to the model and its output on; with the reason.
    """
    module = unwrapped(module)
    model_within(module)
    if any(path.endswith(PRUNE) for path, _ in module.named_modules()):  # whose hooks a copy would share
        raise ModelError("a module that is already pruned", "an untouched one", "detach() what 'prune' returned first")
    try:
        whole = deepcopy(module).cpu().float().eval()
    except Exception as error:  # of somebody else's code
        raise _unsound(module, f"cannot be copied ({one_line(error)})", "a module that can be copied") from error
    path, model = model_within(whole)
    if path:
        _give_head(whole, path, model)
    return model


def _give_head(whole: nn.Module, path: str, model: Any) -> None:
    """Make everything that a module does behind its model the model's head, in place."""
    if not isinstance(getattr(model, "head", None), nn.Module) or getattr(model, "head_dist", None) is not None:
        raise _unsound(whole, f"goes on behind '{path}', which has several heads or none", "a model with one head")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_COMPARED, channels_of(model), *made_for(model), generator=generator)
    with torch.no_grad():
        wanted = _watched(whole, path, model, images)
        whole.set_submodule(path, nn.Identity())
        model.head = whole if isinstance(model.head, nn.Identity) else nn.Sequential(model.head, whole)
        model.num_classes = wanted.shape[1]
        try:
            given = model(images)
        except Exception as error:
            problem = f"does more than go on with what '{path}' gives ({one_line(error)})"
            raise _unsound(whole, problem, f"a forward such as head(self.{path}(images))") from error
        if not isinstance(given, Tensor) or given.shape != wanted.shape or not _close(given, wanted):
            problem = f"does more than go on with what '{path}' gives: without its own images its answers differ"
            raise _unsound(whole, problem, f"a forward such as head(self.{path}(images))")


def _watched(whole: nn.Module, path: str, model: nn.Module, images: Tensor) -> Tensor:
    """What a module gives for images, `[B, classes]`, if it hands the images to its model as they are, once.

    Raises:
        ModelError: it does not.
    """
    seen: list[Any] = []
    watch = model.register_forward_pre_hook(lambda _model, inputs: seen.extend(inputs[:1]))
    try:
        output = whole(images)
    except Exception as error:
        problem = f"cannot run on images of shape {list(images.shape)} ({one_line(error)})"
        raise _unsound(whole, problem, "a module that takes images [B, C, H, W] of its model's size") from error
    finally:
        watch.remove()
    expected = f"a forward such as head(self.{path}(images))"
    if not seen:
        problem = f"does not call '{path}' as a whole: what it reads inside has other tokens once they are pruned"
        raise _unsound(whole, problem, expected)
    if len(seen) > 1:
        raise _unsound(whole, f"calls '{path}' {len(seen)} times for one image", expected)
    if not isinstance(seen[0], Tensor) or seen[0].shape != images.shape or not torch.equal(seen[0], images):
        problem = f"changes images before '{path}' sees them"
        raise _unsound(whole, problem, f"{expected}; what changes images belongs into mean, std and image_size")
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
        kind = f"shape {list(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
        raise _unsound(whole, f"gives something of {kind}", "a tensor [B, classes]")
    return output


def _close(given: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(given, wanted, rtol=1e-4, atol=1e-5 * max(1.0, float(wanted.abs().max())))


def _unsound(module: nn.Module, problem: str, expected: str) -> ModelError:
    fix = "change it so, or give the timm model in it by itself"
    return ModelError(f"a module of class {type(module).__name__}, which {problem}", expected, fix)
