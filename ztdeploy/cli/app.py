"""The Typer application, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import typer

from ztdeploy.cli.help import Application
from ztdeploy.cli.output import begin, fail, holding, say, talking, warn
from ztdeploy.cli.streams import silence
from ztdeploy.core.errors import ImageWarning, StreamError, ZtdeployError
from ztdeploy.core.files import system_error
from ztdeploy.version import __version__

EXIT_CODES = (
    "0 done, 1 a bug, 2 malformed command line, 3 unusable input, 4 damaged bundle, "
    "5 parity failed, 6 something is missing on this machine or a board, 7 slower than the baseline, "
    "8 pruning costs too much accuracy, 9 some profiles were not built, 130 interrupted."
)

_MOST_IMAGE_WARNINGS = 3
#: The modules of `ztdeploy/cli/` with a verb or a group of verbs, in the order of `--help`. Each has a function
#: `register(app)`, which adds its commands to the application. `results.RESULTS` names what each finds for `--json`.
VERBS: tuple[str, ...] = (
    *("quickstart", "build", "run", "verify", "export", "sign", "install", "remote"),
    *("eval", "show", "bench", "compare"),
    *("sweep", "tune", "report"),
    *("inspect", "models", "profiles", "doctor"),
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"ztdeploy {__version__}")
        raise typer.Exit


def _root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.", envvar="ZTDEPLOY_DEBUG"),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    if debug:
        os.environ["ZTDEPLOY_DEBUG"] = "1"


def application() -> typer.Typer:
    """The command line with all verbs."""
    found = Application(
        name="ztdeploy",
        help="Deployment compiler for vision transformers on edge devices.",
        epilog=EXIT_CODES,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    found.callback()(talking(_root))
    for verb in VERBS:
        import_module(f"ztdeploy.cli.{verb}").register(found)
    return found


app = application()


def run(arguments: Sequence[str], program: str = "ztdeploy", commands: typer.Typer | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        program: what people type in front of the arguments, for usage and errors.
        commands: an application with other commands. (default: `app`)
    """
    begin(arguments)
    with holding(), _image_warnings_as_ours():
        try:
            return _run(arguments, program, commands or app)
        except (typer.Abort, KeyboardInterrupt):
            return _fail("interrupted", 130)
        except StreamError as error:
            silence(1)
            return _fail(str(error), error.exit_code, error)
        except ZtdeployError as error:
            return _fail(str(error), error.exit_code, error)
        except (BrokenPipeError, SystemExit) as error:
            if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
                raise  # shell completion leaves this way; Typer leaves with 1 from a broken pipe
            # The reader of a pipe went away, as 'head' does; there is nobody left to tell.
            silence(1)
            return 0
        except OSError as error:  # that no part of ours has turned into an error
            refused = system_error(error)
            return _fail(str(refused), refused.exit_code, error)
        except Exception as error:
            # Click's own errors; some versions of Typer bring Click along, others import it.
            if any(base.__name__ == "ClickException" for base in type(error).__mro__):
                return _malformed(error)
            line = str(error).splitlines()[0] if str(error) else ""
            what = f"this is a bug: {type(error).__name__}: {line}; run again with --debug and report it"
            return _fail(what, 1, error)


def _run(arguments: Sequence[str], program: str, commands: typer.Typer) -> int:
    result = commands(list(arguments), prog_name=program, standalone_mode=False)
    sys.stdout.flush()
    if result == 130:  # what newer Typer makes of Ctrl-C
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


@contextmanager
def _image_warnings_as_ours() -> Iterator[None]:
    """Show warnings about images as our own, and of many such warnings the first few."""
    shown, others = list[str](), warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, ImageWarning):
            others(message, category, *place, **more)
        elif len(shown) <= _MOST_IMAGE_WARNINGS:
            shown.append(str(message))
            last = len(shown) > _MOST_IMAGE_WARNINGS
            warn("more images are like that; they are not named" if last else str(message))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = others


def _malformed(error: Any) -> int:
    """One line for what Click says in several, in which it quotes what was typed; the help where nothing was typed."""
    if any(base.__name__ == "NoArgsIsHelpError" for base in type(error).__mro__):
        error.show()
        return int(error.exit_code)
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    if context is not None:
        usage = " ".join(context.get_usage().split())
        message += f"{'' if message.endswith('?') else '.'} {usage}; see '{context.command_path} --help'"
    return _fail(message, int(error.exit_code))


def _fail(message: str, code: int, error: Exception | None = None) -> int:
    if os.environ.get("ZTDEPLOY_DEBUG") and error is not None:
        import traceback

        traceback.print_exception(error)
    fail(message, code)
    return code
