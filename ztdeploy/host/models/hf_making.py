"""Make a model of `transformers`: its configuration and tensors were read by us; names and shapes are the library's.

The library's own code gives the tensors of older releases their present names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ztdeploy.core.errors import CheckpointError, ModelError
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.text import first_line, printable
from ztdeploy.host.models.checkpoint import as_weights
from ztdeploy.host.models.hf_folder import CONFIG, HubConfig
from ztdeploy.host.models.hf_model import ATTENTION, HubModel, library

RANDOM_SEED = 0
#: Parameters that a model may have beyond those in its file, such as a pooler that is left out.
_SLACK = 16_000_000
_LISTED = 3
_OF_TRAINING = "mask_token"  #: the end of a name that nothing reads outside of training


def _config(asked: HubConfig) -> Any:
    """The library's configuration.

    Raises:
        CheckpointError: the library refuses its values.
    """
    made = getattr(library(), asked.made)
    try:
        return made.config_class.from_dict(dict(asked.values))
    except Exception as error:  # its checks raise errors of many kinds
        raise CheckpointError(
            f"{CONFIG} for {asked.made} cannot be used ({printable(first_line(error))[:160]})",
            "values that transformers accepts",
            "correct it, or download it again",
        ) from error


def make(asked: HubConfig, size: ImageSize | None, state: Mapping[str, Tensor] | None, where: str) -> HubModel:
    """Make a model in evaluation mode.

    Args:
        size: image size; None: the configuration's.
        state: tensors by the library's names, of this or an older release; None: random weights, with `RANDOM_SEED`.
        where: the name of the files in errors.

    Raises:
        CheckpointError: tensors are missing or have other shapes, or are no finite numbers.
        ModelError: the library cannot make the model, or patches do not cover the image.
    """
    made, config = getattr(library(), asked.made), _config(asked)
    torch.manual_seed(RANDOM_SEED)
    with quiet():
        try:
            if state is None:
                whole = made._from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
            else:
                whole = _filled(made, config, as_weights(state, where), where)
        except (ValueError, TypeError, RuntimeError, AssertionError, ArithmeticError, AttributeError) as error:
            raise ModelError(
                f"transformers cannot make {asked.made} ({printable(first_line(error))[:160]})",
                f"a {CONFIG} whose sizes fit each other",
                "download it again",
            ) from error
        return HubModel(whole.eval(), size)


def _filled(made: Any, config: Any, state: dict[str, Tensor], where: str) -> Any:
    """A model with these tensors; a pooler that the files lack is left out, since the library would draw it."""
    held = sum(tensor.numel() for tensor in state.values())
    with torch.device("meta"):
        needed = sum(parameter.numel() for parameter in made(config).parameters())
    if needed > 2 * held + _SLACK:  # ahead of allocation, since a configuration may ask for any size
        raise CheckpointError(
            f"weights '{where}' do not fit {made.__name__}: {held:,} numbers, and its {CONFIG} describes {needed:,}",
            f"the tensors that {CONFIG} describes",
            "give the weights and the configuration of one model",
        )
    whole, found = made.from_pretrained(
        None,
        config=config,
        state_dict=state,
        attn_implementation=ATTENTION,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # so that all of them are reported, below
        output_loading_info=True,
    )
    missing = {name for name in found["missing_keys"] if not name.endswith(_OF_TRAINING)}
    pooler = {name for name in missing if name.startswith("pooler.")}
    if pooler and pooler == {name for name in whole.state_dict() if name.startswith("pooler.")}:
        whole.pooler, missing = None, missing - pooler
    differing = sorted(found["mismatched_keys"])
    misshaped = [f"{name} {list(theirs)} instead of {list(ours)}" for name, theirs, ours in differing]
    parts = {"missing": sorted(missing), "mis-shaped": misshaped}
    faults = "; ".join(f"{len(names)} {kind}: {_short(names)}" for kind, names in parts.items() if names)
    if faults:
        strange = sorted(found["unexpected_keys"])
        also = f"; not of this model: {_short(strange)}" if strange else ""
        raise CheckpointError(
            f"weights '{where}' do not fit {made.__name__} ({faults}{also})",
            f"the tensors that {CONFIG} beside them describes",
            "give the weights and the configuration of one model",
        )
    return whole


def _short(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(printable(name) for name in names[:_LISTED]) + more


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the library's messages and progress bars; ours say what a user has to know."""
    logging = library().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
