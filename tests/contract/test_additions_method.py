"""A pruning method is one file and one line: here one is added, and the shipped model built, proved and run with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from helpers.errors import refused
from helpers.processes import run_ztdeploy

import ztdeploy
from ztdeploy.core.errors import ScheduleError
from ztdeploy.core.methods import METHODS, Method
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.tables import with_entry_points
from ztdeploy.host.pruning.trained import readers_of
from ztdeploy.jobs.build import BuildRequest, build

#: The file: a method that keeps the last tokens.
LAYER = """
import torch
from torch import Tensor

from ztdeploy.host.pruning.layer import BlockTaps, DroppingLayer, Recorder


class KeepLast(DroppingLayer):
    def decide(self, x: Tensor, taps: BlockTaps, record: Recorder | None = None) -> Tensor:
        prefix, tokens = self.plan.prefix_tokens, self.plan.tokens_in
        last = torch.arange(tokens - self.plan.tokens_out + prefix, tokens)
        return torch.cat([torch.arange(prefix), last]).expand(x.shape[0], -1)
"""
#: What an installed package has besides: the line, in a module that the target half can import.
TABLE = 'from ztdeploy.core.methods import Method\n\nKEEP_LAST = Method("keep_last_layer:KeepLast")\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Python finds the file of the method."""
    path = tmp_path / "site"
    path.mkdir()
    (path / "keep_last_layer.py").write_text(LAYER)
    monkeypatch.syspath_prepend(path)
    return path


def install(folder: Path, reference: str) -> None:
    """What a package manager would leave there."""
    (folder / "keep_last.py").write_text(TABLE)
    info = folder / "keep_last-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: keep-last\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ztdeploy.methods]\nkeep-last = {reference}\n")


def test_one_file_and_one_line_add_a_method(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS.own, "keep-last", Method("keep_last_layer:KeepLast"))
    request = BuildRequest(
        model=ModelSource(name="vit_digits"),
        profiles=("cpu",),
        keep_ratios=(0.7,),
        methods=("keep-last",),
        out=tmp_path / "bundle",
    )
    bundle = build(request)
    variant = bundle.variant(keep_ratio=0.7)
    assert variant.schedule.method == "keep-last"
    parity = variant.engines["cpu"].parity
    assert parity is not None
    assert parity.images > 0
    with ztdeploy.load(bundle, keep_ratio=0.7) as runner:
        outputs = runner.infer(np.zeros((1, *bundle.manifest.preprocess.shape), np.uint8))
    for kept, layer in zip(outputs.kept, variant.plan.layers, strict=True):
        left = layer.tokens_out - layer.prefix_tokens
        last = range(layer.tokens_in - left, layer.tokens_in)
        assert kept[0].tolist() == [*range(layer.prefix_tokens), *last]


def test_an_installed_package_adds_one_with_an_entry_point(folder: Path, tmp_path: Path) -> None:
    install(folder, "keep_last:KEEP_LAST")
    found = f"import sys; sys.path.insert(0, {str(folder)!r})"
    built = run_ztdeploy(
        *("build", "-m", "vit_digits", "-p", "cpu", "--method", "keep-last", "-k", "0.7", "-o", "bundle"),
        cwd=tmp_path,
        first=found,
    )
    assert built.code == 0, built.err
    for verb in ("verify", "inspect"):
        done = run_ztdeploy(verb, "bundle", cwd=tmp_path, first=found)
        assert done.code == 0, done.err


@pytest.mark.parametrize("reference", ["keep_last_layer:KeepLast", "keep_last:NO_SUCH", "no_such_module:METHOD"])
def test_a_package_whose_entry_point_is_no_method_is_named_and_harms_no_other(
    folder: Path, reference: str, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(forget_entry_points)
    install(folder, reference)
    forget_entry_points()
    refused(lambda: METHODS["keep-last"], "'keep-last'", reference, "uninstall", kind=ScheduleError)
    assert "keep-last" in list(METHODS)
    assert METHODS["slice"].layer.endswith("SliceFirst")
    assert readers_of("score_predictor.0.in_conv.0.weight")[:1] == ["dynamicvit"], "checkpoints are read all the same"


def test_the_name_of_a_method_of_ours_is_not_replaced(folder: Path, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(forget_entry_points)
    install(folder, "keep_last:KEEP_LAST")
    points = folder / "keep_last-1.0.dist-info" / "entry_points.txt"
    points.write_text("[ztdeploy.methods]\nslice = keep_last:KEEP_LAST\n")
    forget_entry_points()
    assert METHODS["slice"].layer.endswith("SliceFirst")
    assert list(METHODS).count("slice") == 1


def forget_entry_points() -> None:
    """Which packages are installed is found out once per process."""
    with_entry_points.__globals__["_entry_points"].cache_clear()
