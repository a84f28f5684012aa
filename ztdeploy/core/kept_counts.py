"""Counts of tokens per block, as DiffRate publishes them (ICCV 2023), to the layers of a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ztdeploy.core.errors import ScheduleError

KEYS = ("prune_kept", "merge_kept")


def with_layers(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a schedule file holds, with `[[layer]]` tables and the model's size in place of counts, if it has any.

    `prune_kept` are the tokens that pruning leaves in each block, prefix tokens included, and `merge_kept` those that
    merging then leaves. As where they come from, a count above what is left drops nothing.

    Raises:
        ScheduleError: one list without the other, lists of two lengths, something that is no count, or layers as well.
    """
    if not any(key in data for key in KEYS):
        return dict(data)
    pruned, merged = (_counts(data.get(key)) for key in KEYS)
    if "layer" in data or not pruned or len(pruned) != len(merged):
        raise ScheduleError(
            f"schedule file '{path}': {' and '.join(key for key in KEYS if key in data)}",
            f"{KEYS[0]} and {KEYS[1]}, lists of as many whole numbers above 0, one for each block, and no [[layer]]",
            "correct the counts",
        )
    layers, tokens = [], max(*pruned, *merged)
    left = tokens
    for block, (unpruned, unmerged) in enumerate(zip(pruned, merged, strict=True), 1):
        unpruned = min(left, unpruned)
        kept = min(unpruned, unmerged)
        if kept < left:
            layers.append({"block": block, "drop": left - kept, "similarity_drop": unpruned - kept})
        left = kept
    rest = {key: value for key, value in data.items() if key not in KEYS}
    return {"depth": len(pruned), "tokens": tokens, **rest, "layer": layers}


def _counts(values: object) -> list[int]:
    """The counts; empty where that is no list of counts."""
    return values if isinstance(values, list) and all(type(value) is int and value > 0 for value in values) else []
