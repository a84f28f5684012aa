"""What a governor may choose: variants, from the most faithful to the fastest, on numbers of threads, with latencies
measured at load.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import InputError
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.target.adaptive.control import Rung
from ztdeploy.target.adaptive.governor import Governor
from ztdeploy.target.measure.statistics import percentile

#: Calls of an engine in a round, of which the first are not counted; the fewest and the most rounds. With two threads,
#: two calls behind another engine's took up to 1.6 times longer than those that followed.
_CALLS, _UNCOUNTED, _FEWEST_ROUNDS, _ROUNDS = 7, 3, 2, 5
#: Seconds after which no further round begins.
_LONGEST_S = 3.0
#: A variant must take at most this share of the time of a more faithful one.
_FASTER = 0.98


def candidates(bundle: Bundle, profile: str, governor: Governor) -> list[VariantRecord]:
    """The variants that may run, from the most faithful on: by their recorded evaluation, or else by their compute.

    Raises:
        InputError: there are fewer than two; an unknown variant.
    """
    named = bundle.variants(names=governor.variants)
    built = [one for one in named if profile in one.engines]
    allowed = [one for one in built if governor.min_fidelity is None or _allowed(bundle, one, profile, governor)]
    if len(allowed) < 2:
        raise _too_few(bundle, profile, governor, built)
    known = {one.name: fidelity_of(bundle, one, profile) for one in allowed}
    evaluated = all(value is not None for value in known.values())
    return sorted(allowed, key=lambda one: ((known[one.name] or 0.0) if evaluated else 0.0, one.gmacs), reverse=True)


def fidelity_of(bundle: Bundle, variant: VariantRecord, profile: str) -> float | None:
    """Agreement with the baseline, or mean cosine to it, as recorded; 1 of a baseline that has no record."""
    found = bundle.fidelity(variant, profile)
    return found.likeness if found is not None else 1.0 if variant is bundle.manifest.dense else None


def _allowed(bundle: Bundle, variant: VariantRecord, profile: str, governor: Governor) -> bool:
    found, floor = fidelity_of(bundle, variant, profile), governor.min_fidelity
    return found is not None and floor is not None and found >= floor


def _too_few(bundle: Bundle, profile: str, governor: Governor, built: Sequence[VariantRecord]) -> InputError:
    """Why there is nothing to choose from, and what to do about it."""
    folder, expected = bundle.root, "at least two variants to choose from"
    pruned = [one for one in built if one is not bundle.manifest.dense]
    if len(built) < 2 or not pruned:
        given = f"a governor for {len(built)} variant of {folder} ({', '.join(one.name for one in built) or 'none'})"
        if governor.variants:
            return InputError(given, expected, "name more variants, or none for all")
        return InputError(given, expected, "build with several keep ratios, such as --keep-ratio 0.8,0.6,0.4")
    known = [(found, one.name) for one in pruned if (found := fidelity_of(bundle, one, profile)) is not None]
    given = f"min_fidelity = {governor.min_fidelity:g}, which excludes every pruned variant of {folder}"
    if not known:
        record = f"run 'ztdeploy eval {folder} --data DIR', which records them"
        return InputError(f"{given}: none has a recorded evaluation", "recorded evaluations", record)
    best, name = max(known)
    return InputError(
        f"{given}: the best is '{name}' with {best:.4g}", f"at most {best:.4g}", "give a lower floor, or none"
    )


def thread_counts(threads: int) -> tuple[int, ...]:
    """The numbers of threads that a governor chooses from: what it was given, half of it, and one."""
    return tuple(dict.fromkeys((threads, max(1, threads // 2), 1)))


def warm_up(
    calls: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Milliseconds of a few calls of every engine, in rounds, so that a load that comes meanwhile hits all alike.

    Args:
        calls: runs an engine once, by its variant's name.
        clock: seconds.
    """
    begun, samples = clock(), {name: list[float]() for name in calls}
    for turn in range(_ROUNDS):
        if turn >= _FEWEST_ROUNDS and clock() - begun > _LONGEST_S:
            break
        for name, call in calls.items():
            for _ in range(_UNCOUNTED):
                call()  # which fetches the engine's weights into the caches, and wakes its threads
            for _ in range(_CALLS - _UNCOUNTED):
                before = clock()
                call()
                samples[name].append(1000 * (clock() - before))
    return samples


def ladder(
    variants: Sequence[VariantRecord],
    samples: Mapping[str, Sequence[float]],
    fidelity: Mapping[str, float | None],
    threads: int = 0,
) -> list[Rung]:
    """The rungs on one number of threads, each faster than all that are more faithful; what is not is left out.

    A few calls say little about a p95, so the tail is that of all variants together: how many times longer than its
    variant's median the slower calls take.
    """
    middle = {one.name: median(samples[one.name]) for one in variants}
    tail = percentile([ms / middle[one.name] for one in variants for ms in samples[one.name]], 90)
    rungs: list[Rung] = []
    for one in variants:
        rung = Rung(one.name, tail * middle[one.name], fidelity[one.name], threads)
        if not rungs or rung.latency_ms <= _FASTER * rungs[-1].latency_ms:
            rungs.append(rung)
    return rungs


def joined(ladders: Sequence[Sequence[Rung]], variants: Sequence[VariantRecord]) -> list[Rung]:
    """The rungs of all numbers of threads, from the most to the fewest: one behind the other those of one variant.

    What took longer on more threads was measured while others used the cores, and is not slower when they do not.
    """
    place = {one.name: at for at, one in enumerate(variants)}
    fewest = dict[str, float]()
    found: list[Rung] = []
    for rung in (rung for rungs in reversed(ladders) for rung in rungs):
        fewest[rung.variant] = min(rung.latency_ms, fewest.get(rung.variant, rung.latency_ms))
        found.append(rung._replace(latency_ms=fewest[rung.variant]))
    return sorted(found, key=lambda rung: (place[rung.variant], -rung.threads))


def check_target(rungs: Sequence[Rung], governor: Governor, folder: Path) -> None:
    """
    Raises:
        InputError: even the fastest variant misses the target, and the governor is strict.
    """
    fastest = min(rungs, key=lambda rung: rung.latency_ms)
    if governor.strict and fastest.latency_ms > governor.latency_ms:
        raise InputError(
            f"latency_ms = {governor.latency_ms:g}, below the fastest variant of {folder}: '{fastest.variant}' took "
            f"{fastest.latency_ms:.4g} ms (p95, measured now)",
            f"at least {fastest.latency_ms:.4g} ms",
            "raise the target, build a smaller keep ratio, or give strict=False to run the fastest all the same",
        )
