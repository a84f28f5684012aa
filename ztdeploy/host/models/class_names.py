"""What the classes of a head are called, from a file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ztdeploy.core.data import read_json
from ztdeploy.core.errors import InputError
from ztdeploy.core.files import read_text
from ztdeploy.core.text import printable

#: What stands for the names of ImageNet-1k in the place of a file.
IMAGENET = Path("imagenet")


def imagenet_names() -> list[str]:
    """The first name of each of ImageNet's 1000 classes."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [str(info.index_to_description(index)).split(", ")[0] for index in range(1000)]


def published_names(model: Any) -> list[str] | None:
    """Those of ImageNet for a model of timm's with 1000 classes; None for any other head."""
    return imagenet_names() if getattr(model, "num_classes", 0) == 1000 else None


def read_class_names(path: Path, classes: int) -> tuple[str, ...]:
    """From a text file, a name a line; or JSON, a list or `{"0": name, ...}`, as `id2label` of a configuration is.

    Args:
        path: a file, or `IMAGENET`.

    Raises:
        InputError: it cannot be read, or names another number of classes.
    """
    if path == IMAGENET and not path.exists():
        names = imagenet_names()
    else:
        reading = partial(read_json if path.suffix == ".json" else read_text, path, what="class names")
        found = reading(expected="a name a line, or a JSON list", fix="correct the file")
        names = _from_json(found, path) if path.suffix == ".json" else found.splitlines()
    cleaned = tuple(printable(name).strip() for name in names)
    if len(cleaned) != classes or not all(cleaned):
        raise InputError(
            f"class names '{path}' with {sum(map(bool, cleaned))} names",
            f"{classes}, one for each output",
            "correct it",
        )
    return cleaned


def _from_json(data: Any, path: Path) -> list[str]:
    table = data.get("id2label", data) if isinstance(data, dict) else data
    if isinstance(table, dict):
        table = [table.get(str(index)) for index in range(len(table))]
    if not isinstance(table, list) or not all(isinstance(name, str) for name in table):
        raise InputError(
            f"class names '{path}' cannot be read (neither a list of names nor a table of them)",
            "a name a line, or a JSON list",
            "correct the file",
        )
    return table
