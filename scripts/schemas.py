"""Write the JSON schemas of what each verb prints with --json into schemas/: python -m scripts.schemas"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ztdeploy.cli.results import RESULTS, schema_of
from ztdeploy.core.files import remove, write

FOLDER = Path(__file__).resolve().parents[1] / "schemas"


def texts() -> dict[str, str]:
    """The files' texts by name, such as "profiles-list.schema.json"."""
    return {f"{verb.replace(' ', '-')}.schema.json": _text(schema_of(verb)) for verb in RESULTS}


def _text(schema: dict[str, Any]) -> str:
    """JSON with a line for each record, which a change shows in."""
    records = ",\n".join(f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in schema.pop("$defs").items())
    others = "".join(f" {json.dumps(name)}: {json.dumps(one)},\n" for name, one in schema.items())
    return f'{{\n{others} "$defs": {{\n{records}\n }}\n}}\n'


def main() -> None:
    wanted = texts()
    for path in FOLDER.glob("*.json"):
        if path.name not in wanted:
            remove(path)
    for name, text in wanted.items():
        write(FOLDER / name, text)


if __name__ == "__main__":
    main()
