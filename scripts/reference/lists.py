"""What is shipped and what can happen: profiles, schedules, methods, exit codes, the Python interface."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ztdeploy
from reference.records import record_tables, row, table
from ztdeploy.cli.app import EXIT_CODES
from ztdeploy.cli.results import RESULTS, result_type
from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.manifest import Manifest
from ztdeploy.core.methods import METHODS
from ztdeploy.core.profile import HardwareProfile, profile_folder, profile_names, read_profile, schedule_names
from ztdeploy.core.schedule import PruningSchedule, read_schedule

_CHECKOUT = Path(__file__).resolve().parents[2]


def profiles() -> str:
    rows = []
    for name in profile_names():
        one = read_profile(name)
        rows.append(row(f"`{name}`", f"{one.title}. {one.notes}", one.backend, one.precision))
    return table("profile", "target", "backend", "precision") + "".join(rows)


def profile_keys() -> str:
    return record_tables(HardwareProfile)


def manifest() -> str:
    return record_tables(Manifest)


def schedules() -> str:
    rows = []
    for name in schedule_names():
        path = profile_folder() / "schedules" / f"{name}.toml"
        text, one = path.read_text(encoding="utf-8"), read_schedule(path)
        blocks = ", ".join(str(layer.block) for layer in one.layers)
        origin = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        rows.append(row(f"`{name}`", one.method, blocks, origin))
    return table("schedule", "method", "behind blocks", "where it comes from") + "".join(rows)


def schedule_keys() -> str:
    return record_tables(PruningSchedule)


def methods() -> str:
    rows = []
    for name, method in METHODS.items():
        removes = "merges" if method.merges else "drops"
        removes = "drops and merges" if method.drops is not None else removes
        options = ", ".join(f"`{option}`" for option in sorted(method.options)) or "none"
        rows.append(row(f"`{name}`", removes, _summary(method.layer), options))
    return table("method", "tokens", "what it does", "options") + "".join(rows)


def _summary(layer: str) -> str:
    """What the module of a layer says first, read without importing PyTorch."""
    path = _CHECKOUT / f"{layer.partition(':')[0].replace('.', '/')}.py"
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]


def exit_codes() -> str:
    errors: dict[int, list[str]] = {}
    for one in _errors(ZtdeployError):
        errors.setdefault(one.exit_code, []).append(f"`{one.__name__}`")
    meanings = re.findall(r"(\d+) ([^,.]+)", EXIT_CODES)
    rows = [row(code, meaning, ", ".join(errors.get(int(code), ()))) for code, meaning in meanings]
    return table("code", "meaning", "errors in Python") + "".join(rows)


def _errors(base: type[ZtdeployError]) -> list[type[ZtdeployError]]:
    below = [found for one in base.__subclasses__() for found in _errors(one)]
    return below if base is ZtdeployError else [base, *below]


def python() -> str:
    """Directives of mkdocstrings, which reads the docstrings."""
    return "\n".join(f"::: ztdeploy.{name}\n" for name in ztdeploy.__all__ if not name.startswith("__"))


def json_verbs() -> str:
    rows = [row(f"`{verb}`", f"[{name}](#{name.lower()})") for verb, name in _result_names().items()]
    return table("verb", "`result`") + "".join(rows)


def _result_names() -> dict[str, str]:
    return {verb: result_type(verb).__name__ for verb in RESULTS}


def json_records() -> str:
    return record_tables(*{name: result_type(verb) for verb, name in _result_names().items()}.values())
