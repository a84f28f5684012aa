"""The bundle: a folder with engines, graphs, one shared weights file, golden data, and the evidence.

Host and target exchange nothing else. A bundle is untrusted input: every path in its manifest must stay inside it,
every file must match its hash, and nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from ztdeploy.core import arguments
from ztdeploy.core.brief import Brief, Shown
from ztdeploy.core.cascade import ALL_GO_ON
from ztdeploy.core.data import first_error, parse_json, read_json
from ztdeploy.core.errors import BundleError, InputError, OutputError, SignatureError, did_you_mean
from ztdeploy.core.files import (
    disk_errors,
    is_temporary,
    is_there,
    nameable,
    open_regular,
    read_bytes,
    reason_of,
    remove,
    write,
    writing,
)
from ztdeploy.core.folders import check_folder_path, check_writable, content_of, files_of, new_folder
from ztdeploy.core.locks import only_writer
from ztdeploy.core.manifest import (
    SCHEMA_VERSION,
    EngineRecord,
    FidelityRecord,
    FileRecord,
    Manifest,
    PartRecord,
    VariantRecord,
)
from ztdeploy.core.onnx_file import read_graph
from ztdeploy.core.plan import tokens_per_block
from ztdeploy.core.records import to_json
from ztdeploy.core.schedule import Architecture
from ztdeploy.core.signature import (
    SIGNATURE_LIMIT,
    PublicKey,
    SecretKey,
    SignedBy,
    check_signature,
    demanded_keys,
    signature_of,
    trusted_comment,
)
from ztdeploy.core.text import printable

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.minisig"
WEIGHTS_FILE = "graphs/weights.safetensors"
_MANIFEST_LIMIT = 64 * 2**20
#: Most bytes of pixels in one call.
_MOST_BYTES = 2**31
#: Bytes of a file that are hashed at a time: more make a process larger, and nothing faster.
_CHUNK = 2**17
#: The files of a bundle whose manifest lists none.
_LAYOUT = re.compile(
    r"manifest\.json(\.minisig)?|README\.md|classes\.txt|trtexec\.sh|(graphs|golden|plugins)/.*", re.DOTALL
)


class Bundle(Shown):
    """A bundle on disk, its manifest read and its paths checked. Hashes are checked by `verify_files`; and by `path`,
    ahead of the first use of each file, where a signature was demanded.

    It stands for the path of its folder wherever a path is taken.
    """

    def __init__(
        self, root: Path, manifest: Manifest, *, digest: str | None = None, signature: SignedBy | None = None
    ) -> None:
        self.root, self.manifest = root, manifest
        self.digest = digest  #: sha256 of the manifest's file, where it was read from one
        self.signature = signature  #: None: none was demanded
        self._linked = set[str]()  #: links out of the bundle whose files match the manifest
        self._intact = set[str]()  #: files that matched the manifest when `verify_files` looked at them
        self._hashing = dict[str, _Hashing]()  #: files that are being read ahead of their check

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.root.resolve().name

    def __fspath__(self) -> str:
        return os.fspath(self.root)

    def brief(self) -> Brief:
        """Its model, and a row for each variant."""
        model, size, weights = self.manifest.model, self.manifest.preprocess.image_size, self.manifest.weights
        rows = [
            (
                variant.name,
                "-" if variant.keep_ratio is None else f"{variant.keep_ratio:g}",
                f"{variant.plan.tokens_per_block[0]} to {variant.plan.tokens_per_block[-1]}",
                f"{variant.gmacs:.3g}",
                ", ".join(variant.engines) or "none",
            )
            for variant in self.manifest.variants
        ]
        of = "" if model.name in (model.timm_name, self.name) else f" ({model.timm_name})"
        whose = f"weights of {weights.origin}" if weights.source == "checkpoint" else f"{weights.source} weights"
        return Brief(
            f"{self.name}: {model.name}{of} at {size} px, {whose}; "
            f"{', '.join(row[0] for row in rows)} for {', '.join(self.manifest.profiles)}",
            ("variant", "keep ratio", "tokens", "GMACs", "engines"),
            rows,
            [*weights.remarks, *self.manifest.lines_of_cascade, *self.manifest.lines_of_missing],
        )

    def path(self, name: str) -> Path:
        """The path of a bundle's file.

        Clients of hubs and Kubernetes lay folders out as links to files elsewhere. Such a link is followed for reading
        if its target has the hash of the manifest.

        Raises:
            BundleError: the file is missing, is not listed, is no regular file, or is a link to another file; or has
                changed since it was signed.
        """
        path = self._place(name)
        if self.signature is not None and name not in self._intact:
            self.verify_files([name])
        return path

    def _place(self, name: str) -> Path:
        path = self.root / name
        if name not in self.manifest.files:
            raise BundleError(f"'{name}' of {self.root}", "a file listed in the manifest", "build the bundle again")
        try:
            with open_regular(path):
                pass
        except OSError as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {reason_of(error)}"
            raise BundleError(
                f"'{path}' {what}", "every file of the manifest", "copy the whole folder again"
            ) from error
        if name not in self._linked and not path.resolve().is_relative_to(self.root.resolve()):
            if not self._is_as_built(name):
                raise BundleError(
                    f"'{path}' leads outside the bundle, to another file than the manifest's",
                    "the bundle's own files",
                    "do not use this bundle",
                )
            self._linked.add(name)
        return path

    def hash_early(self, name: str) -> None:
        """Begin to hash a file on a thread of its own, for the next check of it, which waits for the result.

        For a large file that is going to be checked: whoever opens a bundle imports a runtime meanwhile. A file of
        another size than recorded is not read, and one that changes meanwhile is hashed again when it is checked.
        """
        with suppress(OSError):  # whoever checks it says so
            path, record = self.root / name, self.manifest.files.get(name)
            if record is not None and path.stat().st_size == record.bytes:
                self._hashing[name] = _Hashing(path)

    def _is_as_built(self, name: str) -> bool:
        path, record = self.root / name, self.manifest.files[name]
        hashing = self._hashing.pop(name, None)
        if path.stat().st_size != record.bytes:
            return False
        early = None if hashing is None else hashing.result()
        return (early or sha256_of(path)) == record.sha256

    def verify_files(self, names: list[str] | None = None) -> None:
        """Compare files (default: all) with their recorded sizes and sha256.

        Raises:
            BundleError: a file is missing or has changed.
        """
        for name in sorted(self.manifest.files) if names is None else names:
            path, record = self._place(name), self.manifest.files[name]
            if not self._is_as_built(name):
                raise BundleError(
                    f"'{path}' has changed since the build",
                    f"sha256 {record.sha256[:12]}...",
                    "copy or build the bundle again",
                )
            self._intact.add(name)

    def files_of_graph(self, name: str) -> list[str]:
        """A graph's file and the files that its runtime reads for it, all of them listed with a hash.

        Raises:
            BundleError: it is no plain graph, reads a file that the manifest does not list, or more than a file holds.
        """
        files = [name]
        try:
            reads = read_graph(self.path(name)).reads
        except BundleError:
            self.verify_files([name])  # says so where the file is not the one that was built
            raise
        for location, least in reads.items():
            file = (PurePosixPath(name).parent / location).as_posix()
            if file not in self.manifest.files or self.manifest.files[file].bytes < least:
                raise BundleError(
                    f"'{self.root / name}' reads {least} bytes of '{file}'",
                    "weights that the manifest lists, and no more than there are",
                    "do not use this bundle",
                )
            files.append(file)
        return files

    def files_of_engine(self, part: PartRecord, profile: str) -> list[str]:
        """The files that are read to open an engine of a variant or a piece: its own, the graph that it was built from,
        and weights.

        Raises:
            BundleError: as `files_of_graph`; or there is no such graph.
        """
        engine, graph = part.engines[profile], part.graphs[profile]
        source = graph.source(engine.fingerprint.plugins)
        if source is None:
            raise BundleError(
                f"an engine with plugins for '{part.name}', whose graph has none",
                "the graph that it was built from",
                f"run: ztdeploy finalize {self.root}",
            )
        opened = engine.file if engine.file.endswith(".onnx") else source  # an engine may name its graph
        return list(dict.fromkeys([*engine.files, source, WEIGHTS_FILE, *self.files_of_graph(opened)]))

    def engine_digest(self, engine: EngineRecord) -> str:
        """The sha256 of the files that decide an engine's answers: its own, and the weights that it may share."""
        hashes = [self.manifest.files[name].sha256 for name in (*engine.files, WEIGHTS_FILE)]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def cascade_digest(self, profile: str) -> str:
        """The sha256 of all that decides the answers of the cascade with a profile's engines, which the bundle has."""
        cascade = self.manifest.cascade
        assert cascade is not None
        pieces = [self.engine_digest(piece.engines[profile]) for piece in cascade.pieces]
        thresholds = repr(cascade.settings[profile].thresholds)
        return hashlib.sha256("\n".join([*pieces, thresholds]).encode()).hexdigest()

    def fidelity(self, variant: VariantRecord, profile: str) -> FidelityRecord | None:
        """The recorded evaluation of a variant's engine, if it and the baseline's engine are still the same."""
        engine = variant.engines.get(profile)
        if engine is None or engine.fidelity is None:
            return None
        dense = self.manifest.dense.engines.get(engine.fidelity.dense_profile or profile)
        if dense is None:
            return None
        now = (self.engine_digest(engine), self.engine_digest(dense))
        return engine.fidelity if now == (engine.fidelity.engine_sha256, engine.fidelity.dense_sha256) else None

    def profile_name(self, wanted: str | None) -> str:
        """The profile to run: the one asked for, or the first that has engines.

        Raises:
            InputError: there is no such profile in the bundle, or no engine at all.
        """
        if wanted is not None:
            arguments.text("profile", wanted)
            for failed in self.manifest.failed:
                if failed.profile == wanted and failed.part == "profile":
                    raise InputError(failed.line, f"a profile in {self.root}", "build it again for that one")
            if wanted not in self.manifest.profiles:
                raise InputError(
                    f"profile '{wanted}' of {self.root}",
                    "a profile in the bundle",
                    did_you_mean(wanted, self.manifest.profiles),
                )
            return wanted
        for name in self.manifest.profiles:
            if any(name in variant.engines for variant in self.manifest.variants):
                return name
        raise InputError(
            f"{self.root} holds no engine ({'; '.join(self.manifest.lines_of_missing)})",
            "at least one engine that this machine can run",
            "build with --profile cpu as well",
        )

    def variants_at(self, keep_ratio: float) -> list[VariantRecord]:
        """All variants of a keep ratio: several, where the bundle has several methods.

        Raises:
            InputError: there is none, or the keep ratio is no number.
        """
        ratio = arguments.number("keep_ratio", keep_ratio)
        found = [variant for variant in self.manifest.variants if variant.has_ratio(ratio)]
        if not found:
            raise self._has_no(f"keep ratio {ratio:g}")
        return found

    def variant(self, keep_ratio: float | None = None, name: str | None = None) -> VariantRecord:
        """One variant by keep ratio or name; the default one where neither is given. A keep ratio of 1 is the baseline.

        Raises:
            InputError: the bundle has no such variant, or several that share the keep ratio; both were given; a ratio
                that is no number, or a name that is no text.
        """
        if keep_ratio is not None and name is not None:
            raise InputError(f"both keep ratio {keep_ratio:g} and variant '{name}'", "one of them", "leave one out")
        if keep_ratio is not None:
            found = self.variants_at(keep_ratio)
            if len(found) > 1 and found[0].plan.layers:
                raise InputError(
                    f"keep ratio {keep_ratio:g} of {self.root}, which several variants have",
                    f"the name of one of them: {', '.join(variant.name for variant in found)}",
                    f"choose by name, such as --variant {found[0].name}",
                )
            return found[0]
        name = self.manifest.default_variant if name is None else arguments.text("variant", name)
        for variant in self.manifest.variants:
            if variant.name == name:
                return variant
        raise self._has_no(f"variant '{name}'")

    def variants(self, keep_ratios: Sequence[float] = (), names: Sequence[str] = ()) -> list[VariantRecord]:
        """The variants that are asked for, each once; all of them where nothing is asked for.

        Raises:
            InputError: as `variant`.
        """
        chosen = [*(self.variant(ratio) for ratio in keep_ratios), *(self.variant(name=name) for name in names)]
        return list({variant.name: variant for variant in chosen or self.manifest.variants}.values())

    def _has_no(self, asked: str) -> InputError:
        have = ", ".join(v.name if v.keep_ratio is None else f"{v.keep_ratio:g}" for v in self.manifest.variants)
        return InputError(
            f"{self.root} has no {asked}", f"one of: {have}", "choose one of these, or build again with it"
        )


def read_bundle(root: str | os.PathLike[str], signed_by: Sequence[PublicKey] | None = None) -> Bundle:
    """Open a bundle. A demanded signature is checked ahead of everything else, on the very bytes that are then parsed.

    Of a link, such as `ztdeploy install` makes, this is the folder that it leads to now, whatever it leads to later.

    Args:
        signed_by: keys one of which must have signed it; by default what the environment demands (see
            `core/signature.py`). Empty: no signature is demanded, of what this very program has made.

    Raises:
        BundleError: a damaged manifest, a newer schema, or a path that leaves the bundle.
        InputError: there is no bundle.
        MissingExtraError: a signature is demanded, and what checks it is not installed.
        SignatureError: none of the demanded keys signed it.
    """
    keys = demanded_keys() if signed_by is None else signed_by
    folder, text = _manifest_text(arguments.folder("bundle", root))
    signature = check_signature(str(folder), text, _signature_text(folder, keys), keys) if keys else None
    digest = hashlib.sha256(text).hexdigest()
    return Bundle(folder, _parsed(folder, text), digest=digest, signature=signature)


def _manifest_text(given: Path) -> tuple[Path, bytes]:
    """The folder of a bundle, and what its manifest says.

    Raises:
        BundleError: the manifest cannot be read.
        InputError: there is no bundle.
    """
    folder = given
    with suppress(OSError):  # no file can have such a name
        if nameable(given).is_symlink():
            folder = Path(os.path.realpath(given))
    path = folder / MANIFEST
    expected = "a folder that 'ztdeploy build' wrote"
    there = False
    with suppress(OSError):  # no file can have such a name
        there = is_there(path)
    if not there:
        raise InputError(f"'{given}' has no {MANIFEST}", expected, "check the path")
    return folder, read_bytes(path, _MANIFEST_LIMIT, what="manifest", error=BundleError, expected=expected)


def _signature_text(folder: Path, keys: Sequence[PublicKey]) -> bytes:
    """
    Raises:
        SignatureError: there is none, or it cannot be read.
    """
    wanted = f"a signature by {' or '.join(dict.fromkeys(key.number for key in keys))}"
    if not is_signed(folder):
        raise SignatureError(f"'{folder}' is not signed", wanted, "sign it: ztdeploy sign BUNDLE --key KEY")
    path, fix = folder / SIGNATURE, "ask whoever signs your bundles"
    return read_bytes(path, SIGNATURE_LIMIT, what="signature", error=SignatureError, expected=wanted, fix=fix)


def is_signed(root: Path) -> bool:
    """Whether there is a file where a bundle's signature lies."""
    with suppress(OSError):
        return is_there(root / SIGNATURE)
    return False


def _parsed(folder: Path, text: bytes) -> Manifest:
    """
    Raises:
        BundleError: a damaged manifest, a newer schema, or a path that leaves the bundle.
    """
    path = folder / MANIFEST
    try:
        data = parse_json(text.decode())
        version = _SchemaVersion.model_validate(data).schema_version
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"'{folder}' has schema version {version}",
                f"version {SCHEMA_VERSION}",
                "upgrade ztdeploy" if version > SCHEMA_VERSION else "build the bundle again",
            )
        manifest = Manifest.model_validate(data)
        _check_types(data, manifest.model_dump(mode="json", by_alias=True), ())
    except ValueError as error:  # that of pydantic is one, too
        where, wrong = first_error(error) if isinstance(error, ValidationError) else ("", str(error))
        raise BundleError(
            f"'{path}' is damaged at {where or 'the JSON'}: {wrong}",
            "a manifest as built",
            "build the bundle again",
        ) from error
    for found in _contradictions(manifest):
        raise BundleError(f"'{path}' {found}", "a consistent manifest", "build the bundle again")
    return manifest


class _SchemaVersion(BaseModel):
    schema_version: int = Field(strict=True)


def _check_types(found: Any, read: Any, where: tuple[str, ...]) -> None:
    """Refuse values that pydantic has converted to another type, such as text or a truth value to a number."""
    if isinstance(found, dict) and isinstance(read, dict):
        for name, value in found.items():
            _check_types(value, read.get(name), (*where, name))
    elif isinstance(found, list) and isinstance(read, list):
        for one, other in zip(found, read, strict=False):
            _check_types(one, other, where)
    elif type(found) is not type(read) and (type(found), type(read)) != (int, float):
        raise ValueError(f"a value of another type at {'.'.join(where)[:200]}")


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What a manifest contradicts itself in, in words that follow its path."""
    used = {manifest.golden.pixels, *manifest.golden.images, *manifest.golden.outputs.values()}
    used |= {*(blocks.file for blocks in manifest.blocks.values()), *manifest.timing_caches.values()}
    used |= {manifest.class_names} if manifest.class_names else set()
    for part in manifest.parts:
        used |= {file for graph in part.graphs.values() for file in graph.files}
        used |= {file for engine in part.engines.values() for file in engine.files}
    yield from (f"refers to '{name}' without listing it" for name in sorted(used - set(manifest.files)))
    alike = Counter(name.casefold() for name in (*manifest.files, MANIFEST, SIGNATURE))
    twice = (name for name in sorted(manifest.files) if alike[name.casefold()] > 1)
    yield from (f"lists '{name}' under two names, or itself" for name in twice)  # on some disks these are one file
    names = [variant.name for variant in manifest.variants]
    if manifest.default_variant not in names:
        yield f"lacks its default variant '{manifest.default_variant}'"
    if all(variant.plan.layers for variant in manifest.variants):
        yield "has no dense variant"
    for variant in manifest.variants:
        if names.count(variant.name) > 1:
            yield f"has two variants '{variant.name}'"
        if variant.name not in manifest.golden.outputs:
            yield f"has no golden outputs of '{variant.name}'"
        yield from _contradictions_of_plan(variant, manifest.model.architecture)
    for part in manifest.parts:
        if set(part.graphs) != set(manifest.profiles) or not set(part.engines) <= set(manifest.profiles):
            yield f"has other profiles than the graphs and engines of '{part.name}'"
    yield from _contradictions_of_cascade(manifest)
    fixed = [graph.batch or 1 for part in manifest.parts for graph in part.graphs.values()]
    batch = max(*fixed, *(size for profile in manifest.profiles.values() for size in profile.batch.sizes))
    if batch * math.prod(manifest.preprocess.shape) > _MOST_BYTES:
        yield f"asks for {batch} images of {manifest.preprocess.image_size} at a time"
    grid, patches = manifest.model.architecture.grid, manifest.model.architecture.patch_tokens
    if grid is not None and (min(grid) < 1 or math.prod(grid) != patches):
        yield f"has a grid of {grid[0]} x {grid[1]} for {patches} patches"


def _contradictions_of_cascade(manifest: Manifest) -> Iterator[str]:
    """Stages are different variants, the last of them the baseline, and the cut is in front of their first layer; what
    decides, and what was found, is about all stages and about the model's kind of output.
    """
    if manifest.cascade is None:
        return
    stages, settings, evaluations = manifest.cascade.stages, manifest.cascade.settings, manifest.cascade.evaluations
    known = {variant.name: variant for variant in manifest.variants}
    names = [stage.variant for stage in stages]
    if len(set(names)) < len(names) or not set(names) <= known.keys() or names[-1] != manifest.dense.name:
        yield "has a cascade of other stages than its variants, the baseline last"
    elif manifest.cascade.block != min((one.block for name in names for one in known[name].plan.layers), default=-1):
        yield "has a cascade that is not cut in front of its first pruning layer"
    of_classes = manifest.model.gives == "logits"
    kinds = {one.guarantee.min_cosine is None for one in settings.values()}
    if {manifest.cascade.signal == "margin", *kinds} != {of_classes}:
        yield f"has a cascade of {manifest.cascade.signal}s or cosines for a model that gives {manifest.model.gives}"
    for profile, found in evaluations.items():
        if profile not in settings or len(found.shares) != len(stages) or found.bound > found.likeness:
            yield f"has an evaluation of the cascade with profile '{profile}' that is not of its stages"
    if len({part.name for part in manifest.parts}) < len(manifest.parts):
        yield "has two parts of one name"
    for profile, setting in settings.items():
        counts = {len(setting.thresholds) + 1, len(setting.shares), len(setting.stage_ms or stages)}
        if profile not in manifest.profiles or counts != {len(stages)}:
            yield f"has a cascade that does not decide for all stages with profile '{profile}'"
        least, most = min(*setting.thresholds, setting.quantiles[0]), max(*setting.thresholds, setting.quantiles[-1])
        if not 0 <= least <= most <= ALL_GO_ON:
            yield f"has thresholds or quantiles with profile '{profile}' that no confidence can have"


def _contradictions_of_plan(variant: VariantRecord, architecture: Architecture) -> Iterator[str]:
    """A plan's layers follow one another, each with fewer tokens, all of them tokens of the model."""
    tokens, block = architecture.tokens, -1
    for layer in variant.plan.layers:
        kept = layer.prefix_tokens == architecture.prefix_tokens <= layer.tokens_out
        if not (kept and layer.tokens_in == tokens > layer.tokens_out > 0 and block < layer.block < architecture.depth):
            yield f"has a plan of '{variant.name}' that cannot be at block {layer.block + 1}"
        tokens, block = layer.tokens_out, layer.block
    if variant.plan.tokens_per_block != tokens_per_block(variant.plan.layers, architecture):
        yield f"has a plan of '{variant.name}' with other tokens than its layers leave"
    if any(len(graph.nodes) != architecture.depth for graph in variant.graphs.values()):
        yield f"counts nodes of more or fewer blocks of '{variant.name}' than there are"


class _Hashing(Thread):
    """The sha256 of a file, computed while others work."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="ztdeploy-hash", daemon=True)
        self._path, self._stamp, self._found = path, _stamp(path), ""
        self.start()

    def run(self) -> None:
        with suppress(OSError):
            self._found = sha256_of(self._path)

    def result(self) -> str:
        """The hash, when it is there; "" where the file could not be read, or is not the one that it was."""
        self.join()
        return self._found if _stamp(self._path) == self._stamp else ""


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def sha256_of(path: Path) -> str:
    """
    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def file_records(folder: Path, names: list[str] | None = None) -> dict[str, FileRecord]:
    """Hash files of a folder; by default everything but its manifest and signature."""
    everything = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, SIGNATURE))
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
def new_manifest(folder: Path, manifest: Manifest, signer: SecretKey | None = None) -> Iterator[None]:
    """Write a manifest beside the old one, which it replaces when the block ends well.

    The old one's signature goes: it was made for another content.

    Args:
        signer: signs the new one.
    """
    text = to_json(manifest, indent=1, by_alias=True).encode() + b"\n"
    comment = _comment(manifest, "changed after it was built")
    signature = None if signer is None else signature_of(text, signer, comment).encode()
    with ExitStack() as files:
        for name, content in ((SIGNATURE, signature), (MANIFEST, text)):  # closed in reverse: the manifest comes first
            if content is not None:
                file = files.enter_context(writing(folder / name))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # what needs space comes first
        yield
    if signature is None:
        remove(folder / SIGNATURE)


def sign_bundle(root: str | os.PathLike[str], key: SecretKey, words: str = "") -> SignedBy:
    """Sign a bundle as it is, once all its files match the manifest; an earlier signature is replaced.

    Args:
        words: what the signature shall say, such as the name of a release.

    Raises:
        BundleError: it is damaged.
        InputError: there is no bundle, or the words are no line of text.
        OutputError: it cannot be written.
    """
    folder, text = _manifest_text(arguments.folder("bundle", root))
    with only_writer(folder):
        folder, text = _manifest_text(folder)
        bundle = Bundle(folder, _parsed(folder, text))
        bundle.verify_files()
        comment = _comment(bundle.manifest, words)
        write(folder / SIGNATURE, signature_of(text, key, comment))
    return SignedBy(key=key.public.number, comment=comment)


def _comment(manifest: Manifest, words: str) -> str:
    known = (f"model:{manifest.model.name}", f"built:{manifest.created}")
    return trusted_comment(MANIFEST, *map(printable, known), words)


def check_signer(bundle: Bundle, signer: SecretKey | None) -> None:
    """Fail before any work where a changed bundle would not be accepted any more.

    Raises:
        InputError: a signature is demanded, and the changed bundle would have none by a demanded key.
    """
    if bundle.signature is None:
        return
    wanted = [key.number for key in demanded_keys()]
    if signer is None or signer.public not in demanded_keys():
        what = "no key to sign it again" if signer is None else f"key {signer.public.number}"
        raise InputError(
            f"{what} for '{bundle.root}', whose signed manifest changes",
            f"the secret key of {' or '.join(wanted)}",
            "give --sign KEY, a key of this machine's own, and demand signatures by either",
        )


@contextmanager
def new_bundle_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """A folder that becomes `out`, or what is in it, when the block ends well, and vanishes when it does not.

    A killed process leaves only a hidden folder in or beside `out`, which the next build removes.

    Raises:
        OutputError: `out` exists (and is not a bundle to be replaced with `force`), cannot be written, or is full.
    """
    check_output(out, force=force)
    with new_folder(_real(out), last=MANIFEST) as folder:
        yield folder


def check_output(out: Path, *, force: bool) -> None:
    """Fail before any work if a bundle could not be written in the end.

    Raises:
        OutputError: see `new_bundle_folder`; nothing that is not a bundle's is ever replaced.
    """
    check_folder_path(out)
    final = _real(out)
    with disk_errors(out):
        if final.is_dir() and content_of(final):
            _check_replaceable(out, final, force=force)
    check_writable(final)


def _real(out: Path) -> Path:
    """The real path of a folder: "." has no name, and a link to a folder must stay a link."""
    with disk_errors(out):
        return Path(os.path.realpath(nameable(out)))


def _check_replaceable(out: Path, final: Path, *, force: bool) -> None:
    if not force:
        raise OutputError(f"'{out}' exists", "a folder that does not exist yet", "choose another --out, or add --force")
    # A manifest.json alone proves nothing: web apps have one, too.
    if not (final / MANIFEST).is_file() or not (final / WEIGHTS_FILE).is_file():
        raise OutputError(f"'{out}' exists and is not a bundle", "a bundle to replace", "choose another --out")
    own = _listed(final)
    for name in files_of(final):
        known = name in own if own else _LAYOUT.fullmatch(name)
        if not known and not any(map(is_temporary, Path(name).parts)):
            raise OutputError(
                f"'{out}' holds '{name}', which is not the bundle's",
                "nothing but a bundle to replace",
                "move it elsewhere, or choose another --out",
            )


def _listed(folder: Path) -> set[str]:
    """The files that a manifest names, even if it is damaged otherwise; empty where it names none."""
    try:
        files = read_json(folder / MANIFEST, _MANIFEST_LIMIT)["files"]
    except (InputError, KeyError, TypeError):
        return set()
    return {MANIFEST, SIGNATURE, *files} if isinstance(files, dict) and files else set()
