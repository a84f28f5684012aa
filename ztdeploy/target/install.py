"""Bring a bundle to the place that programs load it from, so that a loss of power at any moment leaves a working one.

    live/door              a link to door.versions/2/door; this is what programs load
    live/door.versions/1/  door, the one before, which `--rollback` goes back to, and install.json
    live/door.versions/2/  door, the one in use, and install.json

A new version is copied, signed, checked, built where engines are built on the device, and run on its golden data in a
hidden folder. It gets its number when all of it is on the disk, and only then the link is replaced, which file systems
do in one step. Whatever happens before leaves the link as it was. What an interrupted install left is removed by the
next one. Programs that are running have resolved the link when they opened the bundle, and stay on their version.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ztdeploy.core.bundle import MANIFEST, SIGNATURE, Bundle, check_signer, is_signed, read_bundle
from ztdeploy.core.data import SETTINGS_LIMIT
from ztdeploy.core.errors import (
    BundleError,
    EngineMismatchError,
    EnvironmentLacksError,
    InputError,
    OutputError,
    ZtdeployError,
)
from ztdeploy.core.files import (
    copy_file,
    is_temporary,
    make_folder,
    point,
    read_bytes,
    remove,
    remove_empty,
    remove_folder,
    settle,
    write,
)
from ztdeploy.core.folders import check_space, content_of, new_folder, settle_folder
from ztdeploy.core.locks import only_command
from ztdeploy.core.manifest import Manifest
from ztdeploy.core.progress import Progress, parts
from ztdeploy.core.records import Record, from_json, to_json
from ztdeploy.core.signature import SecretKey, SignedBy
from ztdeploy.target.backends import why_not_build, why_not_run
from ztdeploy.target.finalize import FinalizeReport, finalize_bundle
from ztdeploy.target.verify import VerifyReport, verify_bundle

RECORD = "install.json"
#: Shares of the time of an install's steps.
_SHARES = {"copy": 1.0, "build": 8.0, "verify": 2.0}
_CHOOSE = "choose another --to"
#: The name of a version's folder.
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class InstalledVersion(Record):
    """What is written down beside an installed bundle."""

    number: int
    previous: int | None  #: the version that a rollback goes back to
    release: str  #: sha256 of the manifest that was installed, before engines were built
    model: str
    built: str  #: when the bundle was built


class InstallReport(Record):
    """An install, or a rollback."""

    path: str  #: what programs load
    version: InstalledVersion  #: that is in use now
    changed: bool  #: False: this very bundle was in use already
    signature: SignedBy | None  #: None: no signature was demanded
    finalized: FinalizeReport | None  #: None: no engines were built here
    verified: VerifyReport
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """A path that programs load, and the versions beside it."""

    path: Path

    @property
    def versions(self) -> Path:
        return self.path.with_name(f"{self.path.name}.versions")

    def folder(self, number: int) -> Path:
        return self.versions / str(number)

    def bundle(self, number: int) -> Path:
        return self.folder(number) / self.path.name

    def target(self, number: int) -> str:
        """Where the link leads, as seen from its folder."""
        return f"{self.versions.name}/{number}/{self.path.name}"

    def current(self) -> int | None:
        """The number of the version in use.

        Raises:
            OutputError: something else lies at the path.
        """
        if not os.path.lexists(self.path):
            return None
        if not self.path.is_symlink():
            what = "a folder" if self.path.is_dir() else "a file"
            given = f"'{self.path}' is {what} that 'ztdeploy install' did not make"
            raise OutputError(given, "nothing there, or an earlier install", f"move it away, or {_CHOOSE}")
        target = self.path.readlink()
        number = target.parts[1] if len(target.parts) == 3 else ""
        if not _NUMBER.fullmatch(number) or str(target) != self.target(int(number)):
            given = f"'{self.path}' is a link to '{target}'"
            raise OutputError(given, "nothing there, or an earlier install", f"move it away, or {_CHOOSE}")
        return int(number)

    def record(self, number: int) -> InstalledVersion | None:
        """What was written down beside a version; None where there is none, or it is damaged."""
        try:
            return from_json(InstalledVersion, read_bytes(self.folder(number) / RECORD, SETTINGS_LIMIT))
        except (InputError, ValueError):
            return None

    def previous(self) -> int | None:
        """The version before the one in use, if it is still there."""
        current = self.current()
        record = None if current is None else self.record(current)
        number = None if record is None else record.previous
        return number if number is not None and self.bundle(number).is_dir() else None

    def next(self) -> int:
        """A number that no version has, and no other folder."""
        numbers = [int(one.name) for one in content_of(self.versions) if _NUMBER.fullmatch(one.name)]
        return 1 + max(*numbers, self.current() or 0, 0)

    def clean(self) -> None:
        """Remove what interrupted installs left: all but the version in use and the one before."""
        kept = {str(number) for number in (self.current(), self.previous()) if number is not None}
        for one in self.versions.iterdir():
            if one.name not in kept and (_NUMBER.fullmatch(one.name) or is_temporary(one.name)):
                remove_folder(one) if one.is_dir() and not one.is_symlink() else remove(one)
        for one in self.path.parent.iterdir():
            if is_temporary(one.name) and one.is_symlink() and one.readlink().parts[:1] == (self.versions.name,):
                remove(one)

    def use(self, number: int) -> None:
        """Have programs load a version from now on."""
        point(self.path, self.target(number))


def install_bundle(
    root: Path,
    to: Path,
    progress: Progress,
    *,
    profile: str | None = None,
    signer: SecretKey | None = None,
    finalize: bool = False,
    older: bool = False,
    force: bool = False,
) -> InstallReport:
    """Install a bundle, or leave everything as it was.

    Args:
        root: the bundle; a demanded signature is checked here and once more on the copy.
        to: the path that programs load: nothing yet, or what an earlier install made.
        profile: verify, and build, the engines of this profile only; by default of all that run here.
        signer: a key of this machine's own, which signs the bundle again after engines were built here.
        finalize: build engines here even where the bundle has some.
        older: let a bundle take the place of one that was built later.
        force: let a bundle of another model, or without a profile that the one in use has, take its place; and install
            again what is in use.

    Raises:
        BundleError: the bundle is damaged.
        EnvironmentLacksError: no engine of it runs here.
        InputError: it is older than the one in use, or of another kind.
        OutputError: something else lies at the path, another install is under way, or there is no space.
        ParityError: it gives other results here than it should.
        SignatureError: none of the demanded keys signed it.
    """
    place, told = _place(to), parts(progress, _SHARES)
    source = read_bundle(root)
    if source.root.resolve().is_relative_to(place.versions):
        raise InputError(f"'{root}' is an installed version", "another bundle", "to go back, give --rollback instead")
    with _alone(place):
        number = place.next()
        place.clean()
        current = place.current()
        notes = [] if current is None else _check_update(source, place, current, older=older, force=force)
        if current is not None and not (force or finalize) and _is_in_use(source, place, current):
            with suppress(ZtdeployError):  # a damaged one is installed again
                return _report(place, current, verify_bundle(place.bundle(current), profile, progress), changed=False)
        told["copy"]("checking files", 0, 1)
        source.verify_files()
        to_build = _profiles_to_build(source, profile, anew=finalize)
        if to_build:
            check_signer(source, signer)
        size = sum(record.bytes for record in source.manifest.files.values())
        check_space(place.versions, size * (2 if to_build else 1) + 2**20)
        with new_folder(place.folder(number), last=RECORD) as staged:
            copy = staged / place.path.name
            _copy(source, copy, told["copy"])
            finalized = _finalized(copy, to_build, signer, told["build"])
            verified = _verified(copy, profile, told["verify"])
            installed = InstalledVersion(
                number=number,
                previous=current if current is not None and place.bundle(current).is_dir() else None,
                release=str(source.digest),
                model=source.manifest.model.name,
                built=source.manifest.created,
            )
            write(staged / RECORD, to_json(installed, indent=1) + "\n")
            settle_folder(staged)
        settle(place.versions)
        try:
            place.use(number)
        except OutputError:
            if place.current() != number:  # else only the last wait for the disk has failed
                remove_folder(place.folder(number))
            raise
        try:
            place.clean()
        except OutputError as error:  # the update is there all the same
            notes.append(f"an older version stays: {error.given}")
    return _report(place, number, verified, finalized=finalized, notes=notes)


def roll_back(to: Path, progress: Progress, *, profile: str | None = None) -> InstallReport:
    """Have programs load the version before the one in use, once it was verified; the one in use stays for a while.

    Raises:
        InputError: there is no earlier version.
        ZtdeployError: the earlier version cannot be used here any more; everything is left as it was.
    """
    place = _place(to)
    given, fix = f"'{place.path}' has no earlier version", "install the bundle that you want"
    if place.current() is None:
        raise InputError(f"nothing is installed at '{place.path}'", "the --to of an earlier install", "check the path")
    with _alone(place):
        previous = place.previous()
        if previous is None:
            raise InputError(given, "a version that an install has replaced", fix)
        verified = _verified(place.bundle(previous), profile, progress)
        place.use(previous)
    return _report(place, previous, verified)


def _place(to: Path) -> _Place:
    """
    Raises:
        OutputError: something else lies at the path.
    """
    asked = Path(os.path.abspath(to))  # noqa: PTH100 - which does not follow the link itself
    place = _Place(Path(os.path.realpath(asked.parent), asked.name))
    if not place.path.name:
        raise OutputError(f"'{to}' has no name", "the path of a bundle to be", _CHOOSE)
    place.current()
    if place.versions.is_symlink() or (place.versions.exists() and not place.versions.is_dir()):
        raise OutputError(f"'{place.versions}' is no folder", "the folder of installed versions", _CHOOSE)
    return place


@contextmanager
def _alone(place: _Place) -> Iterator[None]:
    """Keep every other install away; the folders that are made for it are on the disk before anything is in them."""
    made = make_folder(place.versions)
    try:
        with only_command(place.versions, "install", _CHOOSE):
            for folder in made:
                settle(folder.parent)
            yield
    except BaseException:
        remove_empty(made)
        raise


def _check_update(source: Bundle, place: _Place, current: int, *, older: bool, force: bool) -> list[str]:
    """
    Returns:
        Remarks on the version in use.

    Raises:
        InputError: the bundle should not take its place unasked.
    """
    try:
        used = read_bundle(place.bundle(current), signed_by=()).manifest
    except (BundleError, InputError) as error:
        return [f"version {current}, which was in use, was not compared: {error.given}"]
    new = source.manifest
    if not older and _built(new) < _built(used):
        raise InputError(
            f"'{source.root}' was built {new.created}, before the one in use",
            f"a bundle built at {used.created} or later",
            "add --older to go back, or --rollback for the version before",
        )
    differences = list(_differences(new, used))
    if differences and not force:
        given = f"'{source.root}' has {' and '.join(differences)} than the one in use"
        raise InputError(given, "a bundle that the programs of this path can load", f"add --force, or {_CHOOSE}")
    return []


def _built(manifest: Manifest) -> datetime:
    """When a bundle was built; long ago where its manifest does not say so."""
    try:
        found = datetime.fromisoformat(manifest.created)
        return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)


def _differences(new: Manifest, used: Manifest) -> Iterator[str]:
    if new.model.name != used.model.name:
        yield f"another model ('{new.model.name}', not '{used.model.name}')"
    if new.model.gives != used.model.gives:
        yield f"other outputs ({new.model.gives}, not {used.model.gives})"
    if missing := sorted(set(used.profiles) - set(new.profiles)):
        yield f"other profiles (no '{missing[0]}')"


def _is_in_use(source: Bundle, place: _Place, current: int) -> bool:
    record = place.record(current)
    return record is not None and record.release == source.digest


def _profiles_to_build(bundle: Bundle, profile: str | None, *, anew: bool) -> list[str]:
    """The profiles whose engines are built here: those that lack some, or all that can be built where that is asked."""
    manifest = bundle.manifest
    names = list(manifest.profiles) if profile is None else [bundle.profile_name(profile)]
    lacking = [name for name in names if anew or any(name not in part.engines for part in manifest.parts)]
    possible = (one for one in lacking if why_not_run(manifest.profiles[one]) is None)
    return [one for one in possible if why_not_build(manifest.profiles[one]) is None]


def _copy(source: Bundle, copy: Path, progress: Progress) -> None:
    """Copy the files that the manifest lists, then the manifest and its signature. Links become files."""
    names = list(source.manifest.files)
    for done, name in enumerate(names):
        progress("copying", done, len(names))
        make_folder((copy / name).parent)
        copy_file(source.path(name), copy / name)
    for name in (SIGNATURE, MANIFEST) if is_signed(source.root) else (MANIFEST,):
        copy_file(source.root / name, copy / name)


def _finalized(copy: Path, profiles: list[str], signer: SecretKey | None, progress: Progress) -> FinalizeReport | None:
    """Build the engines of some profiles; whatever fails fails the install."""
    report: FinalizeReport | None = None
    for name in profiles:
        found = finalize_bundle(copy, progress, profile=name, signer=signer)
        before = report or FinalizeReport(rebuilt=(), chosen={}, notes=())
        report = FinalizeReport(
            rebuilt=(*before.rebuilt, *found.rebuilt),
            chosen={**before.chosen, **found.chosen},
            notes=(*before.notes, *found.notes),
        )
    return report


def _verified(folder: Path, profile: str | None, progress: Progress) -> VerifyReport:
    """
    Raises:
        EnvironmentLacksError: none of its engines runs here, or they belong to another runtime.
    """
    try:
        report = verify_bundle(folder, profile, progress)
    except EngineMismatchError as error:
        raise EngineMismatchError(error.given, error.expected, "add --finalize to build engines here") from error
    if not report.variants:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report.not_run.items())
        raise EnvironmentLacksError(
            f"no engine of the bundle runs here ({reasons or 'it holds none'})",
            "a machine that one of its profiles describes",
            "build it with a profile of this machine",
        )
    return report


def _report(
    place: _Place,
    number: int,
    verified: VerifyReport,
    *,
    changed: bool = True,
    finalized: FinalizeReport | None = None,
    notes: list[str] | None = None,
) -> InstallReport:
    record = place.record(number)
    if record is None:
        raise BundleError(f"'{place.folder(number) / RECORD}' is damaged", "a record of an install", "install again")
    return InstallReport(
        path=str(place.path),
        version=record,
        changed=changed,
        signature=verified.signature,
        finalized=finalized,
        verified=verified,
        notes=tuple(notes or ()),
    )
