"""ztdeploy profiles list | schedules | show | check"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.help import LOOK_UP
from ztdeploy.cli.options import PROFILES, argument, word
from ztdeploy.cli.output import answer, print_lines, say, table

if TYPE_CHECKING:
    from ztdeploy.core.profile import HardwareProfile
    from ztdeploy.core.schedule import PruningSchedule


def register(app: typer.Typer) -> None:
    profiles = type(app)(help="List and check hardware profiles; list schedules.")
    profiles.command("list")(list_profiles)
    profiles.command("schedules")(list_schedules)
    profiles.command("show")(show_profile)
    profiles.command("check")(check_profile)
    app.add_typer(profiles, name="profiles", rich_help_panel=LOOK_UP)


def list_profiles() -> None:
    """List the shipped profiles.

    Examples:
        ztdeploy profiles list
        ztdeploy profiles list --json
    """
    from ztdeploy.cli.results import ProfilesResult
    from ztdeploy.core.profile import profile_names, read_profile

    found = [read_profile(name) for name in profile_names()]
    answer(ProfilesResult(profiles=tuple(found)), lambda: _show_profiles(found))


def _show_profiles(found: list[HardwareProfile]) -> None:
    from ztdeploy.target.backends import backend_of

    rows = [
        (
            profile.name,
            profile.title,
            "anywhere" if backend_of(profile).built_where == "anywhere" else "on the device",
            profile.precision,
            ", ".join(map(str, profile.batch.sizes)),
        )
        for profile in found
    ]
    headings = ("profile", "device", "engines are built", "precision", "batch")
    table("Hardware profiles", [(heading, "left") for heading in headings], rows)


def list_schedules() -> None:
    """List the shipped schedules, for 'build --schedule'.

    Examples:
        ztdeploy profiles schedules
        ztdeploy profiles schedules --json
    """
    from ztdeploy.cli.results import SchedulesResult
    from ztdeploy.core.profile import schedule_names, schedule_path
    from ztdeploy.core.schedule import read_schedule

    found = [read_schedule(schedule_path(Path(name))) for name in schedule_names()]
    answer(SchedulesResult(schedules=tuple(found)), lambda: _show_schedules(found))


def _show_schedules(found: list[PruningSchedule]) -> None:
    rows = [
        (one.name, one.method, str(len(one.layers)), str(sum(layer.drop or 0 for layer in one.layers))) for one in found
    ]
    table(
        "Schedules", [("schedule", "left"), ("method", "left"), ("layers", "right"), ("tokens that go", "right")], rows
    )


def show_profile(
    name: Annotated[str, argument("PROFILE", word, "Shipped profile or TOML file.", known=PROFILES)],
) -> None:
    """Show a profile in full, as TOML.

    Examples:
        # Show a profile.
        ztdeploy profiles show jetson-orin
        # Begin a profile of your own.
        ztdeploy profiles show cpu > mine.toml
    """
    from ztdeploy.core.files import read_text
    from ztdeploy.core.profile import profile_folder, read_profile

    profile = read_profile(name)
    path = Path(name) if name.endswith(".toml") else profile_folder() / f"{name}.toml"
    answer(profile, lambda: print_lines(read_text(path).rstrip()))


def check_profile(
    file: Annotated[str, argument("FILE", word, "TOML file, or a shipped profile.", known=PROFILES)],
) -> None:
    """Validate a profile file of your own.

    Examples:
        ztdeploy profiles check mine.toml
        ztdeploy profiles check jetson-orin --json
    """
    from ztdeploy.cli.results import CheckedProfile
    from ztdeploy.core.profile import read_profile
    from ztdeploy.target.backends import backend_of

    profile = read_profile(file)
    backend_of(profile).check_profile(profile)
    found = CheckedProfile(profile=profile.name, valid=True, engines_can_be_built=True)
    answer(found, lambda: say(f"'{profile.name}' is valid"))
