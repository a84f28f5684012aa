"""What makes a study this study: with anything of it changed, its trials say nothing about what is asked for."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ztdeploy.core.arguments import shown
from ztdeploy.core.errors import InputError
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.jobs.tune import space
from ztdeploy.report.tune.request import TuneRequest
from ztdeploy.target.evaluate.eval_report import DataFacts


def identity(request: TuneRequest, model: LoadedModel, images: DataFacts) -> dict[str, Any]:
    """In plain values, by what a person would call them; how many trials are wanted is no part of it."""
    return {
        "model": model.timm_name,
        "weights": model.weights_sha256,
        "image size": model.preprocess.image_size.plain,
        "images": images.digest,
        "budget": None if request.budget is None else str(request.budget),
        "profile": request.profile if request.budget is not None and request.budget.in_time else None,
        "methods": list(request.methods),
        "sampler": request.sampler_used,
        "seed": request.seed,
        "search space": space.VERSION,
    }


def digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_same(found: object, wanted: dict[str, Any], study: str) -> None:
    """
    Args:
        found: what the study says of itself.

    Raises:
        InputError: it is another one.
    """
    if not isinstance(found, dict):
        raise InputError(f"study '{study}' is none of 'ztdeploy tune'", "a study of its own", "give another --study")
    for name, value in wanted.items():
        if found.get(name) != value:
            there, here = (shown(one) for one in (found.get(name), value))
            raise InputError(
                f"study '{study}' was made for other {name}: {there}, not {here}",
                "the study of the same search",
                "give another --study or --out, or ask for what it was made for",
            )
