"""Which activation belongs behind a head: what the user says, what the model's configuration says, or what is usual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztdeploy.core.errors import InputError
from ztdeploy.core.preprocess_spec import Activation

if TYPE_CHECKING:
    from ztdeploy.host.models.loading import LoadedModel

#: What the `transformers` library calls them in a configuration's `problem_type`.
PROBLEM_TYPES: dict[str, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


@dataclass(frozen=True)
class Meaning:
    """What a head's numbers mean."""

    activation: Activation
    source: str  #: in words
    remark: str | None = None  #: what was assumed, for whoever builds


def meaning_of(outputs: int, asked: Activation | None, problem_type: str | None = None) -> Meaning:
    """
    Args:
        outputs: of the head; 0: the model gives an embedding or features, which have no activation.
        problem_type: of the model's configuration.

    Raises:
        InputError: an activation that says nothing about such a head.
    """
    if asked is not None and not outputs:
        raise InputError(f"--activation {asked} for a model without a head", "a head", "leave --activation out")
    if asked == "softmax" and outputs == 1:
        raise InputError(
            "--activation softmax for one output, which is 100 % whatever the image shows",
            "sigmoid for a yes or no, none for a value",
            "give --activation sigmoid or --activation none",
        )
    if asked is not None:
        return Meaning(asked, "--activation")
    known = PROBLEM_TYPES.get(problem_type or "")
    if known is not None and not (known == "softmax" and outputs == 1):
        return Meaning(known, f"problem_type '{problem_type}' of the model's configuration")
    if outputs == 1:
        return Meaning(
            "sigmoid",
            "the head has one output",
            "its head has one output, taken for a yes or no (sigmoid): --activation none keeps it as a value",
        )
    return Meaning("softmax", "default")


def check_classifies(model: LoadedModel) -> None:
    """
    Raises:
        InputError: the model does not tell one class of several, which searches and comparisons of options go by.
    """
    if model.activation != "softmax":
        raise InputError(
            f"model '{model.name}', whose outputs are no classes of which one is right ({model.activation})",
            "a model that tells one class of several",
            "compare bundles of it with 'ztdeploy eval'",
        )
