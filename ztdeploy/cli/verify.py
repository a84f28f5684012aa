"""ztdeploy verify, ztdeploy finalize"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.boards import Delivery, on_boards
from ztdeploy.cli.help import DEPLOY, TARGETS
from ztdeploy.cli.options import (
    PROFILES,
    BundleArgument,
    SignedByOption,
    SignOption,
    demand_signature,
    option,
    signer,
    word,
)
from ztdeploy.cli.output import answer, leave, note, progress_bar, table, warn

if TYPE_CHECKING:
    from ztdeploy.core.manifest import EngineRecord
    from ztdeploy.target.finalize import FinalizeReport
    from ztdeploy.target.verify import VerifyReport

OnlyProfileOption = Annotated[
    str | None,
    option(
        "-p, --profile NAME",
        word,
        TARGETS,
        "Only this profile's engines. [default: all that run here]",
        known=PROFILES,
    ),
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=DEPLOY)(on_boards(Delivery(show_verified))(verify))
    app.command(rich_help_panel=DEPLOY)(on_boards(Delivery(show_finalized))(finalize))


def verify(bundle: BundleArgument, profile: OnlyProfileOption = None, signed_by: SignedByOption = None) -> None:
    """Check a bundle's files, and its engines against golden outputs.

    Examples:
        # Check a bundle after it was copied.
        ztdeploy verify quickstart
        # Check the engines of one profile, for a program.
        ztdeploy verify quickstart --profile cpu --json
        # Check that one of your keys signed it, and that nothing has changed since.
        ztdeploy verify door --signed-by fleet.pub
    """
    from ztdeploy.target.verify import verify_bundle

    demand_signature(signed_by)
    with progress_bar() as progress:
        report = verify_bundle(bundle, profile, progress)
    answer(report, lambda: show_verified(report, bundle.resolve().name))


def show_verified(report: VerifyReport, name: str = "bundle") -> None:
    rows = [
        (
            name,
            f"{record.images}",
            f"{record.judged:.1e}",
            f"{record.logit_tolerance:.1e}",
            ", ".join(f"{layer.identical}/{layer.identical + layer.ties}" for layer in record.layers) or "-",
            f"{sum(layer.ties for layer in record.layers)}",
        )
        for name, record in (*report.variants.items(), *report.cascade.items())
    ]
    columns = [("variant", "left"), ("images", "right"), ("logit difference", "right"), ("allowed", "right")]
    columns += [("same tokens per layer", "left"), ("ties", "right")]
    title = f"{name}: {report.files} files intact, pre-processing identical"
    table(title, columns, rows)
    if report.signature is not None:
        note(f"signed by key {report.signature.key}: {report.signature.comment}")
    for name, reason in report.not_run.items():
        warn(f"profile '{name}' was not run: {reason}")
    for line in report.notes:
        warn(line)
    note("verified" if report.variants else "verified; no engine in the bundle could be run here")


def finalize(
    bundle: BundleArgument,
    profile: OnlyProfileOption = None,
    signed_by: SignedByOption = None,
    sign: SignOption = None,
) -> None:
    """Build a bundle's engines on the device that runs them.

    Examples:
        # Build all engines that this machine can take.
        ztdeploy finalize quickstart
        # Build those of one profile.
        ztdeploy finalize quickstart --profile cpu
    """
    from ztdeploy.target.finalize import finalize_bundle

    demand_signature(signed_by)
    key = signer(sign)
    with progress_bar() as progress:
        report = finalize_bundle(bundle, progress, profile=profile, signer=key)
    answer(report, lambda: show_finalized(report))
    leave(report.failed)


def show_finalized(report: FinalizeReport) -> None:
    measured = {label: engine.candidates for label, engine in report.chosen.items() if engine.candidates}
    if measured:
        rows = [
            (label, *(f"{one.median_ms:.2f} ms" for one in candidates), _kept(report.chosen[label]))
            for label, candidates in measured.items()
        ]
        table("measured here", [("engine", "left"), ("plain", "right"), ("plugins", "right"), ("kept", "left")], rows)
    for line in (*report.notes, *(one.line for one in report.failed)):
        warn(line)
    note(f"rebuilt and verified {len(report.rebuilt)} engines: {', '.join(report.rebuilt)}")


def _kept(engine: EngineRecord) -> str:
    from ztdeploy.core.manifest import plugin_kind

    kind = plugin_kind(engine.fingerprint.plugins)
    return "plain" if kind == "none" else f"plugins ({kind})"
