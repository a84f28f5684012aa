"""A model that was trained further while it was pruned, and what `build` and `eval` make of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.processes import run_ztdeploy
from safetensors.torch import save_file

import ztdeploy
from ztdeploy.core.model_source import ModelSource
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.host.models.loading import load_model
from ztdeploy.target.runtime.preprocess import load_pixels, normalise


@pytest.mark.long
def test_what_training_wins_is_in_the_engine(digit_images: list[Path], tmp_path: Path) -> None:
    """A few steps on real digits; accuracy on others is what `scripts/finetune_digits.py` measures."""
    loaded = load_model(ModelSource(name="vit_digits"))
    x = torch.from_numpy(normalise(load_pixels(list(digit_images), loaded.preprocess), loaded.preprocess))
    labels = torch.tensor([int(path.stem.rpartition("_")[2]) for path in digit_images])
    with ztdeploy.prune(loaded.adapter, 0.1, method="zero-tprune") as pruned:
        optimizer = torch.optim.AdamW(pruned.parameters(), lr=3e-4)
        with torch.no_grad():
            before = F.cross_entropy(pruned(x), labels)
        for start in range(0, 256, 32):
            optimizer.zero_grad()
            F.cross_entropy(pruned(x[start : start + 32]), labels[start : start + 32]).backward()
            optimizer.step()
        with torch.no_grad():
            logits = pruned(x)
        save_file(pruned.state_dict(), tmp_path / "tuned.safetensors")
    assert F.cross_entropy(logits, labels) < 0.9 * before
    words = ("-m", "vit_digits", "-p", "cpu", "--method", "zero-tprune", "-k", "0.1")
    built = run_ztdeploy("build", *words, "--checkpoint", "tuned.safetensors", "--out", "bundle", cwd=tmp_path)
    assert built.code == 0, built
    report = ztdeploy.evaluate(tmp_path / "bundle", ASSETS / "digits", cache=tmp_path / "cache")
    engine = next(one for one in report.variants if one.against_dense is not None)
    assert engine.top1 is not None
    assert engine.top1.count == int((logits.argmax(1) == labels).sum())
