"""ztdeploy install"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.help import DEPLOY, OUTPUT
from ztdeploy.cli.options import (
    SignedByOption,
    SignOption,
    argument,
    demand_signature,
    flag,
    option,
    path,
    signer,
)
from ztdeploy.cli.output import answer, note, progress_bar, warn
from ztdeploy.cli.verify import OnlyProfileOption, show_finalized, show_verified
from ztdeploy.core.errors import InputError

if TYPE_CHECKING:
    from ztdeploy.target.install import InstallReport


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=DEPLOY)(install)


def install(
    to: Annotated[
        Path, option("--to PATH", path, OUTPUT, "Where programs load the bundle from: a link, which is made.")
    ],
    bundle: Annotated[Path | None, argument("BUNDLE", path, "Folder that 'ztdeploy build' wrote.")] = None,
    rollback: Annotated[
        bool, flag("--rollback", OUTPUT, "Go back to the version before, instead of a bundle.")
    ] = False,
    profile: OnlyProfileOption = None,
    finalize: Annotated[
        bool, flag("--finalize", OUTPUT, "Build engines here, also where the bundle brings some for another runtime.")
    ] = False,
    signed_by: SignedByOption = None,
    sign: SignOption = None,
    older: Annotated[
        bool, flag("--older", OUTPUT, "Also install a bundle that was built before the one in use.")
    ] = False,
    force: Annotated[
        bool, flag("--force", OUTPUT, "Also install another model, fewer profiles, or once more what is in use.")
    ] = False,
) -> None:
    """Update a bundle on a device: programs load the old one until the new one is proved here.

    The bundle is copied, checked, and run on its golden data; engines that are built on the device are built. Only then
    the link at PATH leads to it, in one step. A loss of power at any moment leaves the old or the new one there.

    Examples:
        # Install what is signed by the key of your fleet; programs load live/door.
        ztdeploy install quickstart --to live/door --signed-by fleet.pub
        # Go back to what was there before.
        ztdeploy install --rollback --to live/door
    """
    from ztdeploy.target.install import install_bundle, roll_back

    if (bundle is None) != rollback:
        given = "a bundle and --rollback" if rollback else "neither a bundle nor --rollback"
        raise InputError(given, "one of them", "give the bundle to install, or --rollback")
    demand_signature(signed_by)
    key = signer(sign)
    with progress_bar() as progress:
        if bundle is None:
            report = roll_back(to, progress, profile=profile)
        else:
            report = install_bundle(
                bundle, to, progress, profile=profile, signer=key, finalize=finalize, older=older, force=force
            )
    answer(report, lambda: _show(report))


def _show(report: InstallReport) -> None:
    if report.finalized is not None:
        show_finalized(report.finalized)
    show_verified(report.verified, report.version.model)
    for line in report.notes:
        warn(line)
    used = f"version {report.version.number}, {report.version.model} of {report.version.built}"
    note(f"{report.path} leads to {used}" if report.changed else f"{report.path} leads to this bundle already: {used}")
