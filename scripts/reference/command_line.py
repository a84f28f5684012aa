"""Every verb with its arguments, options and examples, as the application declares them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from reference.records import row, table
from ztdeploy.cli.app import app
from ztdeploy.cli.help import panels_of


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
    panels = {panel: [_row(*one) for one in rows] for panel, rows in panels_of(command.params).items()}
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    tables = "\n".join(f"{table(panel, 'meaning')}{''.join(rows)}" for panel, rows in panels.items())
    examples = f"```sh\n{command.epilog.strip()}\n```"
    return f"## {' '.join(words[1:])}\n\n{command.help}\n\n```text\n{usage}\n```\n\n{tables}\n{examples}\n"


def _row(names: str, meaning: str) -> str:
    """
    Args:
        names: such as "-m, --model NAME".
    """
    words = names.replace(", ", " ").split()
    flags = [word for word in words if word.startswith("-")] or words[:1]
    takes = " ".join(words[len(flags) :])
    return row(", ".join(f"`{flag}`" for flag in flags) + (f" `{takes}`" if takes else ""), meaning)
