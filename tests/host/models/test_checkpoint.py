"""Weights from anywhere: no code is run, whatever does not fit is listed, and nothing is loaded halfway."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import socket
from collections import Counter, defaultdict, deque
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.errors import refused as refused_as
from helpers.models import loaded, tiny_vit
from safetensors.torch import load_file, save_file
from torch import nn

import ztdeploy.host.models.making
import ztdeploy.host.models.sources
from ztdeploy.core.errors import CheckpointError, ModelError, WeightsUnavailableError
from ztdeploy.core.preprocess_spec import PreprocessOptions
from ztdeploy.host.models.catalogue import ASSETS, CATALOGUE
from ztdeploy.host.models.checkpoint import load_strictly, parameters_sha256, read_checkpoint

SHIPPED = ASSETS / "digits" / "model.safetensors"
STATE = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}


class RunsCode:
    """What a malicious pickle holds: a command that runs while it is read."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


refused = partial(refused_as, kind=CheckpointError)


def saved(path, data=STATE):
    save_file(data, path) if path.suffix == ".safetensors" else torch.save(data, path)
    return path


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


# -------------------- reading


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".tar", ".PTH", ".pkl", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_tensors_become_fp32(tmp_path, suffix, dtype):
    state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    read = read_checkpoint(saved(tmp_path / f"c{suffix}", state))
    assert all(tensor.dtype == torch.float32 for tensor in read.values())
    assert same(read, STATE)


def test_integers_stay_integers(tmp_path):
    state = {"steps": torch.tensor([3]), "mask": torch.tensor([True])}
    assert same(read_checkpoint(saved(tmp_path / "c.safetensors", state)), state)


@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_parameters_are_found_where_training_scripts_nest_them(tmp_path, key):
    path = saved(tmp_path / "c.pth", {key: STATE, "epoch": 7, "optimizer": {"lr": 0.1}})
    assert same(read_checkpoint(path), STATE)


def test_the_old_format_of_torch_is_read(tmp_path):
    torch.save(STATE, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "c.pth"), STATE)


class Settings:
    """What a script of somebody else's keeps beside weights: a class that is known to nobody here."""

    def __init__(self):
        self.folder, self.rate = Path("out"), 0.1


BESIDE = {
    "numbers": 3,
    "numpy": np.float64(91.2),
    "array": np.arange(5),
    "namespace": argparse.Namespace(out=Path("o"), rate=0.1),
    "path": Path("a/b"),
    "class": Settings(),
    "set": {1, 2},
    "date": datetime(2024, 1, 1),
    "decimal": Decimal("1.5"),
    "callbacks": {Settings: {"best": Path("a")}, 5: (1, 2), None: complex(1, 2)},
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    "deque": deque([1, 2]),
    "counter": Counter("abc"),
    "defaults": defaultdict(list, a=[1]),
    "type": torch.float16,
    "size": torch.Size([1, 2]),
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4"])
def test_whatever_else_a_trainer_saves_is_skipped(tmp_path, beside, form):
    options = {"pickle_protocol": 4} if form == "protocol 4" else {"_use_new_zipfile_serialization": form == "zip"}
    for data in ({"state_dict": STATE, beside: BESIDE[beside]}, {beside: BESIDE[beside], **STATE}):
        torch.save(data, tmp_path / "c.ckpt", **options)
        assert same(read_checkpoint(tmp_path / "c.ckpt"), STATE)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0).reshape(4, 6)[1:3, ::2],
        torch.tensor(3.0),
        torch.ones(0, 5),
        torch.ones(1).expand(4, 5),
        nn.Parameter(torch.ones(2, 2)),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.tensor([1, 2], dtype=torch.uint16),
        torch.tensor([True, False]),
    ],
    ids=str,
)
def test_tensors_are_read_however_they_lie_in_memory(tmp_path, tensor, form):
    torch.save({"w": tensor}, tmp_path / "c.pth", _use_new_zipfile_serialization=form == "zip")
    read = read_checkpoint(tmp_path / "c.pth")["w"]
    assert torch.equal(read, tensor.detach().float() if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize(
    "inside", [lambda evil: evil, lambda evil: {"w": torch.ones(2), "x": evil}], ids=["bare", "in"]
)
@pytest.mark.parametrize("form", ["zip", "legacy", "plain-pickle"])
def test_nothing_in_a_malicious_pickle_runs(tmp_path, inside, form):
    proof, path = tmp_path / "proof", tmp_path / "evil.pth"
    data = inside(RunsCode(proof))
    if form == "plain-pickle":
        path.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=form == "zip")
    refused(lambda: read_checkpoint(path), "evil.pth", "nothing in it was run")
    assert not proof.exists()


def test_the_malicious_pickle_would_run_elsewhere(tmp_path):
    """The proof of the test above: the same bytes do run where they are trusted."""
    pickle.loads(pickle.dumps(RunsCode(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    refused(lambda: read_checkpoint(tmp_path / "model.pth"), "nothing in it was run", "state_dict")


@pytest.mark.parametrize("data", [[torch.ones(2)], {}, {"w": 1.0}, torch.ones(2), 3, {"model": {}}])
def test_what_is_not_a_table_of_tensors_is_refused(tmp_path, data):
    refused(lambda: read_checkpoint(saved(tmp_path / "c.pth", data)), "c.pth", "state_dict")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize(
    "content",
    [b"", b"hello world, this is text\n" * 50, bytes(100), b"PK\x03\x04" + bytes(50), b"\x80\x02."],
    ids=["empty", "text", "zeros", "cut-zip", "empty-pickle"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    refused(lambda: read_checkpoint(path), f"c{suffix}")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 22882784\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>Not found</html>", "a page of the web"),
        (b"\x1f\x8b\x08\x00packed", "gzip"),
        (b'{"weight_map": {}}', "JSON"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"", "empty"),
    ],
)
def test_what_lies_in_place_of_weights_is_said(tmp_path, suffix, content, fragment):
    """Such as what a clone without Git LFS leaves."""
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    message = refused(lambda: read_checkpoint(path), "cannot be read", fragment)
    assert "more than tensors" not in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = saved(tmp_path / f"c{suffix}", {"w": torch.randn(64, 64)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(lambda: read_checkpoint(path), "cannot be read", "again")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refused(lambda: read_checkpoint(tmp_path / "none.pth"), "none.pth", "not a file", "check the path")
    (tmp_path / "folder.pth").mkdir()
    refused(lambda: read_checkpoint(tmp_path / "folder.pth"), "not a file")


@pytest.mark.parametrize("name", ["c.onnx", "c.h5", "c.npz", "c"])
def test_another_format_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    refused(lambda: read_checkpoint(tmp_path / name), name, "safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_tensor_with_nan_or_infinity_is_named(tmp_path, suffix, value, dtype):
    broken = torch.ones(3, 3, dtype=dtype)
    broken[1, 2] = value
    path = saved(tmp_path / f"c{suffix}", {"fine": torch.ones(2), "blocks.3.weight": broken})
    refused(lambda: read_checkpoint(path), "'blocks.3.weight'", "NaN or infinity")


def test_values_beyond_fp32_are_infinity(tmp_path):
    path = saved(tmp_path / "c.pth", {"w": torch.tensor([1e300], dtype=torch.float64)})
    refused(lambda: read_checkpoint(path), "'w'", "NaN or infinity")


@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_tensors_without_plain_values_are_refused(tmp_path, kind):
    tensor = torch.empty(3, device="meta") if kind == "meta" else torch.eye(3).to_sparse()
    refused(lambda: read_checkpoint(saved(tmp_path / "c.pth", {"w": tensor})), "'w'")


# -------------------- fitting


def test_a_state_that_fits_is_loaded():
    model, other = tiny_vit(0), tiny_vit(1)
    load_strictly(model, other.state_dict(), Path("c.pth"))
    assert same(model.state_dict(), other.state_dict())


def misfit(change):
    state = tiny_vit(1).state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (lambda s: s.pop("norm.weight"), ["1 missing: norm.weight"]),
        (lambda s: s.update(extra=torch.ones(1)), ["1 unexpected: extra"]),
        (lambda s: s.update({"head.bias": torch.ones(9)}), ["1 mis-shaped: head.bias [9] instead of [7]"]),
        (lambda s: s.update({"head.bias": torch.ones(1, 7)}), ["1 mis-shaped: head.bias [1, 7] instead of [7]"]),
        (
            lambda s: (s.pop("norm.bias"), s.update(a=torch.ones(1), b=torch.ones(1))),
            ["1 missing: norm.bias", "2 unexpected: a, b"],
        ),
        (lambda s: [s.pop(name) for name in list(s)[:20]], ["20 missing", "and 15 more"]),
        (lambda s: s.clear(), ["missing", "cls_token"]),
    ],
    ids=["missing", "unexpected", "shape", "rank", "both", "many", "all"],
)
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(change, fragments):
    model = tiny_vit(0)
    before = parameters_sha256(model)
    refused(lambda: load_strictly(model, misfit(change), Path("c.pth")), "c.pth", "--model", *fragments)
    assert parameters_sha256(model) == before


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_quantised_weights_are_not_taken_for_floats(dtype):
    state = tiny_vit(1).state_dict()
    state["head.weight"] = torch.ones_like(state["head.weight"]).to(dtype)
    refused(lambda: load_strictly(tiny_vit(0), state, Path("c.pth")), "head.weight")


def test_the_digest_tells_values_shapes_and_names_apart():
    base = tiny_vit(0)
    digests = {parameters_sha256(base)}
    changed = tiny_vit(0)
    with torch.no_grad():
        changed.head.bias[3] += 1e-7
    for model in (changed, tiny_vit(1), tiny_vit(0, depth=3), tiny_vit(0, reg_tokens=1)):
        digests.add(parameters_sha256(model))
    assert len(digests) == 5
    assert parameters_sha256(tiny_vit(0)) == parameters_sha256(base)


# -------------------- load_model


def test_the_shipped_model_comes_with_everything():
    model = loaded("vit_digits")
    assert (model.weights_source, model.weights_origin) == ("shipped", "model.safetensors")
    assert model.class_names == tuple("0123456789")
    assert model.preprocess.image_size == (32, 32)
    assert model.adapter.architecture.depth == 12
    assert not model.adapter.model.training


def test_a_checkpoint_takes_the_place_of_the_shipped_weights(tmp_path):
    state = load_file(SHIPPED)
    shutil.copy(SHIPPED, tmp_path / "mine.safetensors")
    mine, shipped = loaded("vit_digits", checkpoint=tmp_path / "mine.safetensors"), loaded("vit_digits")
    assert (mine.weights_source, mine.weights_origin) == ("checkpoint", "mine.safetensors")
    assert mine.weights_sha256 == shipped.weights_sha256
    state["head.bias"][0] += 1
    changed = loaded("vit_digits", checkpoint=saved(tmp_path / "changed.safetensors", state))
    assert changed.weights_sha256 != shipped.weights_sha256


def test_random_weights_are_the_same_every_time():
    torch.manual_seed(1)
    one = loaded("deit_t", weights="random")
    torch.manual_seed(2)
    two = loaded("deit_t", weights="random")
    assert one.weights_sha256 == two.weights_sha256
    assert (one.weights_source, one.weights_origin) == ("random", "seed 0")
    assert len(one.class_names) == 1000


def test_a_siblings_checkpoint_is_refused_with_what_differs():
    refused(lambda: loaded("deit_t", checkpoint=SHIPPED), "model.safetensors", "mis-shaped", "--model")


def test_an_unusable_checkpoint_is_found_before_the_model_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(ztdeploy.host.models.making, "make", lambda *_, **__: pytest.fail("the model was made"))
    refused(lambda: loaded("deit_b", checkpoint=tmp_path / "none.pth"), "none.pth")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("deit_x", "deit_"), ("vit_digitz", "vit_digits"), ("deit_tiny_patch16_244", "deit_tiny_patch16_224")],
)
def test_an_unknown_model_names_the_nearest(name, nearest):
    refused(lambda: loaded(name, weights="random"), f"'{name}'", f"did you mean '{nearest}", kind=ModelError)


@pytest.mark.parametrize("name", ["", "???", "../../etc/passwd", "resnet-of-mine"])
def test_a_model_like_no_other_is_refused_in_one_line(name):
    message = refused(lambda: loaded(name, weights="random"), f"'{name}'", kind=ModelError)
    assert len(message) < 1000


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_an_unknown_tag_of_a_known_model_is_the_models_error(weights, no_hub):
    refused(lambda: loaded("vit_tiny_patch16_224.nonsense", weights=weights), "nonsense", kind=ModelError)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_a_family_that_cannot_be_pruned_is_refused(name):
    refused(lambda: loaded(name, weights="random"), "cannot be pruned", "vit", kind=ModelError)


@pytest.mark.parametrize("size", [100, 225, 8, 4112])
def test_an_image_size_that_the_model_cannot_take_is_refused(size):
    refused(lambda: loaded("deit_t", weights="random", image_size=size), str(size), kind=ModelError)


def test_an_image_size_that_patches_divide_is_taken():
    model = loaded("deit_t", weights="random", image_size=96)
    assert model.preprocess.image_size == (96, 96)
    assert model.adapter.architecture.patch_tokens == 36


def test_the_shipped_model_has_one_image_size():
    refused(lambda: loaded("vit_digits", image_size=64), "64", "32", kind=ModelError)


@pytest.mark.parametrize("crop_pct", [0.0, 1e-9, -1.0, float("nan")])
def test_an_impossible_crop_is_refused(crop_pct):
    refused(lambda: loaded("vit_digits", preprocess=PreprocessOptions(crop_pct=crop_pct)), "crop", kind=ModelError)


def test_every_short_name_is_a_model_that_timm_knows():
    import timm

    by_timm = [entry for entry in CATALOGUE.values() if entry.in_timm]
    assert all(timm.is_model(entry.timm_name) for entry in by_timm)


def test_nan_in_downloaded_weights_is_named(monkeypatch):
    def damaged(timm_name, arguments):
        model = timm.create_model(timm_name, **arguments)
        model.blocks[1].attn.proj.bias.data[3] = float("nan")
        return model

    monkeypatch.setattr(ztdeploy.host.models.making, "_download", damaged)
    refused(lambda: loaded("deit_t"), "'blocks.1.attn.proj.bias'", "deit_tiny_patch16_224", "NaN or infinity")


# -------------------- without a hub


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """Nothing cached, no hub, and any attempt to reach one is recorded."""
    from huggingface_hub import constants

    attempts = []

    def refuse(host, *arguments, **options):
        attempts.append(host)
        raise socket.gaierror("no network in this test")

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)  # put back what a download changes
    monkeypatch.setattr(ztdeploy.host.models.sources, "reachable", lambda *_, **__: False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


@pytest.mark.parametrize("name", ["deit_s", "vit_t", "vit_small_patch16_224"])
def test_pretrained_weights_that_cannot_be_had_say_what_to_do(name, no_hub):
    timm_name = CATALOGUE[name].timm_name if name in CATALOGUE else name
    message = refused(lambda: loaded(name), timm_name, kind=WeightsUnavailableError)
    assert "--checkpoint" in message
    assert "--weights random" in message
    assert no_hub == []  # no retries against a hub that is known to be away


def test_an_absent_hub_leaves_the_process_as_it_was(no_hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    refused(lambda: loaded("deit_s"), kind=WeightsUnavailableError)
    assert not constants.HF_HUB_OFFLINE


def test_without_a_hub_random_weights_and_checkpoints_still_work(no_hub, tmp_path):
    random = loaded("deit_t", weights="random")
    path = saved(tmp_path / "c.safetensors", random.adapter.model.state_dict())
    assert loaded("deit_t", checkpoint=path).weights_sha256 == random.weights_sha256
    assert no_hub == []


@pytest.mark.parametrize(
    ("proxy", "asked"), [(None, ("huggingface.co", 443)), ("http://proxy.example:3128", ("proxy.example", 3128))]
)
def test_the_hub_is_asked_where_it_is_reached(monkeypatch, proxy, asked):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    seen = []

    def connect(address, timeout):
        seen.append(address)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", connect)
    assert not ztdeploy.host.models.sources.reachable()
    assert seen == [asked]
