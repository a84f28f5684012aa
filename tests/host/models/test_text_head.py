"""Heads of text embeddings: what is read, what is refused, and what a bundle with one answers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.errors import refused
from helpers.models import loaded
from safetensors.numpy import save_file

from ztdeploy.cli.app import run
from ztdeploy.core.errors import CheckpointError, ModelError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.model_source import ModelSource
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.models.text_head import read_text_embeddings
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.verify import verify_bundle


def drawn(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def file_of(folder: Path, **tensors: Any) -> Path:
    save_file(tensors, folder / "texts.safetensors")
    return folder / "texts.safetensors"


def test_what_both_libraries_write_is_read(tmp_path: Path) -> None:
    matrix, scale, bias = drawn(3, 10), np.float32(math.log(50)), np.float32(-12.9)
    path = file_of(tmp_path, text_embeds=matrix, logit_scale=np.array(scale), logit_bias=np.array([bias]))
    found = read_text_embeddings(path)
    np.testing.assert_allclose(found.matrix.numpy(), matrix / np.linalg.norm(matrix, axis=1)[:, None], atol=1e-6)
    assert (found.scale, found.bias) == pytest.approx((50, -12.9), rel=1e-5)
    assert found.record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    plain = read_text_embeddings(file_of(tmp_path, text_features=matrix.astype(np.float16)))
    assert (plain.scale, plain.bias) == (100, 0)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": drawn(3, 10)}, ["holds 'weight'", "text_embeddings"]),
        ({"text_embeds": drawn(3, 10), "text_features": drawn(3, 10)}, ["'text_embeds', 'text_features'"]),
        ({"text_embeds": drawn(3, 10), "visual.proj": drawn(2)}, ["'visual.proj'"]),
        ({"text_embeds": drawn(10)}, ["float32 [10]", "[classes, D]"]),
        ({"text_embeds": drawn(0, 10)}, ["[0, 10]"]),
        ({"text_embeds": np.ones((3, 10), np.int32)}, ["int32 [3, 10]", "floating point"]),
        ({"text_embeds": np.stack([drawn(10), 0 * drawn(10)])}, ["zeros alone in row 1"]),
        ({"text_embeds": np.full((3, 10), np.nan, np.float32)}, ["NaN"]),
        ({"text_embeds": drawn(3, 10), "logit_scale": np.float32([100])}, ["logit_scale 100", "logarithm"]),
        ({"text_embeds": drawn(3, 10), "logit_scale": drawn(3)}, ["logit_scale of float32 [3]"]),
    ],
)
def test_refusals(tensors: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    path = file_of(tmp_path, **{name: np.asarray(value) for name, value in tensors.items()})
    refused(lambda: read_text_embeddings(path), *words, kind=CheckpointError)


def test_what_is_no_such_file_or_no_such_model(tmp_path: Path) -> None:
    (tmp_path / "texts.safetensors").write_bytes(b"\xff" * 40)
    refused(lambda: read_text_embeddings(tmp_path / "texts.safetensors"), "cannot be read", kind=CheckpointError)
    refused(lambda: read_text_embeddings(tmp_path / "texts.pth"), "'.pth'", ".safetensors", kind=CheckpointError)
    refused(lambda: read_text_embeddings(tmp_path / "no.safetensors"), "is not a file", kind=CheckpointError)
    path = file_of(tmp_path, text_embeds=drawn(3, 12))
    refused(lambda: loaded("vit_digits", text_head=path), "dimension 12", "10, as the model", kind=CheckpointError)
    for name in ("deit_tiny_distilled_patch16_224", "lvvit_t"):
        refused(lambda: loaded(name, weights="random", text_head=path), "text head", kind=ModelError)  # noqa: B023


def test_a_bundle_answers_with_scaled_cosines(digits_bundle: Path, tmp_path: Path) -> None:
    """Against what another bundle, without the head, gives; the tower's head of 10 stands for a projection."""
    matrix = drawn(4, 10)
    path = file_of(tmp_path, text_features=matrix, logit_scale=np.float32([math.log(20)]), logit_bias=np.float32([-3]))
    (tmp_path / "names.txt").write_text("a cat\na dog\na house\na tree\n")
    request = BuildRequest(
        model=ModelSource(name="vit_digits", text_head=path, class_names=tmp_path / "names.txt"),
        profiles=("cpu",),
        keep_ratios=(0.7,),
        methods=("zero-tprune",),  # as in the other bundle
        out=tmp_path / "bundle",
    )
    bundle = build(request)  # which proves the engines against PyTorch
    verify_bundle(bundle.root, None, lambda *_: None)
    manifest = bundle.manifest
    assert manifest.text_head is not None
    assert (manifest.text_head.classes, manifest.text_head.dimension) == (4, 10)
    assert manifest.text_head.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (manifest.model.gives, manifest.model.architecture.num_classes) == ("logits", 4)
    pixels = np.load(bundle.path(manifest.golden.pixels))
    for ratio in (1.0, 0.7):
        with load(digits_bundle, keep_ratio=ratio) as runner:
            embedding = runner.infer(pixels).logits
        with load(bundle, keep_ratio=ratio) as runner:
            found = runner.infer(pixels).logits
            assert runner(bundle.path(manifest.golden.images[0]))[0].labels[0].name in (
                "a cat",
                "a dog",
                "a house",
                "a tree",
            )
        cosines = embedding @ matrix.T
        cosines = cosines / np.linalg.norm(embedding, axis=1)[:, None] / np.linalg.norm(matrix, axis=1)
        np.testing.assert_allclose(found, 20 * cosines - 3, rtol=1e-4, atol=1e-4)


def test_it_stays_in_fp32_where_blocks_do_not(tmp_path: Path) -> None:
    """The squares of an embedding's numbers overflow fp16; Turing has no fp32 product, and gets one of unit lengths."""
    model = loaded("vit_digits", text_head=file_of(tmp_path, text_features=drawn(4, 10)))
    dense = default_schedule(1.0, model.adapter.architecture)
    spec = GraphSpec(20, "float32", 1)
    with PrunedModel(model.adapter, dense) as pruned:
        trace = export_onnx(pruned, model.preprocess, spec)

    def types(turing: bool) -> dict[str, set[ir.DataType | None]]:
        graph = specialise(trace, replace(spec, precision="fp16", turing=turing)).graph
        found: dict[str, set[ir.DataType | None]] = {}
        for node in graph:
            if "/text_head/" in (node.name or "") and node.op_type != "Cast":
                found.setdefault(node.op_type, set()).add(node.outputs[0].dtype)
        return found

    plain = types(turing=False)
    assert "MatMul" in plain
    assert set().union(*plain.values()) == {ir.DataType.FLOAT}
    turing = types(turing=True)
    assert "MatMul" not in turing, "a row by a matrix is a weighted sum there"
    assert turing["Sqrt"] == {ir.DataType.FLOAT}


def test_it_makes_logits_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(tmp_path, text_features=drawn(3, 12))
    arguments = ["build", "-m", "vit_digits", "-p", "cpu", "-o", str(tmp_path / "out"), "--text-head", str(path)]
    assert run([*arguments, "--output", "embedding"]) == 2
    assert run(arguments) != 0
    assert "dimension 12" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
