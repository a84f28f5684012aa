"""The tables differ in what they say, and in nothing else."""

from __future__ import annotations

import pytest
from helpers.architectures import SMALL

from benchmarks.ablation.topic_names import TOPICS
from benchmarks.ablation.topics import TopicRows, bases, topics
from ztdeploy.core.cost import share_of_dense
from ztdeploy.core.options import MethodOptions

FOUND = topics(bases(SMALL, 0.65))


@pytest.mark.parametrize("table", FOUND, ids=lambda table: table.topic)
def test_every_row_costs_the_same(table: TopicRows) -> None:
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)
    assert table.reference in labels
    for row in table.rows:
        assert share_of_dense(row.schedule, SMALL) == pytest.approx(0.65, abs=0.02)


#: Per table, what its rows change.
CHANGED = {
    "partition": {"partition"},
    "feature": {"feature"},
    "metric": {"metric"},
    "order": {"order"},
    "start": {"start"},
    "merge": {"partner", "least_similarity", "proportional", "coherent"},
    "iterations": set(),
    "share": set(),
}


@pytest.mark.parametrize("table", FOUND[1:], ids=lambda table: table.topic)
def test_rows_differ_in_one_thing(table: TopicRows) -> None:
    reference = next(row for row in table.rows if row.label == table.reference).schedule
    assert reference.options == MethodOptions()
    for row in table.rows:
        assert len(row.schedule.options.changed) <= 1
        assert row.schedule.options.changed <= CHANGED[table.topic]
        assert row.schedule.method in (reference.method, row.label), "a row of another method is named after it"
        assert row.schedule.method == reference.method or not row.schedule.options.changed
        # Only a row whose block has to compute all tokens makes up for it with its keep ratio.
        dropped = {"similarity_share", "iterations", *(["keep_ratio"] if row.label == "tokens" else [])}
        for own, other in zip(row.schedule.layers, reference.layers, strict=True):
            assert own.model_dump(exclude=dropped) == other.model_dump(exclude=dropped)
    assert len({row.key for row in table.rows}) == len(table.rows)


def test_the_papers_staircase() -> None:
    table = FOUND[0]
    by_label = {row.label: row.schedule for row in table.rows}
    assert [row.draw for row in table.rows[:4]] == [0, 1, 2, None]
    assert by_label["WPR"].options.changed == {"join", "head_filter"}
    assert by_label["+ EIR"].options.changed == {"head_filter"}
    assert not by_label["+ VHF"].options.changed
    assert {layer.similarity_share for layer in by_label["+ VHF"].layers} == {0.0}
    assert {layer.similarity_share for layer in by_label["+ S-stage"].layers} == {0.5}
    assert by_label["+ merging"].method == by_label["+ late layers"].method == "zero-tprune-merge"
    assert [layer.block for layer in by_label["+ merging"].layers] == [2, 3, 5]


def test_some_tables() -> None:
    assert [table.topic for table in FOUND] == list(TOPICS)
    chosen = topics(bases(SMALL, 0.65), ("start", "order"))
    assert [table.topic for table in chosen] == ["order", "start"]


def test_the_papers_positions() -> None:
    (table,) = topics(bases(SMALL, 0.7, "paper"), ("contribution",))
    for row in table.rows:
        assert [layer.block for layer in row.schedule.layers] == [1, 2, 3, 5, 6]
    assert table.rows[-1].label == "+ merging", "without late layers there is no row for them"
