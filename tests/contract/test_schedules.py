"""What every shipped schedule promises: it can be read, saves what its name says, and becomes a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from helpers.architectures import DEIT_S, DEIT_TINY
from helpers.models import PREPROCESS
from timm.models.vision_transformer import VisionTransformer

from ztdeploy.core.cost import at_cost, plan_gmacs
from ztdeploy.core.errors import ScheduleError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.plan import plan
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.profile import schedule_names, schedule_path
from ztdeploy.core.schedule import PruningSchedule, read_schedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning.pruned_model import PrunedModel

TINY, SMALL = (one.model_copy(update={"read_tokens": 1}) for one in (DEIT_TINY, DEIT_S))
BASE = TINY.model_copy(update={"embed_dim": 768, "num_heads": 12, "mlp_dim": 3072})
LARGE = BASE.model_copy(update={"depth": 24, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096})
ARCHITECTURES = {"deit_t": TINY, "deit_s": SMALL, "deit_b": BASE}
ARCHITECTURES |= {"vit_t": TINY, "vit_s": SMALL, "vit_b": BASE, "vit_l": LARGE}
#: Of their own weights; all others are carried over.
VERIFIED = ("deit_t",)
#: Those that were searched here; others were published.
FOUND = [name for name in schedule_names() if not name.startswith("diffrate-")]
SIZE = 56  # patches of 4: as many tokens as DeiT has


def shipped(name: str) -> PruningSchedule:
    return read_schedule(schedule_path(Path(name)))


def test_each_model_has_its_own() -> None:
    deit = [f"{model}-reduction-{percent}" for model in ("deit_t", "deit_s", "deit_b") for percent in (20, 35, 50)]
    vit = [f"{model}-reduction-{percent}" for model in ("vit_t", "vit_s", "vit_b", "vit_l") for percent in (35, 50)]
    assert sorted([*deit, *vit, "deit_t-counts-50"]) == FOUND


@pytest.mark.parametrize("name", FOUND)
def test_it_saves_what_its_name_says(name: str) -> None:
    """Its graph costs as much as that of the schedule which a keep ratio means that saves so much."""
    schedule = shipped(name)
    assert schedule.name == name
    model, _, percent = name.split("-")
    architecture = ARCHITECTURES[model]
    like = at_cost(lambda ratio: default_schedule(ratio, architecture), architecture, 1 - int(percent) / 100)
    ours, theirs = (plan_gmacs(architecture, plan(one, architecture)) for one in (schedule, like))
    assert 0.99 < ours / theirs < 1.005


@pytest.mark.parametrize("name", FOUND)
def test_one_for_a_model_nobody_had_weights_of_says_so(name: str) -> None:
    text = schedule_path(Path(name)).read_text(encoding="utf-8")
    assert ("not verified on" in text) is not name.startswith(VERIFIED)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("deit_t-reduction-35", 6), pytest.param("deit_t-reduction-50", 12, marks=pytest.mark.long)],
)
def test_it_becomes_a_graph_that_answers_as_torch_does(name: str, blocks: int) -> None:
    """The one with most layers whole; in the short set the first blocks, for a graph of all takes long to export."""
    torch.manual_seed(0)
    sizes = {"img_size": SIZE, "patch_size": 4, "embed_dim": 12, "num_heads": 2, "num_classes": 5}
    model = VisionTransformer(**sizes, depth=blocks).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    schedule = shipped(name)
    layers = tuple(layer for layer in schedule.layers if layer.block < blocks)
    assert layers
    with PrunedModel(VitAdapter(model, SIZE), schedule.model_copy(update={"layers": layers})) as pruned:
        with torch.no_grad():
            logits, *choices = pruned(images)
        preprocess = PREPROCESS.model_copy(
            update={"image_size": ImageSize(SIZE, SIZE), "resize": ImageSize(SIZE, SIZE)}
        )
        graph = export_onnx(pruned, preprocess, GraphSpec(20, "float32", None))
    content = ir.serde.serialize_model(graph).SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    answer, *found = session.run(None, {"image": images.numpy()})
    assert [one.shape for one in found] == [tuple(one.shape) for one in choices]
    same = all(np.array_equal(one, other) for one, other in zip(found, choices, strict=True))
    if same:  # random weights decide by little
        np.testing.assert_allclose(answer, logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "hint"), [("deit_t-reduction-36", "did you mean"), ("mine", "choose from")])
def test_an_unknown_name_lists_what_ships(name: str, hint: str) -> None:
    with pytest.raises(ScheduleError, match=hint):
        schedule_path(Path(name))
    assert schedule_path(Path("missing.toml")) == Path("missing.toml")
