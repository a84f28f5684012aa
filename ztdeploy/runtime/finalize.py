"""Rebuilding engines on the machine that will run them, with nothing but the runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ztdeploy.backends import backend_exists, get_backend
from ztdeploy.bundle import WEIGHTS_FILE, Bundle, disk_errors, file_records, new_manifest, read_bundle
from ztdeploy.errors import BundleError
from ztdeploy.manifest import EngineRecord, FileRecord, VariantRecord
from ztdeploy.runtime.parity import check_golden
from ztdeploy.runtime.runner import load

Engines = dict[tuple[str, str], EngineRecord]


def finalize_bundle(root: Path, progress: Callable[[str, int, int], None]) -> list[str]:
    """Build every engine that this machine can build from the bundle's graphs, prove it, and put it in place.

    The old engines stay until all new ones are proved.

    Returns:
        The rebuilt engines, as "variant (profile)".

    Raises:
        BundleError: damaged, or without anything to build.
        ParityError: a new engine does not reproduce the golden outputs; the bundle is left as it was.
    """
    bundle = read_bundle(root)
    pairs = [
        (variant, name)
        for name, profile in bundle.manifest.profiles.items()
        if backend_exists(profile.backend)
        for variant in bundle.manifest.variants
    ]
    if not pairs:
        raise BundleError(
            f"{root} names no profile whose engines can be built", "a profile such as cpu", "build with --profile cpu"
        )
    engines_now = [engine for variant in bundle.manifest.variants for engine in variant.engines.values()]
    replaced = {file for engine in engines_now for file in (engine.file, engine.weights)}
    needed = {WEIGHTS_FILE, *(variant.graphs[name].file for variant, name in pairs)}
    bundle.verify_files(sorted(set(bundle.manifest.files) - replaced | needed))
    scratch = bundle.root / "graphs" / "scratch"
    with disk_errors(bundle.root):
        shutil.rmtree(scratch, ignore_errors=True)  # of a finalize that was killed
        scratch.mkdir()
        try:
            engines: Engines = {}
            for done, (variant, name) in enumerate(pairs):
                progress(f"building {variant.name} for {name}", done, len(pairs))
                engines[variant.name, name] = _rebuild(bundle, variant, name, scratch)
            fresh = {f"graphs/scratch/{name}": record for name, record in file_records(scratch).items()}
            candidate = _with_engines(bundle, engines, {**bundle.manifest.files, **fresh})
            for variant, name in pairs:
                with load(candidate, variant=variant.name, profile=name, verify=False) as runner:
                    parity = check_golden(candidate, runner, variant)
                engines[variant.name, name] = engines[variant.name, name].model_copy(update={"parity": parity})
            _put_in_place(bundle, engines, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return [f"{variant.name} ({name})" for variant, name in pairs]


def _rebuild(bundle: Bundle, variant: VariantRecord, name: str, scratch: Path) -> EngineRecord:
    graph, profile = variant.graphs[name], bundle.manifest.profiles[name]
    out = scratch / f"{variant.name}.{name}.onnx"
    built = get_backend(profile.backend).build(bundle.path(graph.file), graph, profile, out)
    return EngineRecord(
        profile=name,
        backend=profile.backend,
        file=f"graphs/scratch/{out.name}",
        weights=None if built.weights is None else f"graphs/scratch/{built.weights.name}",
        fingerprint=built.fingerprint,
    )


def _with_engines(bundle: Bundle, engines: Engines, files: dict[str, FileRecord]) -> Bundle:
    """The bundle as it would be with these engines, in memory."""
    variants = tuple(
        variant.model_copy(
            update={"engines": {**variant.engines, **{n: e for (v, n), e in engines.items() if v == variant.name}}}
        )
        for variant in bundle.manifest.variants
    )
    return Bundle(bundle.root, bundle.manifest.model_copy(update={"variants": variants, "files": files}))


def _put_in_place(bundle: Bundle, engines: Engines, scratch: Path) -> None:
    """Move the engines beside the graphs, and let the manifest name them; other hashes stay as they were."""
    fresh = {f"graphs/{name}": record for name, record in file_records(scratch).items()}
    moved = {
        key: engine.model_copy(update={"file": _beside_graphs(engine.file), "weights": _beside_graphs(engine.weights)})
        for key, engine in engines.items()
    }
    manifest = _with_engines(bundle, moved, {**bundle.manifest.files, **fresh}).manifest
    with new_manifest(bundle.root, manifest):  # what needs space comes first
        for path in scratch.iterdir():
            path.replace(scratch.parent / path.name)


def _beside_graphs(path: str | None) -> str | None:
    return path and path.replace("graphs/scratch/", "graphs/")
