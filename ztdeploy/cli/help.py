"""What `--help` looks like: verbs in groups, options in panels, and two examples for every verb."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ztdeploy.cli.output import named, talking

_Command = TypeVar("_Command", bound=Callable[..., Any])
#: Panels of options, in the order of `--help`.
MODEL, PRUNING, TARGETS, QUALITY, MEASURING, OUTPUT = ["Model", "Pruning", "Targets", "Quality", "Measuring", "Output"]
_PANELS = ("Arguments", MODEL, PRUNING, TARGETS, QUALITY, MEASURING, OUTPUT, "Global options")
#: Groups of verbs.
DEPLOY, JUDGE, SEARCH, LOOK_UP = "Deploy", "Measure and judge", "Search", "Look up"
#: How many columns the names of options take at most; longer names have a line of their own.
_NAMES = 30
#: Metavars of numbers, of which the last one counts, as in any shell. Of anything else, the first of two would be
#: dropped without a word.
NUMBERS = {"N", "NUMBER", "PERCENT", "RATIO", "SECONDS"}


class Verb(TyperCommand):
    """A command whose options that name one thing are given once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named(" ".join(_words_to(ctx)))
        ctx.meta["typed"], _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in given:
            if takes_one(option) and given.count(option) > 1:
                hint = f"'{' / '.join(option.opts)}'"
                raise typer.BadParameter("it is given twice and takes one value", ctx=ctx, param_hint=hint)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *filter(None, map(_in_usage, self.get_params(ctx)))]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _write_head(self, ctx, formatter)
        _write_sections(panels_of(self.get_params(ctx)), formatter)
        if self.epilog:
            with formatter.section(_heading("Examples")):
                lines = self.epilog.strip().replace("\n#", "\n\n#").splitlines()
                formatter.write("".join(f"  {line}".rstrip() + "\n" for line in lines))


class Verbs(TyperGroup):
    """A command of commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _write_head(self, ctx, formatter)
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            line = command.help.partition("\n")[0]
            groups.setdefault(command.rich_help_panel or "Commands", []).append((name, line))
        _write_sections(groups, formatter)
        _write_sections(panels_of(self.get_params(ctx)), formatter)
        if self.epilog:
            with formatter.section(_heading("Exit codes")):
                formatter.write_text(self.epilog)


class Application(typer.Typer):
    """A command line whose commands show their help as above."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=Verbs, rich_markup_mode=None, no_args_is_help=True, **options)

    def command(self, *arguments: Any, **options: Any) -> Callable[[_Command], _Command]:
        """A decorator of a function whose docstring is the command's help, with examples at its end."""

        def add(command: _Command) -> _Command:
            help, _, examples = cleandoc(command.__doc__ or "").partition("\n\nExamples:\n")
            words = {"help": help, "epilog": textwrap.dedent(examples)}
            return super(Application, self).command(*arguments, cls=Verb, **{**words, **options})(talking(command))

        return add


def _words_to(context: Any) -> list[str]:
    """What was typed to reach a command, without the program's name."""
    return [] if context.parent is None else [*_words_to(context.parent), context.info_name]


def takes_one(option: Any) -> bool:
    """Whether an option names one thing."""
    single = option.param_type_name == "option" and not option.is_flag and not option.multiple
    return single and option.metavar not in NUMBERS


def _write_head(command: Any, ctx: Any, formatter: Any) -> None:
    formatter.write_text(command.help)
    formatter.write_paragraph()
    formatter.write_usage(ctx.command_path, " ".join(command.collect_usage_pieces(ctx)), f"{_heading('Usage')}: ")


def panels_of(options: Iterable[Any]) -> dict[str, list[tuple[str, str]]]:
    """The names and meanings of arguments and options, by panel."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for one in options:
        if not getattr(one, "hidden", False):
            argument = one.param_type_name == "argument"
            panel = getattr(one, "rich_help_panel", None) or (_PANELS[0] if argument else _PANELS[-1])
            panels.setdefault(panel, []).append((_names(one), _meaning(one)))
    return {panel: panels[panel] for panel in sorted(panels, key=_PANELS.index)}


def _write_sections(sections: Mapping[str, list[tuple[str, str]]], formatter: Any) -> None:
    """Sections of two columns, which stand at the same place in all of them."""
    width = min(max((len(name) for rows in sections.values() for name, _ in rows), default=0), _NAMES)
    for heading, rows in sections.items():
        with formatter.section(_heading(heading)):
            for name, meaning in rows:
                whole = re.sub(r"\[default: [^]]{1,30}\]", lambda found: found[0].replace(" ", "\0"), meaning)
                lines = textwrap.wrap(whole, formatter.width - width - 4, break_on_hyphens=False)
                beside = lines.pop(0) if len(name) <= width and lines else ""
                column = _styled(f"{name:<{width}}" if beside else name, fg="cyan")
                text = "\n".join([f"  {column}  {beside}".rstrip(), *(f"{'':>{width + 4}}{line}" for line in lines)])
                formatter.write(text.replace("\0", " ") + "\n")


def _heading(text: str) -> str:
    return _styled(text, bold=True)


def _styled(text: str, **style: Any) -> str:
    return text if os.environ.get("NO_COLOR") else typer.style(text, **style)


def _metavar(one: Any) -> str:
    named = one.metavar or one.name.upper()
    return f"{named}..." if one.param_type_name == "argument" and one.nargs == -1 else named


def _in_usage(one: Any) -> str:
    """What of the usage an argument or a required option is; nothing of other options."""
    if one.param_type_name == "argument":
        return _metavar(one) if one.required else f"[{_metavar(one)}]"
    return f"{one.opts[-1]} {_metavar(one)}" if one.required else ""


def _names(one: Any) -> str:
    """Such as "-k, --keep-ratio RATIO"."""
    if one.param_type_name == "argument":
        return _metavar(one)
    short, long = ([name for name in one.opts if name.startswith("--") is wanted] for wanted in (False, True))
    names = ", ".join([*short, "/".join([*long, *one.secondary_opts])])
    return f"{'' if short else '    '}{names}{'' if one.is_flag else f' {_metavar(one)}'}"


def _meaning(one: Any) -> str:
    """What an option does, and its default."""
    default = one.default
    if isinstance(default, bool):
        default = (one.opts if default else one.secondary_opts)[0] if one.secondary_opts else None
    elif isinstance(default, float):
        default = f"{default:g}"
    shown = f" [default: {default}]" if isinstance(default, str | int | Path) and default is not False else ""
    required = " [required]" if one.required and one.param_type_name == "option" else ""
    variable = f" [environment: {one.envvar}]" if one.envvar else ""
    return f"{one.help or ''}{shown}{required}{variable}"
