"""Files on their way to a board: told apart by content, sent once, by rsync where both sides have it, else by sftp."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ztdeploy.core.bundle import MANIFEST, SIGNATURE, Bundle, file_records, is_signed, read_bundle, sha256_of
from ztdeploy.core.errors import BoardError, InputError, OutputError
from ztdeploy.core.files import link, reason_of
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.manifest import FileRecord
from ztdeploy.jobs.remote.ssh import Connection
from ztdeploy.target.board import BoardFacts, Prepared, PrepareRequest, Tree
from ztdeploy.target.bundle_readme import README

#: Files of a folder at most; a listing of so many has some ten MB.
_MOST_FILES = 100_000
_FULL = re.compile(r"No space left|Disk quota exceeded|write.*: Failure$")
#: The line of rsync's progress: bytes, and the share of all.
_SENT = re.compile(r"([\d,.]+)\s+\d+%")


@dataclass(frozen=True)
class Parcel:
    """A folder or file of this machine, and the tree that it becomes on a board."""

    path: Path  #: as the user named it
    tree: Tree
    sources: Mapping[str, Path]  #: where a file of each sha256 lies
    bundle: Bundle | None = None


def parcel(path: Path) -> Parcel:
    """What is sent for a path: a bundle by its manifest, else all files below it that are not hidden.

    Raises:
        BundleError: a bundle with a damaged manifest.
        InputError: it cannot be read, or holds nothing or too much.
    """
    if (path / MANIFEST).is_file():
        return _bundle_parcel(path)
    files = {path.name: path} if path.is_file() else _files_below(path)
    records, sources = dict[str, FileRecord](), dict[str, Path]()
    for name, file in files.items():
        try:
            record = FileRecord(sha256=sha256_of(file), bytes=file.stat().st_size)
        except OSError as error:
            raise InputError(
                f"'{file}' cannot be read: {reason_of(error)}", "files that can be read", "check the path"
            ) from error
        records[name], sources[record.sha256] = record, file
    return Parcel(path, Tree(key=_key(records), files=records), sources)


def _bundle_parcel(path: Path) -> Parcel:
    """A bundle. Its key leaves out the manifest and README, which change when an evaluation is recorded; but not a
    signature, which says the same as the manifest that it was made for.
    """
    bundle, name = read_bundle(path), path.resolve().name
    about = file_records(path, [MANIFEST, *([SIGNATURE] if is_signed(path) else [])])
    records = {f"{name}/{file}": record for file, record in {**about, **bundle.manifest.files}.items()}
    built = {file: record for file, record in records.items() if file not in (f"{name}/{MANIFEST}", f"{name}/{README}")}
    sources = {record.sha256: path / PurePosixPath(file).relative_to(name) for file, record in records.items()}
    return Parcel(path, Tree(key=_key(built), files=records), sources, bundle)


def _files_below(folder: Path) -> dict[str, Path]:
    """Regular files by their path on a board, links included; those of a folder whose name is hidden are left out."""
    name, found = folder.resolve().name, dict[str, Path]()
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for file in sorted(files):
            path = Path(here, file)
            if not file.startswith(".") and path.is_file():
                found[(PurePosixPath(name) / path.relative_to(folder)).as_posix()] = path
        if len(found) > _MOST_FILES:
            raise InputError(f"'{folder}' holds more than {_MOST_FILES:,} files", "fewer", "choose some of them")
    if not found:
        raise InputError(f"'{folder}' is no file, and no folder with files", "a path that exists", "check the path")
    return found


def _key(files: Mapping[str, FileRecord]) -> str:
    lines = sorted(f"{path!r} {file.sha256} {file.bytes}\n" for path, file in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def deliver(connection: Connection, facts: BoardFacts, parcels: Sequence[Parcel]) -> dict[str, str]:
    """Have parcels on a board, and say where each tree lies there. What is there already is not sent.

    Raises:
        BoardError: the board cannot be reached, or refuses; what has arrived whole stays there.
        BundleError: a bundle's file is not what its manifest says.
        OutputError: the board's disk is full.
    """
    request = PrepareRequest(trees=tuple(one.tree for one in parcels))
    found = connection.ask(request, Prepared)
    if found.missing:
        send_files(connection, _sources(parcels, found.missing), facts.store, rsync=facts.rsync)
        found = connection.ask(request, Prepared)
    if found.missing:
        raise BoardError(
            f"{len(found.missing)} files arrived damaged on board '{connection.name}'", "whole files", "send them again"
        )
    if found.places.keys() != {one.tree.key for one in parcels}:
        raise BoardError(f"board '{connection.name}' does not say where files are", "a path each", "look at the board")
    return dict(found.places)


def _sources(parcels: Sequence[Parcel], missing: Sequence[str]) -> dict[str, Path]:
    """Where the missing files lie, of which those of bundles are what their manifest says."""
    for one in parcels:
        if one.bundle is not None:
            known = one.bundle.manifest.files
            one.bundle.verify_files(sorted(name for name, file in known.items() if file.sha256 in missing))
    known_here = {sha256: path for one in parcels for sha256, path in one.sources.items()}
    if not known_here.keys() >= {*missing}:
        raise BoardError("a board asks for files that were not offered", "those of the request", "look at the board")
    return {sha256: known_here[sha256] for sha256 in missing}


def send_files(connection: Connection, files: Mapping[str, Path], folder: str, *, rsync: bool) -> None:
    """Send files into a folder of a board under other names, which are plain ones.

    Args:
        files: by their name there.
        folder: without characters that a shell or a program could misread.
        rsync: whether the board has it.

    Raises:
        BoardError, OutputError: as `deliver`.
    """
    total = sum(path.stat().st_size for path in files.values())
    host = f"[{connection.board.host}]" if ":" in connection.board.host else connection.board.host
    connection.told(f"sending {total / 1e6:.1f} MB in {len(files)} files")
    with scratch_folder() as staged:
        for name, path in files.items():
            link(path.resolve(), staged / name)
        if rsync and shutil.which("rsync"):
            shell = " ".join(f"'{word}'" if " " in word else word for word in connection.ssh)
            command = [
                "rsync",
                "--recursive",
                "--copy-links",
                "--inplace",
                "--partial",
                "--timeout=60",
                "--secluded-args",
            ]
            command += ["--info=progress2", "--outbuf=L", "-e", shell, "--", f"{staged}/", f"{host}:{folder}/"]
            ended = connection.program(command, heard=lambda line: _tell(connection, line, total))
        else:
            ssh, *more = connection.ssh
            lines = "".join(f'put "{staged / name}" "{folder}/{name}"\n' for name in files)
            program = ["-S", shutil.which(ssh) or ssh]
            ended = connection.program(
                ["sftp", "-q", *program, *more, "-b", "-", "--", host], lines.encode(), watched=False
            )
    if ended.code == 0:
        return
    if any(_FULL.search(line) for line in ended.err):
        raise OutputError(
            f"the disk of board '{connection.name}' is full: {ended.last}",
            f"space for {total / 1e6:.1f} MB",
            "free space there; what earlier runs left is in ~/.cache/ztdeploy/remote",
        )
    raise connection.failure(ended)


def _tell(connection: Connection, line: str, total: int) -> None:
    """What rsync says of its progress, in our words."""
    found = _SENT.search(line)
    if found:
        done = int(re.sub(r"\D", "", found[1]) or 0)
        connection.told(f"sending {min(done, total) / 1e6:.1f} of {total / 1e6:.1f} MB")
