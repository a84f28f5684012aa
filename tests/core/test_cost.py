"""Schedules at equal multiply-adds."""

from __future__ import annotations

from functools import partial

import pytest
from helpers.architectures import DEIT_TINY

from ztdeploy.core.cost import at_cost, gmacs, plan_gmacs, share_of_dense
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.plan import plan


def share(ratio: float, method: str = "zero-tprune") -> float:
    dense = gmacs(DEIT_TINY, [197] * 12)
    return plan_gmacs(DEIT_TINY, plan(default_schedule(ratio, DEIT_TINY, method=method), DEIT_TINY)) / dense


@pytest.mark.parametrize("method", ["zero-tprune", "zero-tprune-merge"])
@pytest.mark.parametrize("wanted", [0.55, 0.65, 0.8])
def test_no_other_ratio_is_nearer(method: str, wanted: float) -> None:
    found = at_cost(partial(default_schedule, architecture=DEIT_TINY, method=method), DEIT_TINY, wanted)
    assert found.keep_ratio is not None
    distance = abs(share_of_dense(found, DEIT_TINY) - wanted)
    assert share_of_dense(found, DEIT_TINY) == share(found.keep_ratio, method)
    around = [round(found.keep_ratio + step / 1000, 3) for step in range(-20, 21)]
    assert distance == min(abs(share(ratio, method) - wanted) for ratio in around)
    assert distance < 0.003


@pytest.mark.parametrize(("wanted", "ratio"), [(0.01, 0.001), (1.0, 0.999)])
def test_what_no_ratio_reaches_gives_the_nearest(wanted: float, ratio: float) -> None:
    found = at_cost(partial(default_schedule, architecture=DEIT_TINY, method="zero-tprune"), DEIT_TINY, wanted)
    assert share_of_dense(found, DEIT_TINY) == share(ratio)
