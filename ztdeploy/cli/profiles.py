"""ztdeploy profiles list | schedules | show | check"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ztdeploy.cli.options import word_argument
from ztdeploy.cli.output import JsonFlag, note, print_json, print_lines, table

profiles = typer.Typer(help="Hardware profiles: what a device can run.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(profiles, name="profiles")


@profiles.command("list", help="All shipped profiles.")
def list_profiles(json: JsonFlag = False) -> None:
    from ztdeploy.core.profile import profile_names, read_profile
    from ztdeploy.target.backends import backend_of

    found = [read_profile(name) for name in profile_names()]
    if json:
        print_json([profile.model_dump(mode="json") for profile in found])
        return
    rows = [
        (
            profile.name,
            profile.title,
            profile.backend,
            "anywhere" if backend_of(profile).built_where == "anywhere" else "on the device",
            profile.precision,
            ", ".join(map(str, profile.batch.sizes)),
        )
        for profile in found
    ]
    headings = ("profile", "device", "backend", "built", "precision", "batch")
    table("Hardware profiles", [(heading, "left") for heading in headings], rows)


@profiles.command("schedules", help="All shipped schedules, for 'build --schedule'.")
def list_schedules(json: JsonFlag = False) -> None:
    from ztdeploy.core.profile import schedule_names, schedule_path
    from ztdeploy.core.schedule import read_schedule

    found = [read_schedule(schedule_path(Path(name))) for name in schedule_names()]
    if json:
        print_json([schedule.model_dump(mode="json", by_alias=True) for schedule in found])
        return
    rows = [
        (one.name, one.method, str(len(one.layers)), str(sum(layer.drop or 0 for layer in one.layers))) for one in found
    ]
    table(
        "Schedules", [("schedule", "left"), ("method", "left"), ("layers", "right"), ("tokens that go", "right")], rows
    )


@profiles.command("show", help="One profile in full, as TOML.")
def show_profile(name: Annotated[str, word_argument("Shipped profile or TOML file.")], json: JsonFlag = False) -> None:
    from ztdeploy.core.files import read_text
    from ztdeploy.core.profile import profile_folder, read_profile

    profile = read_profile(name)
    if json:
        print_json(profile.model_dump(mode="json"))
        return
    path = Path(name) if name.endswith(".toml") else profile_folder() / f"{name}.toml"
    print_lines(read_text(path).rstrip())


@profiles.command("check", help="Validate a profile file of your own.")
def check_profile(
    file: Annotated[str, word_argument("TOML file, or a shipped profile.")], json: JsonFlag = False
) -> None:
    from ztdeploy.core.profile import read_profile
    from ztdeploy.target.backends import backend_of

    profile = read_profile(file)
    backend_of(profile).check_profile(profile)
    if json:
        print_json({"profile": profile.name, "valid": True, "engines_can_be_built": True})
    else:
        note(f"'{profile.name}' is valid")
