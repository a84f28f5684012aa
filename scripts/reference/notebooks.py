"""A notebook as a page: run anew, so that the page shows what the code gives today."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@cache  # `mkdocs serve` builds often
def executed(text: str) -> Any:
    """A notebook with the outputs of its cells; it runs in a folder of its own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    return notebook


def as_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """
    Returns:
        The page as Markdown, and its pictures by file name.
    """
    pictures: dict[str, bytes] = {}
    parts = [f"[Download this page as a notebook]({path.name})"]
    for cell in executed(path.read_text(encoding="utf-8")).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts += [f"```python\n{cell.source}\n```", *_shown(cell.outputs, path.stem, pictures)]
    title = next(index for index, part in enumerate(parts) if part.startswith("# ")) + 1
    return "\n\n".join([*parts[1:title], parts[0], *parts[title:]]) + "\n", pictures


def _shown(outputs: list[Any], stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            name = f"{stem}-{len(pictures) + 1}.png"
            pictures[name] = b64decode(data["image/png"])
            yield f"![What the cell shows]({name})"
        elif text := (output.get("text") or data.get("text/plain", "")).rstrip():
            yield f"```text\n{text}\n```"
