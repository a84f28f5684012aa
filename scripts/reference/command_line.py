"""Every verb with its arguments, options and examples, as the application declares them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from reference.records import row, table
from ztdeploy.cli.app import app


def command_line() -> str:
    return "\n".join(map(_section, verbs(typer.main.get_command(app), ("ztdeploy",))))


def verbs(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands that do something, each with the words that call it."""
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from verbs(inner, (*words, name))
    if not hasattr(command, "commands"):
        yield words, command


def _section(verb: tuple[tuple[str, ...], Any]) -> str:
    words, command = verb
    context = command.context_class(command, info_name=" ".join(words))
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            panel = getattr(parameter, "rich_help_panel", None)
            argument = parameter.param_type_name == "argument"
            panels.setdefault(panel or ("Arguments" if argument else "Options"), []).append(_row(*record))
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    tables = "\n".join(f"{table(panel, 'meaning')}{''.join(rows)}" for panel, rows in panels.items())
    text = _prose(command.help)
    return f"## {' '.join(words[1:])}\n\n{text}\n\n```text\n{usage}\n```\n\n{tables}\n{_prose(command.epilog)}\n"


def _row(names: str, meaning: str) -> str:
    """
    Args:
        names: such as "-m, --model NAME".
    """
    words = names.replace(",", "").split(" ")
    flags = [word for word in words if word.startswith("-")] or words[:1]
    takes = " ".join(words[len(flags) :])
    return row(", ".join(f"`{flag}`" for flag in flags) + (f" `{takes}`" if takes else ""), meaning)


def _prose(text: str | None) -> str:
    """Text of `--help` as Markdown: lines that call us are code."""
    lines = [line.strip() for line in (text or "").replace("\b", "").splitlines()]
    marked = "\n".join(
        f"    {line.removeprefix('$ ')}" if re.match(r"(\$ )?ztdeploy ", line) else line for line in lines
    )
    return re.sub(r"(?m)^(?! {4})(.+)\n( {4})", r"\1\n\n\2", marked).replace("Examples:", "**Examples:**").strip()
