"""The table of the fidelity benchmark, from made-up logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.architectures import DEIT_S

from benchmarks.fidelity import REFERENCE, ROWS, Row, schedule_at, table
from ztdeploy.core.cost import share_of_dense
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.target.evaluate.data import LabelledImage


def test_rows_are_ordered_by_divergence_and_compared_with_the_reference() -> None:
    dense = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    photographs = [LabelledImage(Path(f"{at}.png"), frozenset({int(row.argmax())})) for at, row in enumerate(dense)]
    noise = np.random.default_rng(1).normal(size=dense.shape).astype(np.float32)

    def row(share: float) -> Row:
        return Row(PruningSchedule(name="x", method=REFERENCE, keep_ratio=0.7), 0.65, dense + share * noise)

    lines = table({REFERENCE: row(0.5), "near": row(0.01)}, dense, photographs).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [(one[0], one[2]) for one in cells] == [("dense", "0 %"), ("near", "-35.0 %"), (REFERENCE, "-35.0 %")]
    assert cells[0][-1] == "40 of 40"
    assert float(cells[1][4].split()[0]) < 0.01
    assert cells[2][4] == "1"


@pytest.mark.parametrize("method", ROWS)
def test_every_row_has_a_schedule_at_the_cost(method: str) -> None:
    found = schedule_at(method, DEIT_S, 0.65)
    assert share_of_dense(found, DEIT_S) == pytest.approx(0.65, abs=0.004)
