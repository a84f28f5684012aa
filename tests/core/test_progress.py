"""Progress: parts of a job with their shares of the time, and what is left."""

from __future__ import annotations

import pytest

from ztdeploy.core import progress as module
from ztdeploy.core.progress import Pace, parts


def test_parts_count_in_units_of_their_own() -> None:
    told: list[tuple[str, float, float]] = []
    stages = parts(lambda *step: told.append(step), {"build": 3, "nothing": 0, "measure": 1})
    stages["build"]("loading", 0, 1)
    stages["build"]("exporting", 5, 10)
    stages["nothing"]("waiting", 0, 1)
    inner = parts(stages["measure"], {"warm up": 1, "rounds": 1})
    inner["rounds"]("round 2 of 4", 1, 4)
    assert told == [("loading", 0, 4), ("exporting", 1.5, 4), ("waiting", 3, 4), ("round 2 of 4", 3.625, 4)]


def test_pace_counts_from_where_a_job_went_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    pace = Pace()
    assert (pace.share, pace.left_s()) == (0, None)
    pace.told(50, 100)  # half was kept from an earlier run
    assert pace.left_s() is None
    now = 110.0
    pace.told(60, 100)
    assert pace.left_s() == pytest.approx(40)
    now = 120.0
    assert (pace.left_s(), pace.elapsed_s()) == (pytest.approx(30), 20), "it counts down between two steps"
    pace.told(10, 100)
    assert pace.share == 0.6, "it never goes back"
    pace.told(100, 100)
    assert pace.left_s() is None
