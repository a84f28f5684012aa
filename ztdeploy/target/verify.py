"""Check that a bundle is unchanged, and that it computes the right outputs on this machine."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from pydantic import Field

from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.errors import BundleError, ParityError
from ztdeploy.core.manifest import ParityRecord
from ztdeploy.core.names import TOKENS
from ztdeploy.core.progress import Progress
from ztdeploy.core.records import Record
from ztdeploy.core.signature import SignedBy
from ztdeploy.target.adaptive.calibrate import check_promises
from ztdeploy.target.adaptive.cascade import check_decisions
from ztdeploy.target.adaptive.pieces import check_pieces, engine_opener
from ztdeploy.target.backends import get_backend, load_noted, why_not_run
from ztdeploy.target.backends.base import Insight
from ztdeploy.target.backends.int8 import int8_note
from ztdeploy.target.runtime.parity import check_golden, check_preprocessing, golden_pixels
from ztdeploy.target.runtime.runner import BundleRunner, class_names, load_engine

_AGAIN = "copy or build the bundle again"


class VerifyReport(Record):
    """Checks that passed."""

    files: int
    variants: dict[str, ParityRecord]  #: by variant, and profile where there are several
    not_run: dict[str, str]  #: profiles whose engines this machine cannot run, with the reason
    notes: tuple[str, ...] = ()  #: notes on engines that it can run
    #: By stage of the cascade, and profile where there are several: its prefix and tail, held against the whole engine.
    cascade: dict[str, ParityRecord] = Field(default_factory=dict)
    signature: SignedBy | None = None  #: None: no signature was demanded


def verify_bundle(root: Path, profile: str | None, progress: Progress) -> VerifyReport:
    """Check all hashes, the pre-processing of the golden images, and every engine against the golden outputs; also the
    pieces of a cascade, the graphs with notes that `show` runs, and the blocks that `sweep` times.

    Raises:
        BundleError: a file is missing, has changed, or does not hold what it should.
        ParityError: pre-processing, an engine or a graph gives other results on this machine.
        EngineMismatchError: the engines belong to another runtime version.
        SignatureError: none of the demanded keys signed it.
    """
    progress("hashing files", 0, 1)
    bundle = read_bundle(root)
    manifest = bundle.manifest
    bundle.verify_files()
    class_names(bundle)
    graphs = (graph for part in manifest.parts for graph in part.graphs.values())
    for file in sorted({file for graph in graphs for file in graph.files}):
        bundle.files_of_graph(file)
    check_preprocessing(bundle)
    names = list(manifest.profiles) if profile is None else [bundle.profile_name(profile)]
    for name in names:
        check_promises(bundle, name)
    built = [name for name in names if any(name in variant.engines for variant in manifest.variants)]
    reasons = {name: why_not_run(manifest.profiles[name]) for name in built if profile is None}
    not_run = {name: reason for name, reason in reasons.items() if reason is not None}
    run = [name for name in names if name not in not_run]
    parities, pieces = _check_engines(bundle, run, progress), _check_cascade(bundle, run, progress)
    for name in sorted(set(run) & set(built) & set(manifest.blocks)):
        check_blocks(bundle, name)
    notes = tuple(filter(None, (int8_note(manifest.profiles[name]) for name in run if name in built)))
    return VerifyReport(
        files=len(manifest.files),
        variants=parities,
        not_run=not_run,
        notes=notes,
        cascade=pieces,
        signature=bundle.signature,
    )


def _check_engines(bundle: Bundle, names: list[str], progress: Progress) -> dict[str, ParityRecord]:
    variants = bundle.manifest.variants
    pairs = [(name, variant) for name in names for variant in variants if name in variant.engines]
    records: dict[str, ParityRecord] = {}
    for done, (name, variant) in enumerate(pairs):
        label = variant.name if len(names) == 1 else f"{variant.name} ({name})"
        progress(f"running {label}", 1 + done, 1 + len(pairs))
        with load_engine(bundle, variant=variant.name, profile=name, verify=False) as runner:
            records[label] = check_golden(bundle, runner, variant)
            if runner.graph.notes_file is not None:
                _check_notes(bundle, runner, runner.graph.notes_file)
    return records


def _check_cascade(bundle: Bundle, names: list[str], progress: Progress) -> dict[str, ParityRecord]:
    """The pieces of the cascade in every profile that has engines of all of them."""
    parts, records = bundle.manifest.parts, dict[str, ParityRecord]()
    for name in names if bundle.manifest.cascade else ():
        if all(name in part.engines for part in parts):
            progress(f"running the cascade ({name})", 1, 1)
            with load_engine(bundle, variant=bundle.manifest.dense.name, profile=name, verify=False) as runner:
                opened = engine_opener(bundle, name, runner.threads)
                found = check_pieces(bundle, runner, opened)
            check_decisions(bundle, name, opened)
            records |= {key.lstrip("_") + (f" ({name})" if len(names) > 1 else ""): one for key, one in found.items()}
    return records


def _check_notes(bundle: Bundle, runner: BundleRunner, file: str) -> None:
    """Compare the variant's graph with notes with the golden outputs as well."""
    variant = runner.variant
    engine = variant.engines[runner.profile]
    runner.close()  # one of them in memory at a time
    path, name = bundle.path(file), bundle.path(engine.file)
    try:
        graph = load_noted(engine.backend, path, engine=name, threads=runner.threads)
    except BundleError:
        if runner.graph.precision == "fp16":  # ONNX Runtime lacks some kernels of that on a CPU
            return
        raise
    runner.adopt(variant.name, graph)
    check_golden(bundle, runner, variant)
    notes = runner.infer(golden_pixels(bundle)).more
    wrong = [note for note, values in notes.items() if not np.isfinite(values).all()]
    if wrong or not notes:
        raise ParityError(
            f"'{path}' notes {f'infinities or NaN as {wrong[0][:80]!r}' if wrong else 'nothing'}",
            "what its pruning layers decide by",
            _AGAIN,
        )


def check_blocks(bundle: Bundle, profile: str) -> None:
    """Run a profile's blocks on random numbers of the right shape.

    Raises:
        BundleError: their inputs or outputs have other types or shapes.
        ParityError: they give infinities or NaN.
    """
    backend = get_backend(bundle.manifest.profiles[profile].backend)
    file, architecture = bundle.manifest.blocks[profile].file, bundle.manifest.model.architecture
    bundle.files_of_graph(file)
    if not isinstance(backend, Insight):
        return
    path = bundle.path(file)
    with closing(backend.load_graph(path, threads=1)) as runner:
        for tokens in (architecture.tokens, max(1, architecture.tokens // 2)):
            given = np.linspace(-1, 1, tokens * architecture.embed_dim, dtype=np.float32)
            given = given.reshape(1, tokens, architecture.embed_dim)
            outputs = list(runner.infer({TOKENS: given}).values())
            found = outputs[0] if len(outputs) == 1 else None
            if not isinstance(found, np.ndarray) or (found.dtype, found.shape) != (given.dtype, given.shape):
                raise BundleError(f"'{path}' gives something else than tokens", f"float32 {list(given.shape)}", _AGAIN)
            if not np.isfinite(found).all():
                raise ParityError(f"'{path}' gives infinities or NaN", "finite tokens", _AGAIN)
