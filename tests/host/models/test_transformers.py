"""Models of Hugging Face folders: the library's answers, its pixels, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.errors import refused
from helpers.models import loaded
from PIL import Image
from safetensors.torch import load_file, save_file

from ztdeploy.core.errors import CheckpointError, ModelError, ZtdeployError
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.host import assets
from ztdeploy.host.models.hf_folder import KINDS
from ztdeploy.host.models.hf_processor import PROCESSORS, ProcessorConfig, processor_of, said_by
from ztdeploy.host.models.loading import check_model
from ztdeploy.target.runtime.preprocess import load_pixels, normalise

transformers: Any = pytest.importorskip("transformers")
families: Any = pytest.importorskip("helpers.families")

REALDATA = Path(folder) if (folder := os.environ.get("ZTDEPLOY_REALDATA")) else None
NAMES = [name for name, facts in families.MEMBERS.items() if facts.family == "transformers"]
PHOTOS = sorted((Path(assets.__file__).parent / "photos").glob("*.jpg"))


def folder_of(path: Path, name: str, **arguments: Any) -> tuple[Path, Any]:
    """A folder as the library writes it, and the model in it."""
    model = families.library_model(f"hf/{name}", **arguments)
    model.save_pretrained(path)
    return path, model


def answer(model: Any, images: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model(pixel_values=images, **options)
    found = (getattr(output, name, None) for name in ("logits", "image_embeds", "pooler_output"))
    one = next((one for one in found if one is not None), None)
    return output.last_hidden_state[:, 0] if one is None else one


# -------------------- the library's answers


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_gives_what_the_library_gives(name: str, tmp_path: Path) -> None:
    folder, model = folder_of(tmp_path, name.removeprefix("hf/"), **({"mask_ratio": 0.0} if "MAE" in name else {}))
    images, facts = families.images_for(name), families.MEMBERS[name]
    order = {"noise": torch.arange(25.0).expand(3, -1)} if "MAE" in name else {}
    found = loaded(f"hf:{folder}", image_size=facts.image_size)
    with torch.no_grad():
        torch.testing.assert_close(found.adapter.model(images), answer(model, images, **order), rtol=1e-5, atol=1e-5)
    assert (found.timm_name, found.adapter.family) == (name.removeprefix("hf/"), "transformers")
    assert found.output == ("logits" if "Classification" in name else "embedding")


@pytest.mark.parametrize(
    ("whole", "tower"), [("CLIPModel", "CLIPVisionModelWithProjection"), ("SiglipModel", "SiglipVisionModel")]
)
def test_the_vision_tower_of_a_whole_checkpoint(whole: str, tower: str, tmp_path: Path) -> None:
    made = getattr(transformers, whole)
    text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 96}
    vision = {**text, "num_hidden_layers": 3, "image_size": 80, "patch_size": 16}
    options = {"projection_dim": 20} if whole == "CLIPModel" else {}
    model = made(made.config_class(text_config={**text, "vocab_size": 99}, vision_config=vision, **options)).eval()
    model.save_pretrained(tmp_path)
    images = families.images_for("hf/SiglipVisionModel")
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=images)
        expected = getattr(expected, "pooler_output", expected)
        found = loaded(f"hf:{tmp_path}", image_size=80)
        torch.testing.assert_close(found.adapter.model(images), expected, rtol=1e-5, atol=1e-5)
    assert found.timm_name == tower


@pytest.mark.parametrize("name", ["hf/ViTModel", "hf/Dinov2WithRegistersModel", "hf/CLIPVisionModel", "hf/DeiTModel"])
def test_positions_are_resampled_as_the_library_does_it(name: str, tmp_path: Path) -> None:
    folder, model = folder_of(tmp_path, name.removeprefix("hf/"))
    patch = families.MEMBERS[name].patch
    images = torch.randn(2, 3, 6 * patch, 8 * patch)
    options = {} if "Dinov2" in name else {"interpolate_pos_encoding": True}
    found = loaded(f"hf:{folder}", image_size=tuple(images.shape[2:]))
    with torch.no_grad():
        torch.testing.assert_close(found.adapter.model(images), answer(model, images, **options), rtol=1e-5, atol=1e-5)
    assert found.weights_origin == "model.safetensors, positions resampled"


def test_shards_and_pickles_are_read_like_any_weights(tmp_path: Path) -> None:
    folder, model = folder_of(tmp_path / "whole", "ViTForImageClassification")
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    (tmp_path / "pickle").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "pickle")
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pickle" / "pytorch_model.bin")
    digests = {loaded(f"hf:{tmp_path / kind}").weights_sha256 for kind in ("whole", "shards", "pickle")}
    assert len(digests) == 1


def test_classes_have_the_names_of_the_configuration(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, "ViTForImageClassification", id2label={0: "ant", 1: "bee"}, num_labels=2)
    assert loaded(f"hf:{folder}").class_names == ("ant", "bee")


def test_what_can_be_done_with_a_folder_is_told_without_weights(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, "Dinov2Model")
    (folder / "model.safetensors").unlink()
    found = check_model(f"hf:{folder}")
    assert (found.family, found.architecture.depth) == ("transformers", 3)
    assert {"tome", "zero-tprune", "zero-tprune-merge"} <= set(found.methods)


def test_a_trained_dinov2_gives_the_features_of_timms(realdata: Path, tmp_path: Path) -> None:
    state = realdata / "dinov2_small.fp16.safetensors"
    (tmp_path / "model.safetensors").symlink_to(state)
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
    config = {"model_type": "dinov2", "architectures": ["Dinov2Model"], "mlp_ratio": 4, "layer_norm_eps": 1e-6, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = loaded(f"hf:{tmp_path}", output="features")
    timms = loaded("dinov2_s", checkpoint=state, output="features")
    image = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (model.adapter.model.forward_features(image) for model in (ours, timms))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


# -------------------- the library's pixels

EXACT: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT": {},
    "Siglip": {"size": {"height": 96, "width": 160}, "resample": 1},
    "CLIP": {"size": {"shortest_edge": 235}, "do_normalize": False},
    "Bit": {"size": {"shortest_edge": 256}, "image_mean": [0.1, 0.2, 0.3], "rescale_factor": 1 / 127.5},
    "Beit": {"do_center_crop": True, "size": {"height": 240, "width": 240}, "do_rescale": False},
}


@pytest.mark.parametrize("kind", EXACT)
def test_pixels_are_those_of_the_librarys_processor(kind: str, tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, "ViTModel")
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**EXACT[kind])
    processor.save_pretrained(folder)
    spec = loaded(f"hf:{folder}", weights="random").preprocess
    photos = PHOTOS + (sorted((REALDATA / "images").iterdir())[::55] if REALDATA is not None else [])
    for photo in photos:
        image = Image.open(photo).convert("RGB")
        pixels = load_pixels([photo], spec)
        plain = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(pixels, plain.transpose(0, 2, 3, 1))
        values = processor(image, return_tensors="np")["pixel_values"].astype(np.float32)
        # one rounding of pixels from 0 to 1, carried through mean and std
        np.testing.assert_allclose(normalise(pixels, spec), values, rtol=2e-6, atol=1.2e-7 / min(spec.std))


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_the_processor_of_an_export_gives_our_pixels(mode: Any, tmp_path: Path) -> None:
    sizes = {"image_size": 96, "resize": 110 if mode == "center" else 96}
    spec = PreprocessSpec(**sizes, crop_mode=mode, crop_rounding="down", mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor_of(spec, pixels=False)))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    for photo in PHOTOS:
        image, ours = Image.open(photo).convert("RGB"), load_pixels([photo], spec)
        pixels = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(ours, pixels.transpose(0, 2, 3, 1))
        values = processor(image, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(normalise(ours, spec), values, rtol=2e-6, atol=1.2e-6)


def test_pixels_of_dinov3_differ_by_one_level_at_most(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, "DINOv3ViTModel")
    processor = transformers.DINOv3ViTImageProcessor()
    processor.save_pretrained(folder)
    found = loaded(f"hf:{folder}", weights="random")
    assert any("one level" in remark for remark in found.remarks)
    for photo in PHOTOS:
        values = processor(Image.open(photo).convert("RGB"), return_tensors="np")["pixel_values"]
        ours = normalise(load_pixels([photo], found.preprocess), found.preprocess)
        std = np.asarray(found.preprocess.std).reshape(1, -1, 1, 1)
        assert np.abs((values - ours) * std).max() < 1.01 / 255


@pytest.mark.parametrize("kind", PROCESSORS)
def test_defaults_are_the_librarys(kind: str) -> None:
    made = getattr(transformers, f"{kind}ImageProcessor{'' if kind == 'DINOv3ViT' else 'Pil'}")()
    ours = ProcessorConfig.of(PROCESSORS[kind])
    assert ours.size == {name: side for name, side in dict(made.size).items() if side is not None}
    assert (ours.resample, bool(ours.do_center_crop)) == (int(made.resample), bool(made.do_center_crop))
    if ours.do_center_crop:
        assert ours.crop_size == {"height": made.crop_size["height"], "width": made.crop_size["width"]}
    assert (ours.image_mean, ours.image_std) == (tuple(made.image_mean), tuple(made.image_std))
    assert ours.edge is not made.default_to_square


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("do_pad", {"do_pad": True}),
        ("do_resize", {"do_resize": False}),
        ("do_flip_channel_order", {"do_flip_channel_order": True}),
        ("size", {"size": {"shortest_edge": 224, "longest_edge": 640}, "do_center_crop": True}),
        ("size", {"size": {"max_height": 3, "max_width": 4}}),
        ("do_center_crop", {"size": {"shortest_edge": 224}, "do_center_crop": False}),
        ("crop_size", {"size": {"height": 256, "width": 300}, "do_center_crop": True}),
        ("resample", {"resample": 4}),
        ("image_processor_type", {"image_processor_type": "Siglip2ImageProcessor"}),
    ],
)
def test_a_processor_that_cannot_be_reproduced_is_refused_by_its_key(key: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"key {key}"):
        said_by({**change, **({"crop_size": 224} if "do_center_crop" in change else {})}, "ViT")


# -------------------- what is refused


def config(**change: Any) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**data, **change}))

    return fill


def preprocessor(**data: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "preprocessor_config.json").write_text(json.dumps(data)) and None


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def other_names(folder: Path) -> None:
    save_file({"a.weight": torch.ones(2)}, folder / "model.safetensors")


def with_nan(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["classifier.bias"][0] = torch.nan
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("fill", "fragments", "kind"),
    [
        (without("config.json"), ["config.json"], ModelError),
        (without("model.safetensors"), ["no such file"], CheckpointError),
        (config(model_type="gpt2"), ["gpt2", *KINDS], ModelError),
        (config(model_type="siglip2"), ["NaFlex", *KINDS], ModelError),
        (config(model_type="swin"), ["windows"], ModelError),
        (config(architectures=["ViTForDepth"]), ["ViTForDepth", "ViTForImageClassification"], ModelError),
        (config(auto_map={"AutoModel": "evil.Model"}), ["auto_map", "never run"], ModelError),
        (preprocessor(auto_map={"AutoImageProcessor": "evil.P"}), ["auto_map", "preprocessor_config"], ModelError),
        (preprocessor(do_pad=True), ["do_pad"], CheckpointError),
        (config(quantization_config={"quant_method": "bitsandbytes"}), ["bitsandbytes"], CheckpointError),
        (config(num_hidden_layers=4), ["missing", "layers.3"], CheckpointError),
        (config(intermediate_size=97), ["mis-shaped", "mlp.fc1"], CheckpointError),
        (config(hidden_size=60000, num_attention_heads=3), ["describes"], CheckpointError),
        (config(hidden_size="wide"), ["hidden_size"], CheckpointError),
        (config(num_hidden_layers=10**6), ["num_hidden_layers"], CheckpointError),
        (other_names, ["do not fit"], CheckpointError),
        (with_nan, ["NaN"], CheckpointError),
    ],
)
def test_what_a_folder_must_not_be(
    tmp_path: Path, fill: Callable[[Path], None], fragments: list[str], kind: type[ZtdeployError]
) -> None:
    folder, _ = folder_of(tmp_path, "ViTForImageClassification")
    fill(folder)
    refused(lambda: loaded(f"hf:{folder}"), *fragments, kind=kind)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    families.library_model("hf/ViTModel").save_pretrained(tmp_path, max_shard_size="50KB")
    (tmp_path / "model-00002-of-00004.safetensors").unlink(missing_ok=True)
    gone = next(iter(sorted(tmp_path.glob("model-*.safetensors"))))
    gone.unlink()
    refused(lambda: loaded(f"hf:{tmp_path}"), gone.name, kind=CheckpointError)


def test_settings_that_would_fetch_or_replace_something_are_ignored(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, "ViTModel")
    config(attn_implementation="kernels-community/evil", _attn_implementation="evil", fusion_config={"x": True})(folder)
    assert loaded(f"hf:{folder}").adapter.family == "transformers"


def test_a_tower_without_a_head_gives_features_alone(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, "SiglipVisionModel", vision_use_head=False)
    refused(lambda: loaded(f"hf:{folder}"), "--output features", kind=ModelError)
    assert loaded(f"hf:{folder}", output="features").output == "features"
