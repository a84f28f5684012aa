"""Which variants are shipped, and what is left of those that are not."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.errors import refused

from ztdeploy.cli.app import run
from ztdeploy.core.bundle import read_bundle
from ztdeploy.core.errors import ImageError, InputError
from ztdeploy.core.manifest import GateLimits, GateRow
from ztdeploy.core.profile import read_profile
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.jobs.calibration import check_gate
from ztdeploy.jobs.request import Gate
from ztdeploy.target.evaluate.judgement import _missed, advice
from ztdeploy.target.verify import verify_bundle

DIGITS = ASSETS / "digits"
LIMITS = GateLimits(max_drop=1.0, min_agreement=0.9, max_kl=0.1)
OF_VECTORS = GateLimits(min_cosine=0.9)


def row(
    ratio: float, *, drop: float | None = 0.0, agreement: float = 1.0, kl: float = 0.0, method: str = "m"
) -> GateRow:
    found = GateRow(
        variant=f"keep-{ratio}", keep_ratio=ratio, method=method, drop=drop, agreement=agreement, kl=kl, failed=()
    )
    return found.model_copy(update={"failed": tuple(_missed(found, LIMITS))})


def test_each_limit_says_by_how_much_it_was_missed() -> None:
    assert row(0.5, drop=1.0, agreement=0.9, kl=0.1).failed == ()
    assert row(0.5, drop=None).failed == ()
    assert row(0.5, drop=1.75).failed == ("top-1 falls by 1.75 points, 0.75 more than allowed",)
    assert row(0.5, agreement=0.87).failed == ("agreement is 0.8700, 0.0300 less than asked for",)
    assert row(0.5, kl=0.35).failed == ("mean KL is 0.3500, 0.2500 more than allowed",)
    assert len(row(0.5, drop=9, agreement=0.1, kl=2).failed) == 3


def test_advice_names_what_passes_and_estimates_between() -> None:
    """Between 0.5 (3 points) and 0.7 (0.5 points), 1 point is at 0.66; the KL of 0.2 to 0.05 is at 0.6333."""
    rows = [row(0.9), row(0.7, drop=0.5, kl=0.05), row(0.5, drop=3.0, kl=0.2), row(0.3, drop=20.0)]
    assert advice(rows, LIMITS) == [
        "m: keep ratio 0.7 passes",
        "m: about 0.66 might pass (an estimate by interpolation, not measured)",
    ]


def test_advice_goes_up_to_dense_and_keeps_methods_apart() -> None:
    rows = [row(0.6, drop=2.0), row(0.8, method="other", kl=0.2), row(0.7, method="third")]
    assert advice(rows, LIMITS) == [
        "m: about 0.80 might pass (an estimate by interpolation, not measured)",
        "other: about 0.90 might pass (an estimate by interpolation, not measured)",
    ]


def vectors(ratio: float, cosine: float) -> GateRow:
    found = GateRow(
        variant=f"keep-{ratio}",
        keep_ratio=ratio,
        method="m",
        drop=None,
        agreement=None,
        kl=None,
        cosine=cosine,
        failed=(),
    )
    return found.model_copy(update={"failed": tuple(_missed(found, OF_VECTORS))})


def test_vectors_are_judged_by_their_cosine() -> None:
    """Between 0.5 (0.80) and 0.7 (0.95), a cosine of 0.9 is at 0.6333."""
    assert vectors(0.7, 0.9).failed == ()
    assert vectors(0.5, 0.85).failed == ("mean cosine is 0.8500, 0.0500 less than asked for",)
    assert advice([vectors(0.7, 0.95), vectors(0.5, 0.8)], OF_VECTORS) == [
        "m: keep ratio 0.7 passes",
        "m: about 0.64 might pass (an estimate by interpolation, not measured)",
    ]
    assert advice([vectors(0.5, 0.8)], OF_VECTORS) == [
        "m: about 0.75 might pass (an estimate by interpolation, not measured)"
    ]


def test_nothing_is_made_up() -> None:
    """No ratio between 0.99 and 1 can be named; a schedule of its own has no ratio."""
    assert advice([row(0.99, drop=2.0)], LIMITS) == []
    own = row(0.5, drop=2.0).model_copy(update={"keep_ratio": None})
    assert advice([own], LIMITS) == []
    assert advice([row(0.5)], LIMITS) == []


def model_that_gives(output: str, classes: int) -> Any:
    """What is looked at of a loaded model."""
    adapter = SimpleNamespace(architecture=SimpleNamespace(num_classes=classes))
    facts = {"class_names": None, "preprocess": SimpleNamespace(channels=3), "activation": "softmax"}
    return SimpleNamespace(adapter=adapter, output=output, **facts)


def test_what_cannot_be_judged_is_refused_early(tmp_path: Path) -> None:
    cpu, logits, embedding = [read_profile("cpu")], model_that_gives("logits", 10), model_that_gives("embedding", 0)
    flat = Gate(DIGITS / "images", LIMITS)
    refused(lambda: check_gate(flat, cpu, logits), "--max-drop", "no labels", kind=InputError)
    refused(lambda: check_gate(Gate(tmp_path, LIMITS), cpu, logits), "no images", kind=ImageError)
    refused(lambda: check_gate(flat, cpu, embedding), "--max-drop 1", "--min-cosine", kind=InputError)
    of_vectors = Gate(DIGITS / "images", GateLimits(min_cosine=0.9))
    refused(lambda: check_gate(of_vectors, cpu, logits), "--min-cosine 0.9", "gives logits", kind=InputError)
    assert not check_gate(of_vectors, cpu, model_that_gives("features", 0)).labelled
    of_maps = Gate(DIGITS, GateLimits(max_error=0.1, min_iou=0.9))
    check_gate(of_maps, cpu, model_that_gives("maps", 0))
    refused(lambda: check_gate(of_maps, cpu, logits), "--max-error 0.1", "gives logits", kind=InputError)
    values = model_that_gives("maps", 0)
    values.activation = "none"
    refused(lambda: check_gate(of_maps, cpu, values), "--min-iou 0.9", "use --max-error", kind=InputError)
    refused(lambda: check_gate(of_vectors, cpu, values), "--max-error, --min-iou", kind=InputError)
    of_drop = Gate(DIGITS, GateLimits(max_drop=1.0))
    refused(lambda: check_gate(of_drop, cpu, model_that_gives("logits", 1)), "one output", kind=InputError)


def command(out: Path, *arguments: str) -> int:
    return run(["build", "-m", "vit_digits", "-p", "cpu", "-o", str(out), "--calib", str(DIGITS), *arguments])


def test_a_variant_that_costs_too_much_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    assert command(out, "--method", "zero-tprune", "-k", "0.3,0.7", "--max-kl", "0.03") == 0
    said = capsys.readouterr()
    assert re.search(
        r"warning: 'zero-tprune-keep-0.30' is not in the bundle: on 360 images of 'digits' \(cpu\), mean KL is",
        said.err,
    )
    assert "keep ratio 0.7 passes" in said.err
    verify_bundle(out, None, lambda *_: None)
    manifest = read_bundle(out).manifest
    assert [variant.name for variant in manifest.variants] == ["zero-tprune-keep-0.70", "dense"]
    assert manifest.default_variant == "zero-tprune-keep-0.70"
    (gate,) = manifest.gates
    assert {one.variant: bool(one.failed) for one in gate.rows} == {
        "zero-tprune-keep-0.30": True,
        "zero-tprune-keep-0.70": False,
    }
    assert (gate.images, gate.limits.max_kl, len(gate.data_sha256)) == (360, 0.03, 64)
    assert all(read_bundle(out).fidelity(variant, "cpu") is not None for variant in manifest.variants)
    assert not [path for path in out.rglob("*") if "zero-tprune-keep-0.30" in path.name]
    assert "zero-tprune-keep-0.30" not in (out / "README.md").read_text()
    on_disk = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert on_disk == {*manifest.files, "manifest.json"}


def test_where_none_passes_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path / "bundle", "--method", "zero-tprune", "-k", "0.3", "--max-drop", "0.1", "--json") == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"error: no pruned variant passes .*keep-0\.30: top-1 falls by .*; expected .*; prune less.*", line
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-drop", "0.5"), "--max-drop 0.5 without --calib"),
        (("--calib", "nowhere"), "'nowhere' does not exist"),
        (("--calib", ".", "--max-kl", "inf"), "--max-kl inf"),
    ],
)
def test_refusals(arguments: tuple[str, ...], words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "-m", "vit_digits", "-p", "cpu", "-o", "out", *arguments]) == 3
    assert words in capsys.readouterr().err
    assert list(here.iterdir()) == []
