"""ztdeploy sign"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ztdeploy.cli.help import DEPLOY, TARGETS
from ztdeploy.cli.options import BundleArgument, option, path, signer, word
from ztdeploy.cli.output import answer, note, say


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=DEPLOY)(sign)


def sign(
    bundle: BundleArgument,
    key: Annotated[Path, option("--key FILE", path, TARGETS, "Secret key, which 'minisign -G' makes.")],
    password_file: Annotated[
        Path | None, option("--password-file FILE", path, TARGETS, "File with the key's password. [default: asked for]")
    ] = None,
    comment: Annotated[
        str | None,
        option("--comment TEXT", word, TARGETS, "Words that are signed as well, such as the name of a release."),
    ] = None,
) -> None:
    """Sign a bundle as it is, so that devices can demand your signature.

    The signature, manifest.json.minisig, is one of the program minisign. It covers the manifest, which has the sha256
    of every other file. Whatever changes the manifest ('finalize', 'eval') has to come first.

    Examples:
        # Sign a bundle; devices that have fleet.pub check it.
        ztdeploy sign quickstart --key fleet.key --comment 'release 1.4'
        # Sign where nobody can type.
        ztdeploy sign quickstart --key fleet.key --password-file password.txt
    """
    from ztdeploy.core.bundle import SIGNATURE, sign_bundle

    signed = sign_bundle(bundle, signer(key, password_file), comment or "")
    answer(signed, lambda: say(f"key {signed.key}: {signed.comment}"))
    note(f"wrote {bundle / SIGNATURE}")
