"""DiffRate's published counts as schedules: what they cost, what a keep ratio makes of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.architectures import DEIT_S, DEIT_TINY

from ztdeploy.core.cost import whole_block_gmacs
from ztdeploy.core.errors import ScheduleError
from ztdeploy.core.keep_ratio import CURVE, CURVE_PATCHES, default_schedule
from ztdeploy.core.plan import plan
from ztdeploy.core.profile import schedule_names, schedule_path
from ztdeploy.core.schedule import PruningSchedule, read_schedule

DEIT_B = DEIT_TINY.model_copy(update={"embed_dim": 768, "num_heads": 12, "mlp_dim": 3072})
MAE_L = DEIT_B.model_copy(update={"depth": 24, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096})
#: By model, the budgets in GMACs as its authors count.
PUBLISHED = {
    "deit_t": (DEIT_TINY, ("0.6", "0.7", "0.8", "0.9", "1.0")),
    "deit_s": (DEIT_S, ("2.3", "2.5", "2.7", "2.9", "3.1")),
    "deit_b": (DEIT_B, ("8.7", "10.0", "10.4", "11.5", "12.5")),
    "vit_b_mae": (DEIT_B, ("8.7", "10.0", "10.4", "11.5")),
    "vit_l_mae": (MAE_L, ("31.0", "34.7", "38.5", "42.3", "46.1")),
}
COUNTS = {f"diffrate-{model}-{gmacs}": (model, gmacs) for model, (_, all_of) in PUBLISHED.items() for gmacs in all_of}


def shipped(name: str) -> PruningSchedule:
    return read_schedule(schedule_path(Path(name)))


def test_all_of_them_ship() -> None:
    assert [name for name in schedule_names() if name.startswith("diffrate-")] == sorted(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts_cost_what_their_authors_count(name: str) -> None:
    model, gmacs = COUNTS[name]
    schedule, (architecture, _) = shipped(name), PUBLISHED[model]
    assert (schedule.name, schedule.method, schedule.tokens) == (name, "diffrate", 197)
    found = plan(schedule, architecture)
    assert whole_block_gmacs(architecture, found) == pytest.approx(float(gmacs), rel=0.1), (
        "their budgets, which a search met about"
    )


def test_a_keep_ratio_alone_means_the_shape_of_published_counts() -> None:
    stays = np.array([layer.tokens_out for layer in plan(shipped("diffrate-deit_s-2.9"), DEIT_S).layers])
    assert [merged + 1 for _, merged in CURVE[1:]] == stays.tolist()
    wanted = default_schedule(0.7, DEIT_S, method="diffrate")
    powers = [
        np.log((one.tokens_out - 1) / CURVE_PATCHES) / np.log(merged / CURVE_PATCHES)
        for one, (_, merged) in zip(plan(wanted, DEIT_S).layers[1:], CURVE[2:-1], strict=True)
    ]
    assert np.ptp(powers) < 0.06, "one power for all, but for whole tokens"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 24}, "24 blocks and 197 tokens; expected one of 12 blocks and 197 tokens"),
        ({"patch_tokens": 576}, "12 blocks and 577 tokens; expected one of 12 blocks and 197 tokens"),
    ],
)
def test_counts_for_another_model_are_refused(change: dict[str, int], says: str) -> None:
    with pytest.raises(ScheduleError, match=says):
        plan(shipped("diffrate-deit_s-2.9"), DEIT_S.model_copy(update=change))


@pytest.mark.parametrize(
    "text",
    [
        "prune_kept = [5, 4]",
        "prune_kept = [5, 4]\nmerge_kept = [5]",
        "prune_kept = [5, 0]\nmerge_kept = [5, 4]",
        "prune_kept = [5, 4.5]\nmerge_kept = [5, 4]",
        "prune_kept = []\nmerge_kept = []",
        "prune_kept = 5\nmerge_kept = 4",
        "prune_kept = [5, 4]\nmerge_kept = [5, 3]\n[[layer]]\nblock = 1\ndrop = 1",
    ],
)
def test_counts_that_cannot_be_right_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'method = "diffrate"\n{text}\n')
    with pytest.raises(ScheduleError, match="lists of as many whole numbers above 0, one for each block"):
        read_schedule(file)
