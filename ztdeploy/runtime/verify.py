"""Is a bundle still what was built, and does it compute what it should on this machine?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ztdeploy.backends import why_not_run
from ztdeploy.backends.int8 import int8_note
from ztdeploy.bundle import Bundle, read_bundle
from ztdeploy.manifest import ParityRecord
from ztdeploy.runtime.parity import check_golden, check_preprocessing
from ztdeploy.runtime.runner import load


class VerifyReport(BaseModel):
    """What was checked and found in order."""

    model_config = ConfigDict(frozen=True)

    files: int
    variants: dict[str, ParityRecord]  #: by variant, and profile where there are several
    not_run: dict[str, str]  #: profiles whose engines this machine cannot run, with the reason
    notes: tuple[str, ...] = ()  #: what else is worth knowing of engines that it can run


def verify_bundle(root: Path, profile: str | None, progress: Callable[[str, int, int], None]) -> VerifyReport:
    """Hashes of all files, pre-processing of the golden images, and every engine against the golden outputs.

    Raises:
        BundleError: a file is missing or has changed.
        ParityError: pre-processing or an engine gives something else on this machine.
        EngineMismatchError: the engines belong to another runtime version.
    """
    progress("hashing files", 0, 1)
    bundle = read_bundle(root)
    bundle.verify_files()
    check_preprocessing(bundle)
    if profile is not None:
        bundle.profile_name(profile)
    names = [name for name in bundle.manifest.profiles if profile in (None, name)]
    built = [name for name in names if any(name in variant.engines for variant in bundle.manifest.variants)]
    reasons = {name: why_not_run(bundle.manifest.profiles[name]) for name in built if profile is None}
    not_run = {name: reason for name, reason in reasons.items() if reason is not None}
    run = [name for name in names if name not in not_run]
    parities = _check_engines(bundle, run, progress)
    notes = tuple(filter(None, (int8_note(bundle.manifest.profiles[name]) for name in run if name in built)))
    return VerifyReport(files=len(bundle.manifest.files), variants=parities, not_run=not_run, notes=notes)


def _check_engines(
    bundle: Bundle, names: list[str], progress: Callable[[str, int, int], None]
) -> dict[str, ParityRecord]:
    variants = bundle.manifest.variants
    pairs = [(name, variant) for name in names for variant in variants if name in variant.engines]
    records: dict[str, ParityRecord] = {}
    for done, (name, variant) in enumerate(pairs):
        label = variant.name if len(names) == 1 else f"{variant.name} ({name})"
        progress(f"running {label}", done, len(pairs))
        with load(bundle, variant=variant.name, profile=name, verify=False) as runner:
            records[label] = check_golden(bundle, runner, variant)
    return records
