"""`ztdeploy.load`: opening a bundle to run it, with one engine or adaptively.

Callers wait for the first answer of a process. The weights are hashed while NumPy, Pillow and the runtime are imported,
so these are imported inside `load`; what runs adaptively is imported where it is asked for.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, overload

from ztdeploy.core import arguments
from ztdeploy.core.bundle import WEIGHTS_FILE, Bundle, read_bundle
from ztdeploy.core.errors import InputError
from ztdeploy.core.signature import AnyKeys, public_keys

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ztdeploy.target.adaptive.cascade import CascadeRunner
    from ztdeploy.target.adaptive.governed import GovernedRunner
    from ztdeploy.target.adaptive.governor import Governor
    from ztdeploy.target.backends.base import MemoryMode
    from ztdeploy.target.runtime.runner import BundleRunner

Source: TypeAlias = "str | PathLike[str] | Bundle"


class _Options(TypedDict, total=False):
    """What every kind of runner takes, as `load` describes it."""

    profile: str | None
    threads: int | None
    memory: MemoryMode
    verify: bool
    signed_by: AnyKeys | None


@overload
def load(
    bundle: Source, *, keep_ratio: float | None = None, variant: str | None = None, **options: Unpack[_Options]
) -> BundleRunner: ...


@overload
def load(bundle: Source, *, cascade: Literal[True], **options: Unpack[_Options]) -> CascadeRunner: ...


@overload
def load(bundle: Source, *, latency_ms: float, **options: Unpack[_Options]) -> GovernedRunner: ...


@overload
def load(bundle: Source, *, governor: Governor, **options: Unpack[_Options]) -> GovernedRunner: ...


def load(
    bundle: str | PathLike[str] | Bundle,
    *,
    keep_ratio: float | None = None,
    variant: str | None = None,
    profile: str | None = None,
    threads: int | None = None,
    memory: MemoryMode = "speed",
    verify: bool = True,
    cascade: bool = False,
    latency_ms: float | None = None,
    governor: Governor | None = None,
    signed_by: AnyKeys | None = None,
) -> BundleRunner | CascadeRunner:
    """Open a bundle and load one of its engines, or all that a governor may choose. Needs no PyTorch.

        runner = ztdeploy.load("deit_s-cpu", keep_ratio=0.8)
        (prediction,) = runner("photo.jpg")
        print(prediction.label, prediction.probability)
        runner.switch(keep_ratio=1)  # any time

    Args:
        bundle: what `build` returned, or the folder that it wrote.
        keep_ratio: which variant to run; by default the first that was asked for at build time.
        variant: name of the variant, for variants that share a keep ratio or have none.
        profile: run the engines of this profile; by default the first whose engines this machine can run.
        threads: intra-op threads; by default the profile's, bounded by what the process may use.
        memory: "speed", or "shared" to keep several variants open on one copy of the weights.
        verify: compare the files that are read with their hashes first; always, where a signature is demanded.
        cascade: run the bundle's cascade: each image goes through as many stages as it needs.
        latency_ms: hold this p95 latency of a call by switching between variants: short for a `Governor`.
        governor: how to hold a latency; the runner is then a `GovernedRunner`, which keeps all its engines open.
        signed_by: public keys of minisign, as paths or base64, one of which must have signed the bundle; by default
            those that the environment variable ZTDEPLOY_SIGNED_BY names, if any.

    Raises:
        BundleError: damaged, of a newer schema, or without that variant or profile.
        EngineMismatchError: the engine belongs to another runtime version; says what to run.
        InputError: an argument of another type, or out of range; a governor beside a choice of variant, with fewer
            than two variants, or with a target that its fastest variant misses.
        SignatureError: none of the demanded keys signed it.
    """
    if signed_by is not None:
        bundle = read_bundle(bundle, public_keys(signed_by))
    _check_one_chooses(keep_ratio, variant, cascade, latency_ms, governor)
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    if verify:
        opened.hash_early(WEIGHTS_FILE)
    from ztdeploy.target.runtime.runner import BundleRunner, opening

    options = opening(opened, profile=profile, threads=threads, memory=memory, verify=verify)
    if cascade:
        from ztdeploy.target.adaptive.cascade import CascadeRunner

        return CascadeRunner(**options)
    if latency_ms is None and governor is None:
        runner = BundleRunner(**options)
        runner.switch(keep_ratio, variant=variant)
        return runner
    from ztdeploy.target.adaptive.governed import GovernedRunner
    from ztdeploy.target.adaptive.governor import Governor

    return GovernedRunner(governor or Governor(latency_ms or 0), **options)


def _check_one_chooses(
    keep_ratio: float | None, variant: str | None, cascade: bool, latency_ms: float | None, governor: Governor | None
) -> None:
    """
    Raises:
        InputError: more than one argument decides which variant runs, or a governor is none.
    """
    if latency_ms is not None and governor is not None:
        fix = "leave out latency_ms, which the governor has"
        raise InputError(f"both latency_ms = {arguments.shown(latency_ms)} and a governor", "one of them", fix)
    if governor is not None:
        from ztdeploy.target.adaptive.governor import Governor

        if not isinstance(governor, Governor):
            given = f"governor = {arguments.shown(governor)}"
            raise InputError(given, "a ztdeploy.Governor", "give latency_ms=30 for short")
    governed = latency_ms is not None or governor is not None
    if cascade and governed:
        raise InputError("a cascade beside a governor", "one of them: both choose the variant", "leave one out")
    chosen = {"keep_ratio": keep_ratio, "variant": variant}
    for name, value in chosen.items():
        if value is not None and (governed or cascade):
            who = "a governor" if governed else "a cascade"
            given = f"{name} = {arguments.shown(value)} beside {who}, which chooses the variant"
            narrow = "; Governor(variants=...) narrows the choice" if governed else ""
            raise InputError(given, "one of them", f"leave out {name}{narrow}")
