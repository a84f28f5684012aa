"""Records as tables: a field's type comes from the JSON schema, what it means from the comment beside it."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from pydantic import BaseModel

from ztdeploy.core.records import Record

_FIELD = re.compile(r"(\w+): [^#]*(?:#.*)?")
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def row(*cells: str) -> str:
    """A row of a Markdown table; a bar in code is no border."""
    plain = (re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or "&#124;", " ".join(cell.split())) for cell in cells)
    return f"| {' | '.join(plain)} |\n"


def table(*headings: str) -> str:
    return row(*headings) + row(*("---" for _ in headings))


def record_tables(*records: type[BaseModel]) -> str:
    """A table of a record's fields, then a section for each record inside it; of several records, sections alone."""
    known = {one.__name__: one for one in _records(Record)}
    first, sections = "", dict[str, str]()
    for record in records:
        schema = record.model_json_schema()
        inside = schema.pop("$defs", {})
        if len(records) == 1:
            first = f"{_fields(record.__name__, schema, known)}\n"
        else:
            inside = {record.__name__: schema, **inside}
        for name, inner in inside.items():
            if "properties" in inner and name not in sections:
                said = inner.get("description", "")
                sections[name] = f"## {name}\n\n{said}\n\n{_fields(name, inner, known)}"
    return first + "\n".join(sections.values())


def _records(base: type[BaseModel]) -> list[type[BaseModel]]:
    return [base, *(found for one in base.__subclasses__() for found in _records(one))]


def _fields(name: str, schema: dict[str, Any], known: dict[str, type[BaseModel]]) -> str:
    said = comments(known[name]) if name in known else {}
    rows = [
        row(f"`{key}`", kind(field), _default(field, key in schema.get("required", ())), said.get(key, ""))
        for key, field in schema["properties"].items()
    ]
    return table("key", "type", "default", "meaning") + "".join(rows)


def _default(field: dict[str, Any], required: bool) -> str:
    if required or "default" not in field:
        return "required" if required else ""
    text = json.dumps(field["default"])
    return f"`{text}`" if len(text) < 40 else "see below"


def kind(schema: dict[str, Any]) -> str:
    """A JSON schema of one value in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(kind(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    found = str(schema.get("type", "any value"))
    if found == "array":
        inside = schema.get("prefixItems") or [schema.get("items", {})]
        return f"list of {', '.join(dict.fromkeys(map(kind, inside)))}"
    if found == "object":
        others = schema.get("additionalProperties")
        inside = schema.get("patternProperties", {"": others if isinstance(others, dict) else {}}).values()
        return f"{', '.join(map(kind, inside))} by name"
    bounds = " and ".join(f"{words} {schema[key]:g}" for key, words in _BOUNDS.items() if key in schema)
    pattern = f" that matches `{schema['pattern']}`" if "pattern" in schema else ""
    return f"{found}{' ' + bounds if bounds else ''}{pattern}"


def comments(record: type[BaseModel]) -> dict[str, str]:
    """What the comments `#:` above and behind the fields of a record and its bases say, by the field's key."""
    said: dict[str, str] = {}
    for one in (base for base in record.__mro__[::-1] if issubclass(base, BaseModel) and base is not BaseModel):
        above: list[str] = []
        for line in map(str.strip, _source(one).splitlines()):
            if line.startswith("#:"):
                above.append(line[2:].strip())
                continue
            if field := _FIELD.fullmatch(line):
                said[field[1]] = " ".join([*above, line.partition("#:")[2].strip()]).strip()
            above = []
    return {field.alias or name: said.get(name, "") for name, field in record.model_fields.items()}


def _source(record: type[BaseModel]) -> str:
    try:
        return inspect.getsource(record)
    except (OSError, TypeError):  # made by `create_model`
        return ""
