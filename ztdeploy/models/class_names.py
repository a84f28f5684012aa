"""What the classes of a head are called, from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ztdeploy.core.text import printable
from ztdeploy.errors import InputError

#: What stands for the names of ImageNet-1k in the place of a file.
IMAGENET = Path("imagenet")


def imagenet_names() -> list[str]:
    """The first name of each of ImageNet's 1000 classes."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [str(info.index_to_description(index)).split(", ")[0] for index in range(1000)]


def read_class_names(path: Path, classes: int) -> tuple[str, ...]:
    """From a text file, a name a line; or JSON, a list or `{"0": name, ...}`, as `id2label` of a configuration is.

    Args:
        path: a file, or `IMAGENET`.

    Raises:
        InputError: it cannot be read, or names another number of classes.
    """
    try:
        if path == IMAGENET and not path.exists():
            names = imagenet_names()
        else:
            text = path.read_text(encoding="utf-8")
            names = _from_json(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise InputError(
            f"class names '{path}' cannot be read ({error})", "a name a line, or a JSON list", "correct the file"
        ) from error
    cleaned = tuple(printable(name).strip() for name in names)
    if len(cleaned) != classes or not all(cleaned):
        raise InputError(
            f"class names '{path}' with {sum(map(bool, cleaned))} names",
            f"{classes}, one for each output",
            "correct it",
        )
    return cleaned


def _from_json(data: Any) -> list[str]:
    if isinstance(data, dict):
        table = data.get("id2label", data)
        data = [table[str(index)] for index in range(len(table))]
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise ValueError("neither a list of names nor a table of them")
    return data
