"""Which engine ships: never a riskier one that is not shown to be faster, never one that costs too much."""

from __future__ import annotations

from statistics import median

import pytest

from ztdeploy.core.manifest import GateLimits, GateRow
from ztdeploy.core.profile import Precision
from ztdeploy.host.precision_choice import Contender, by_risk, choose, misses, timing

NO_LIMITS = GateLimits()


def one(
    profile: str, precision: Precision, *milliseconds: float, misses: tuple[str, ...] = (), rounds: int = 10
) -> Contender:
    """Rounds of two calls; times are cycled through."""
    times = [milliseconds[turn % len(milliseconds)] for turn in range(rounds)]
    return Contender(profile, precision, misses, tuple((time, time) for time in times))


def vectors(variant: str, cosine: float, *, method: str = "zero-tprune") -> GateRow:
    found = row(variant, 1.0, method=method)
    return found.model_copy(update={"agreement": None, "kl": None, "drop": None, "cosine": cosine})


def test_vectors_may_lose_a_hundredth_of_cosine() -> None:
    asked = [vectors("keep-0.70", 0.95)]
    dense = vectors("dense", 0.99, method="dense")
    assert misses([dense, vectors("keep-0.70", 0.94)], asked, GateLimits()) == ()
    (one, other) = misses([vectors("dense", 0.98, method="dense"), vectors("keep-0.70", 0.93)], asked, GateLimits())
    assert one == "dense: mean cosine is 0.0200 below fp32's, at most 0.01 is allowed"
    assert other.startswith("keep-0.70: mean cosine is 0.0200 below")


def row(variant: str, agreement: float, *, method: str = "zero-tprune", failed: tuple[str, ...] = ()) -> GateRow:
    return GateRow(variant=variant, keep_ratio=0.7, method=method, drop=0.0, agreement=agreement, kl=0.0, failed=failed)


def test_the_least_risky_come_first_and_else_the_order_stays() -> None:
    given: list[tuple[str, Precision]] = [("i", "int8"), ("a", "fp32"), ("h", "fp16"), ("b", "bf16"), ("c", "fp32")]
    assert by_risk(given) == ["a", "c", "h", "b", "i"]


def test_the_fastest_ships_and_the_others_say_by_how_much_it_is() -> None:
    reasons = choose([one("cpu", "fp32", 10, 11), one("half", "bf16", 8, 7), one("int8", "int8", 4, 5)])
    assert reasons[2] is None
    assert reasons[0] is not None
    assert reasons[0].startswith("int8 is faster: ")
    assert reasons[1] is not None
    assert reasons[1].startswith("int8 is faster: ")


def test_a_riskier_one_within_noise_of_a_safer_one_does_not_ship() -> None:
    """int8 is 2 % faster by the median, and slower in four rounds of ten."""
    half, integers = one("half", "bf16", 5.0), one("int8", "int8", 4.9, 5.1, 4.9, 5.1, 4.85)
    reasons = choose([one("cpu", "fp32", 10), half, integers])
    assert reasons[1] is None
    assert reasons[2] is not None
    assert reasons[2].startswith("not shown to be faster than half: 1.0")
    assert reasons[0] is not None


def test_a_slower_one_never_ships() -> None:
    reasons = choose([one("cpu", "fp32", 5), one("other", "fp32", 6), one("int8", "int8", 7)])
    assert reasons[0] is None
    assert all(reason is not None and "not shown to be faster" in reason for reason in reasons[1:])


def test_what_costs_too_much_does_not_ship_and_stands_in_nobodys_way() -> None:
    bad = one("half", "bf16", 1, misses=("keep-0.70: agreement is low", "dense: too"))
    reasons = choose([one("cpu", "fp32", 10), bad, one("int8", "int8", 5)])
    assert reasons == ["int8 is faster: 2.00x (2.00 to 2.00)", "keep-0.70: agreement is low; dense: too", None]


def test_alone_it_ships() -> None:
    assert choose([one("cpu", "fp32", 10)]) == [None]


def test_timing_is_by_rounds() -> None:
    asked = one("cpu", "fp32", 10, 20, 10, 20, 10)
    found = timing(one("int8", "int8", 5, 10, 5, 10, 5), asked)
    assert found.median_ms == 5
    assert (found.speedup, found.speedup_interval) == (2, (2, 2)), "what hits both of a round cancels out"
    assert found.interval[0] >= 5
    assert found.interval[1] <= 10
    assert found.median_ms == median([5, 10, 5, 10, 5])


@pytest.mark.parametrize(
    ("dense", "pruned", "missed"),
    [(0.97, 0.77, []), (0.95, 0.76, []), (0.94, 0.78, ["dense"]), (1.0, 0.75, ["keep-0.70"])],
)
def test_without_limits_each_variant_is_held_against_itself_in_fp32(
    dense: float, pruned: float, missed: list[str]
) -> None:
    rows = [row("dense", dense, method="dense"), row("keep-0.70", pruned)]
    found = misses(rows, [row("keep-0.70", 0.78)], NO_LIMITS)
    assert [text.partition(":")[0] for text in found] == missed


def test_with_limits_these_decide_for_all_that_ships_in_fp32() -> None:
    limits = GateLimits(max_drop=1)
    asked = [row("keep-0.70", 0.78), row("keep-0.30", 0.4, failed=("too much",))]
    rows = [row("dense", 0.5, method="dense"), row("keep-0.70", 0.1), row("keep-0.30", 0.4, failed=("too much",))]
    assert misses(rows, asked, limits) == (), "what fp32 does not ship does not count, nor agreement"
    rows[1] = row("keep-0.70", 0.78, failed=("top-1 falls by 2.00 points",))
    assert misses(rows, asked, limits) == ("keep-0.70: top-1 falls by 2.00 points",)
    rows[0] = row("dense", 0.9, method="dense", failed=("so does dense",))
    assert len(misses(rows, asked, limits)) == 2
