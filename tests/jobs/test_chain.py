"""The stages of a cascade: which variants, in which order, and what cannot be one."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.models import loaded

from ztdeploy.core.errors import InputError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.plan import Variant
from ztdeploy.jobs.chain import Chain, chain_of


def chain(method: str = "zero-tprune", *ratios: float, **asked: Any) -> Chain:
    model = loaded("vit_digits", **asked)
    architecture = model.adapter.architecture
    schedules = [default_schedule(ratio, architecture, method=method) for ratio in (ratios or (1.0, 0.7))]
    return chain_of([Variant.of(schedule, architecture) for schedule in schedules], model)


def test_the_cheapest_comes_first_and_the_baseline_last() -> None:
    found = chain("zero-tprune", 0.9, 1.0, 0.5)
    assert [stage.schedule.keep_ratio for stage in found.stages] == [0.5, 0.9, 1.0]
    assert found.signal == "margin"
    assert found.block == min(stage.plan.layers[0].block for stage in found.stages[:2])


def test_vectors_go_by_closeness() -> None:
    assert {chain(output=output).signal for output in ("embedding", "features")} == {"closeness"}
    assert chain("random").signal == "margin"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"activation": "none"}, "activation none"),
        ({"method": "random", "output": "features"}, "'random'"),
        ({"method": "slice", "output": "embedding"}, "'slice'"),
    ],
)
def test_what_does_not_tell_how_sure_it_is_is_refused(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as error:
        chain(**asked)
    assert named in error.value.given


def test_a_chain_of_the_baseline_alone_is_refused() -> None:
    with pytest.raises(InputError, match="without a variant that prunes"):
        chain("zero-tprune", 1.0)
