"""Models from folders and from the hub, as timm and transformers save them: weights, architecture, images, names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.dialects import vit_names
from helpers.errors import refused
from helpers.models import loaded, randomised
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

import ztdeploy.host.models.sources
from ztdeploy.core.errors import CheckpointError, ModelError, WeightsUnavailableError, ZtdeployError
from ztdeploy.core.model_source import ModelSource, folder_word
from ztdeploy.core.preprocess_spec import PreprocessOptions
from ztdeploy.host.models.sources import shards_of
from ztdeploy.jobs.build import BuildRequest
from ztdeploy.jobs.bundle_cache import bundle_key

NAME = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 64}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def small(classes: int = 4, **arguments: Any) -> nn.Module:
    model: nn.Module = randomised(timm.create_model(NAME, num_classes=classes, **SMALL, **arguments), 3)
    return model


def of_timm(folder: Path, model: nn.Module, **config: Any) -> Path:
    """As timm saves a model for the hub."""
    facts = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 0.8, "crop_mode": "center"}
    given = {"pretrained_cfg": facts, "label_names": ["ant", "bee", "cat", "dog"], **config}
    save_for_hf(model, str(folder), model_config=given, model_args=SMALL, safe_serialization=True)
    return folder


def of_transformers(folder: Path, model: nn.Module, shards: int = 1, **config: Any) -> Path:
    """As its ViTForImageClassification saves itself, with the preprocessor's configuration."""
    state = {name: tensor.contiguous() for name, tensor in vit_names(model.state_dict(), "vit").items()}
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = list(state)
        files = {name: f"model-{index % shards + 1:05}-of-{shards:05}.safetensors" for index, name in enumerate(names)}
        for file in set(files.values()):
            save_file({name: state[name] for name in names if files[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
    labels = {"id2label": {"0": "ant", "1": "bee", "2": "cat", "3": "dog"}, "layer_norm_eps": 1e-6}
    named = {"architectures": ["ViTForImageClassification"]}
    data = {
        "model_type": "vit",
        **named,
        **sizes,
        "image_size": 64,
        "patch_size": 16,
        "qkv_bias": True,
        **labels,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(data))
    images = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}, "resample": 2}
    images |= {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return folder


def same(model: nn.Module, other: nn.Module) -> None:
    """Up to rounding, for timm has one projection where transformers has three."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), other(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [of_timm, of_transformers])
def test_a_folder_says_all_about_its_weights(tmp_path: Path, layout: Callable[..., Path]) -> None:
    model = small()
    found = loaded(f"local-dir:{layout(tmp_path, model)}")
    same(found.adapter.model, model)
    assert (found.timm_name, found.weights_source) == (
        NAME if layout is of_timm else "ViTForImageClassification",
        "checkpoint",
    )
    assert found.class_names == ("ant", "bee", "cat", "dog")
    spec, squash = found.preprocess, layout is of_transformers
    assert (spec.mean, spec.std, spec.interpolation, spec.image_size) == (MEAN, STD, "bilinear", (64, 64))
    assert (spec.crop_mode, spec.resize[0]) == (("squash", 64) if squash else ("center", 80))
    said = "preprocessor_config.json" if squash else "config.json"
    assert set(found.preprocess_sources.values()) == {said}
    assert found.remarks == ()


def test_shards_make_one_table(tmp_path: Path) -> None:
    model = small()
    folder = of_transformers(tmp_path, model, shards=3)
    same(loaded(f"local-dir:{folder}").adapter.model, model)
    index = folder / "model.safetensors.index.json"
    for checkpoint in (folder, index):
        refused(lambda: loaded(NAME, checkpoint=checkpoint), "mis-shaped: cls_token", kind=CheckpointError)  # noqa: B023
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(lambda: loaded(f"local-dir:{folder}"), "model-00002", kind=CheckpointError)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_folder_beside_a_models_name(tmp_path: Path, as_file: bool) -> None:
    model = small()
    folder = of_timm(tmp_path, model)
    checkpoint = folder / "model.safetensors" if as_file else folder
    found = loaded(NAME, checkpoint=checkpoint)
    same(found.adapter.model, model)
    assert found.preprocess.mean == MEAN
    assert found.class_names == ("ant", "bee", "cat", "dog")


def test_a_folder_of_another_model(tmp_path: Path) -> None:
    folder = of_timm(tmp_path, small())
    refused(lambda: loaded("deit_t", checkpoint=folder), "local-dir:", NAME, kind=ModelError)
    state = timm.create_model("deit_tiny_patch16_224", num_classes=2).state_dict()
    torch.save(state, tmp_path / "other.pth")
    found = loaded("deit_t", checkpoint=tmp_path / "other.pth")
    assert "the config.json beside it is of another model: not used" in found.remarks
    assert found.preprocess.mean != MEAN


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 1}', '{"model_type": "vit", "hidden_size": "x"}'])
def test_a_file_of_that_name_that_is_something_else(tmp_path: Path, content: str) -> None:
    torch.save(timm.create_model("deit_tiny_patch16_224", num_classes=2).state_dict(), tmp_path / "c.pth")
    (tmp_path / "config.json").write_text(content)
    assert loaded("deit_t", checkpoint=tmp_path / "c.pth").preprocess_sources["mean"].startswith("timm's")


def test_what_transformers_computes_otherwise(tmp_path: Path) -> None:
    model = small(act_layer="quick_gelu")
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3
    found = loaded(f"local-dir:{of_transformers(tmp_path, model, hidden_act='quick_gelu', layer_norm_eps=1e-3)}")
    same(found.adapter.model, model)


def test_a_distilled_model_of_which_one_head_is_used(tmp_path: Path) -> None:
    """As DeiTForImageClassification is: its second token takes part in attention and is then left aside."""
    model = small(reg_tokens=1)
    folder = of_transformers(tmp_path, model, model_type="deit", architectures=["DeiTForImageClassification"])
    state = {**model.state_dict(), "dist_token": model.state_dict()["reg_token"]}
    names = {n.replace("cls_classifier", "classifier"): tensor for n, tensor in vit_names(state, "deit").items()}
    torch.save(names, folder / "pytorch_model.bin")
    same(loaded(f"local-dir:{folder}").adapter.model, model)


def test_names_for_other_classes_are_no_names(tmp_path: Path) -> None:
    found = loaded(f"local-dir:{of_timm(tmp_path, small(classes=7))}")
    assert found.class_names is None
    assert any("name 4 classes, and there are 7" in remark for remark in found.remarks)


def test_what_no_file_says_is_assumed_and_said_so(tmp_path: Path) -> None:
    torch.save(timm.create_model("deit_tiny_patch16_224", num_classes=2).state_dict(), tmp_path / "c.pth")
    found = loaded("deit_t", checkpoint=tmp_path / "c.pth")
    (line,) = (remark for remark in found.remarks if "assumed" in remark)
    assert "mean 0.485 0.456 0.406" in line
    assert "--mean" in line
    assert found.preprocess_sources["mean"] == "timm's for deit_tiny_patch16_224"
    options = PreprocessOptions(mean=MEAN, std=STD, interpolation="lanczos", crop_mode="squash", crop_pct=1.0)
    given = loaded("deit_t", checkpoint=tmp_path / "c.pth", preprocess=options)
    assert (given.preprocess.mean, given.preprocess.interpolation, given.preprocess.crop_mode) == (
        MEAN,
        "lanczos",
        "squash",
    )
    assert not any("assumed" in remark for remark in given.remarks)
    assert given.preprocess_sources["std"] == "option"
    assert loaded("deit_t", weights="random").remarks == ()


@pytest.mark.parametrize(
    "options",
    [{"mean": (float("nan"),) * 3}, {"std": (0.0, 1.0, 1.0)}, {"std": (-1.0,) * 3}, {"mean": (float("inf"),) * 3}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    refused(lambda: loaded("vit_digits", preprocess=PreprocessOptions(**options)), "mean", kind=ModelError)


def test_a_cached_bundle_is_of_these_files(tmp_path: Path) -> None:
    """What lies in a folder decides the bundle, not what the folder is called."""
    folder = of_timm(tmp_path, small())
    keys = []
    for change in (None, "config.json", "model.safetensors"):
        if change is not None:
            (folder / change).write_bytes((folder / change).read_bytes() + b" ")
        keys += [bundle_key(BuildRequest(ModelSource(name=f"local-dir:{folder}"), ("cpu",), tmp_path / "out"))]
        keys += [bundle_key(BuildRequest(ModelSource(name=NAME, checkpoint=folder), ("cpu",), tmp_path / "out"))]
    mean = PreprocessOptions(mean=(0.5,))
    keys += [
        bundle_key(BuildRequest(ModelSource(name=NAME, checkpoint=folder, preprocess=mean), ("cpu",), tmp_path / "out"))
    ]
    assert len(set(keys)) == 7


# -------------------- places that hold nothing


def nothing(_folder: Path) -> None:
    pass


def without_weights(folder: Path) -> None:
    of_timm(folder, small())
    (folder / "model.safetensors").unlink()


def without_config(folder: Path) -> None:
    torch.save(small().state_dict(), folder / "model.pth")


def two_files(folder: Path) -> None:
    without_weights(folder)
    for name in ("a.pth", "b.pth"):
        torch.save(small().state_dict(), folder / name)


def adapters(folder: Path) -> None:
    without_weights(folder)
    names = {f"base_model.model.blocks.0.attn.qkv.lora_{part}.weight": torch.ones(4, 48) for part in "AB"}
    save_file(names, folder / "adapter_model.safetensors")


def of_swin(folder: Path) -> None:
    of_transformers(folder, small(), model_type="swin")


def a_convolutional_network(folder: Path) -> None:
    of_timm(folder, small())
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 4}))


def an_argument_that_timm_does_not_know(folder: Path) -> None:
    of_timm(folder, small())
    (folder / "config.json").write_text(json.dumps({"architecture": NAME, "model_args": {"nonsense": 3}}))


def an_argument_that_reads_a_file(folder: Path) -> None:
    of_timm(folder, small())
    (folder / "config.json").write_text(json.dumps({"architecture": NAME, "model_args": {"checkpoint_path": "x.pth"}}))


def an_argument_that_asks_the_hub(folder: Path) -> None:
    of_timm(folder, small())
    (folder / "config.json").write_text(json.dumps({"architecture": NAME, "model_args": {"pretrained": True}}))


def an_activation_of_no_name(folder: Path) -> None:
    of_timm(folder, small())
    (folder / "config.json").write_text(json.dumps({"architecture": NAME, "model_args": {"act_layer": "os.system"}}))


def a_model_of_terabytes(folder: Path) -> None:
    of_timm(folder, small())
    arguments = {"embed_dim": 65535, "depth": 16}
    (folder / "config.json").write_text(json.dumps({"architecture": NAME, "model_args": arguments}))


def heads_that_do_not_divide(folder: Path) -> None:
    of_transformers(folder, small(), num_attention_heads=5)


def another_depth(folder: Path) -> None:
    of_transformers(folder, small(), num_hidden_layers=4)


@pytest.mark.parametrize(
    ("fill", "fragment", "kind"),
    [
        (nothing, "config.json", ModelError),
        (without_config, "--checkpoint DIR", ModelError),
        (without_weights, "no such file", CheckpointError),
        (two_files, "'a.pth', 'b.pth'", CheckpointError),
        (adapters, "merge", CheckpointError),
        (of_swin, "windows", ModelError),
        (a_convolutional_network, "cannot be pruned", ModelError),
        (an_argument_that_timm_does_not_know, "nonsense", ModelError),
        (an_argument_that_reads_a_file, "checkpoint_path", ModelError),
        (an_argument_that_asks_the_hub, "pretrained", ModelError),
        (an_activation_of_no_name, "os.system", ModelError),
        (a_model_of_terabytes, "does not fit", CheckpointError),
        (heads_that_do_not_divide, "mis-shaped", CheckpointError),
        (another_depth, "layers.3", CheckpointError),
    ],
)
def test_folders_that_hold_no_model(
    tmp_path: Path, fill: Callable[[Path], None], fragment: str, kind: type[ZtdeployError]
) -> None:
    fill(tmp_path)
    refused(lambda: loaded(f"local-dir:{tmp_path}"), fragment, kind=kind)


@pytest.mark.parametrize("name", ["local-dir:", "hf-hub:", "file:/x", "http://x/y", "C:\\x", ":", "s3:x"])
def test_places_of_no_known_kind(name: str) -> None:
    refused(lambda: loaded(name), "local-dir:DIR", kind=ModelError)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    refused(lambda: loaded(str(tmp_path)), f"local-dir:{tmp_path}", kind=ModelError)
    refused(lambda: loaded(f"local-dir:{tmp_path / 'none'}"), "not a folder", kind=ModelError)
    refused(lambda: loaded("deit_t", checkpoint=tmp_path), "no such file", kind=CheckpointError)


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
    + [
        json.dumps({"weight_map": {"a": name}})
        for name in ("../x.bin", "/etc/passwd", "a/b.bin", "", ".", "..", "a\0b")
    ],
)
def test_an_index_that_names_no_files_beside_it(tmp_path: Path, index: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    refused(lambda: shards_of(path), "index", kind=CheckpointError)


# -------------------- the hub


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(ztdeploy.host.models.sources, "reachable", lambda *_, **__: False)
    return tmp_path / "hub"


def cached(cache: Path, repository: str, fill: Callable[..., Path], *arguments: Any) -> None:
    """A repository as the hub's client leaves it: every file a link to a blob."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot, blobs = folder / "snapshots" / ("a" * 40), folder / "blobs"
    for path in (snapshot, blobs, folder / "refs"):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    fill(snapshot, *arguments)
    for path in list(snapshot.iterdir()):
        blob = blobs / f"blob-{path.name}"
        path.rename(blob)
        path.symlink_to(blob)


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_repository_that_is_cached_needs_no_hub(hub_cache: Path, prefix: str, shards: int) -> None:
    model = small()
    cached(hub_cache, "somebody/model", of_transformers, model, shards)
    found = loaded(f"{prefix}somebody/model")
    same(found.adapter.model, model)
    assert (found.weights_source, found.weights_origin) == ("pretrained", "hf-hub:somebody/model")
    assert found.class_names == ("ant", "bee", "cat", "dog")
    assert found.remarks == ()


@pytest.mark.parametrize("name", ["somebody/absent", "absent", "somebody/absent@v2", "timm/vit_tiny_patch16_224.x"])
def test_a_repository_that_cannot_be_had(hub_cache: Path, name: str) -> None:
    refused(lambda: loaded(f"hf-hub:{name}"), name, "local-dir", kind=WeightsUnavailableError)


@pytest.mark.parametrize("name", ["a/b/c", "../x", "a b/c", "-x/y", "x" * 300])
def test_what_no_repository_is_called(hub_cache: Path, name: str) -> None:
    refused(lambda: loaded(f"hf-hub:{name}"), "a repository such as", kind=ModelError)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("deit_s", "deit_s"),
        ("local-dir:/models/mine/", "mine"),
        ("hf-hub:timm/vit_tiny.augreg@main", "vit_tiny.augreg"),
        ("local-dir:/", "model"),
    ],
)
def test_the_word_for_a_model_in_a_folders_name(name: str, word: str) -> None:
    assert folder_word(name) == word
