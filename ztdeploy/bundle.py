"""The bundle: a folder with engines, graphs, one shared weights file, golden data, and the evidence.

It is the only thing that host and target have in common. A bundle is untrusted input: every path in its manifest
is checked to stay inside it, every file against its hash, and nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ztdeploy.errors import BundleError, OutputError, did_you_mean
from ztdeploy.manifest import SCHEMA_VERSION, EngineRecord, FidelityRecord, FileRecord, Manifest, VariantRecord
from ztdeploy.processes import is_alive

MANIFEST = "manifest.json"
WEIGHTS_FILE = "graphs/weights.safetensors"
_PARTIAL, _REPLACED = ".partial-", ".replaced-"
_MANIFEST_LIMIT = 64 * 2**20
_FULL_BYTES = 64 * 2**10


class Bundle:
    """A bundle on disk, its manifest read and its paths checked. Hashes are checked by `verify_files`."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root, self.manifest = root, manifest

    def path(self, name: str) -> Path:
        """The absolute path of a bundle's file.

        Raises:
            BundleError: the file is missing, is not listed, or is a link that leads outside.
        """
        path = self.root / name
        if name not in self.manifest.files:
            raise BundleError(f"'{name}' of {self.root}", "a file listed in the manifest", "build the bundle again")
        if not path.is_file():
            raise BundleError(f"'{path}' is missing", "every file of the manifest", "copy the whole folder again")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise BundleError(f"'{path}' leads outside the bundle", "files inside the bundle", "do not use this bundle")
        return path

    def verify_files(self, names: list[str] | None = None) -> None:
        """Compare files (default: all) with their recorded sizes and sha256.

        Raises:
            BundleError: a file is missing or has changed.
        """
        for name in sorted(self.manifest.files) if names is None else names:
            path, record = self.path(name), self.manifest.files[name]
            if path.stat().st_size != record.bytes or sha256_of(path) != record.sha256:
                raise BundleError(
                    f"'{path}' has changed since the build",
                    f"sha256 {record.sha256[:12]}...",
                    "copy or build the bundle again",
                )

    def engine_digest(self, engine: EngineRecord) -> str:
        """The sha256 of all that decides what an engine answers: its own files, and the weights that it may share."""
        hashes = [self.manifest.files[name].sha256 for name in (*engine.files, WEIGHTS_FILE)]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def fidelity(self, variant: VariantRecord, profile: str) -> FidelityRecord | None:
        """What is on record of a variant's engine, if the engine and the dense one still are those evaluated."""
        engine = variant.engines.get(profile)
        if engine is None or engine.fidelity is None:
            return None
        dense = self.manifest.dense.engines.get(engine.fidelity.dense_profile or profile)
        if dense is None:
            return None
        now = (self.engine_digest(engine), self.engine_digest(dense))
        return engine.fidelity if now == (engine.fidelity.engine_sha256, engine.fidelity.dense_sha256) else None

    def profile_name(self, wanted: str | None) -> str:
        """The profile to run: the one asked for, or the first that has engines."""
        if wanted is not None:
            if wanted not in self.manifest.profiles:
                raise BundleError(
                    f"profile '{wanted}' of {self.root}",
                    "a profile in the bundle",
                    did_you_mean(wanted, self.manifest.profiles),
                )
            return wanted
        for name in self.manifest.profiles:
            if any(name in variant.engines for variant in self.manifest.variants):
                return name
        raise BundleError(
            f"{self.root} holds no engine ({'; '.join(self.manifest.missing)})",
            "at least one engine that this machine can run",
            "build with --profile cpu as well",
        )

    def variant(self, keep_ratio: float | None = None, name: str | None = None) -> VariantRecord:
        """A variant by keep ratio or name; the default one where neither is given.

        Raises:
            BundleError: the bundle has no such variant, or both were given.
        """
        if keep_ratio is not None and name is not None:
            raise BundleError(f"both keep ratio {keep_ratio:g} and variant '{name}'", "one of them", "leave one out")
        name = self.manifest.default_variant if name is None and keep_ratio is None else name
        for variant in self.manifest.variants:
            if variant.name == name or (keep_ratio is not None and variant.keep_ratio == keep_ratio):
                return variant
        have = ", ".join(v.name if v.keep_ratio is None else f"{v.keep_ratio:g}" for v in self.manifest.variants)
        asked = f"variant '{name}'" if keep_ratio is None else f"keep ratio {keep_ratio:g}"
        raise BundleError(
            f"{self.root} has no {asked}", f"one of: {have}", "choose one of these, or build again with it"
        )


def read_bundle(root: str | Path) -> Bundle:
    """Open a bundle.

    Raises:
        BundleError: not a bundle, a damaged manifest, a newer schema, or a path that leaves the bundle.
    """
    folder = Path(root)
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"'{folder}' has no {MANIFEST}", "a folder that 'ztdeploy build' wrote", "check the path")
    if path.stat().st_size > _MANIFEST_LIMIT:
        raise BundleError(
            f"'{path}' has {path.stat().st_size} bytes", f"at most {_MANIFEST_LIMIT}", "build the bundle again"
        )
    text = path.read_bytes()
    try:
        version = _SchemaVersion.model_validate_json(text).schema_version
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"'{folder}' has schema version {version}",
                f"version {SCHEMA_VERSION}",
                "upgrade ztdeploy" if version > SCHEMA_VERSION else "build the bundle again",
            )
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the JSON"
        raise BundleError(
            f"'{path}' is damaged at {where}: {first['msg']}", "a manifest as built", "build the bundle again"
        ) from error
    _check_consistent(folder, manifest)
    return Bundle(folder, manifest)


class _SchemaVersion(BaseModel):
    schema_version: int


def _check_consistent(folder: Path, manifest: Manifest) -> None:
    """Every file that the manifest refers to must be one that it lists with a hash."""
    used = {manifest.golden.pixels, *manifest.golden.images, *manifest.golden.outputs.values()}
    used |= {*(blocks.file for blocks in manifest.blocks.values()), *manifest.timing_caches.values()}
    used |= {manifest.class_names} if manifest.class_names else set()
    for variant in manifest.variants:
        used |= {file for graph in variant.graphs.values() for file in graph.files}
        used |= {file for engine in variant.engines.values() for file in engine.files}
    unlisted = sorted(used - set(manifest.files))
    if unlisted:
        raise _inconsistent(folder, f"refers to '{unlisted[0]}' without listing it")
    names = [variant.name for variant in manifest.variants]
    if manifest.default_variant not in names:
        raise _inconsistent(folder, f"lacks its default variant '{manifest.default_variant}'")
    if all(variant.plan.layers for variant in manifest.variants):
        raise _inconsistent(folder, "has no dense variant")
    for variant in manifest.variants:
        if names.count(variant.name) > 1:
            raise _inconsistent(folder, f"has two variants '{variant.name}'")
        if variant.name not in manifest.golden.outputs:
            raise _inconsistent(folder, f"has no golden outputs of '{variant.name}'")
        if set(variant.graphs) != set(manifest.profiles) or not set(variant.engines) <= set(manifest.profiles):
            raise _inconsistent(folder, f"has other profiles than the graphs and engines of '{variant.name}'")


def _inconsistent(folder: Path, found: str) -> BundleError:
    return BundleError(f"'{folder / MANIFEST}' {found}", "a consistent manifest", "build the bundle again")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def file_records(folder: Path, names: list[str] | None = None) -> dict[str, FileRecord]:
    """Hash files of a folder; by default everything but its manifest."""
    everything = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    paths = everything if names is None else [folder / name for name in names]
    return {
        path.relative_to(folder).as_posix(): FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in paths
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all."""
    with new_manifest(folder, manifest):
        pass


@contextmanager
def new_manifest(folder: Path, manifest: Manifest) -> Iterator[None]:
    """Write a manifest beside the old one, whose place it takes when the block ends well."""
    temporary = folder / (MANIFEST + ".new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(manifest.model_dump_json(indent=1, by_alias=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        yield
        temporary.replace(folder / MANIFEST)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_bundle_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    A killed process leaves only a hidden `.NAME.partial-PID` folder without a manifest, which the next build removes.

    Raises:
        OutputError: `out` exists (and is not a bundle to be replaced with `force`), cannot be written, or is full.
    """
    check_output(out, force=force)
    final = Path(os.path.realpath(out))  # "." cannot be renamed, and a link is to stay one
    partial = final.parent / f".{final.name}{_PARTIAL}{os.getpid()}"
    with disk_errors(out):
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final)
        partial.mkdir()
        try:
            yield partial
            _replace(partial, final)
        except Exception as error:
            full = shutil.disk_usage(partial).free < _FULL_BYTES  # not every library says why it could not write
            shutil.rmtree(partial, ignore_errors=True)
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def check_output(out: Path, *, force: bool) -> None:
    """Fail early where a bundle could not be written in the end."""
    with disk_errors(out):
        above = next(folder for folder in out.absolute().parents if folder.exists())
        if not above.is_dir():
            raise OutputError(f"'{out}' lies below the file '{above}'", "a folder's path", "choose another --out")
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
    if not force:
        raise OutputError(f"'{out}' exists", "a folder that does not exist yet", "choose another --out, or add --force")
    # A manifest.json alone proves nothing: web apps have one, too.
    if not (out / MANIFEST).is_file() or not (out / WEIGHTS_FILE).is_file():
        raise OutputError(f"'{out}' exists and is not a bundle", "a bundle to replace", "choose another --out")


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an error that says so."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: ("the disk is full", "free space there, or choose another --out"),
            errno.EDQUOT: ("the disk quota is used up", "free space there, or choose another --out"),
            errno.EROFS: ("the disk is read-only", "choose another --out"),
            errno.EACCES: ("permission is denied", "choose another --out"),
            errno.EPERM: ("permission is denied", "choose another --out"),
            errno.ENAMETOOLONG: ("its name is too long", "choose a shorter --out"),
            errno.ENOTDIR: ("a part of the path is not a folder", "choose another --out"),
            errno.EEXIST: ("a part of the path is not a folder", "choose another --out"),
        }
        if error.errno not in reasons:
            raise
        reason, fix = reasons[error.errno]
        raise OutputError(f"cannot write '{out}': {reason}", "a writable folder with enough space", fix) from error


def _replace(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    if not any(out.iterdir()):  # an empty folder is filled, not replaced: a shell may stand in it
        for path in sorted(partial.iterdir(), key=lambda path: path.name == MANIFEST):  # which makes it a bundle
            path.rename(out / path.name)
        partial.rmdir()
        return
    old = out.parent / f".{out.name}{_REPLACED}{os.getpid()}"
    out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Remove what killed builds of the same bundle left."""
    kinds = re.compile(rf"\.{re.escape(out.name)}({re.escape(_PARTIAL)}|{re.escape(_REPLACED)})([1-9][0-9]{{0,8}})")
    for path in out.parent.iterdir():
        found = kinds.fullmatch(path.name)
        # Our own process id is a killed build's as well: in containers they are all alike.
        if found and (int(found[2]) == os.getpid() or not is_alive(int(found[2]))):
            with suppress(OSError):
                shutil.rmtree(path)
