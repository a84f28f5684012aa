"""The engines table of inspect: what each engine is bound to, and what proves it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import edit
from helpers.processes import Done, run_ztdeploy

VARIANTS = ("keep-0.70", "keep-0.50", "dense")
PROOF = r"\de[+-]\d\d of \de[+-]\d\d"


def inspect(bundle: Path, *arguments: str) -> Done:
    """`ztdeploy inspect BUNDLE` in a process of its own."""
    done = run_ztdeploy("inspect", bundle, *arguments, cwd=bundle.parent)
    assert (done.code, done.err) == (0, ""), done
    return done


def engines(done: Done) -> dict[tuple[str, str], str]:
    """The rows of the table, by profile and variant, with single spaces."""
    lines = done.out.splitlines()
    begin = lines.index("# Engines")
    end = next(number for number in range(begin + 1, len(lines)) if lines[number].startswith("#"))
    cells = [line.split("\t") for line in lines[begin + 2 : end]]
    return {(profile, variant): " ".join(filter(None, rest)) for profile, variant, *rest in cells}


@pytest.fixture(scope="module")
def done(digits_bundle: Path) -> Done:
    return inspect(digits_bundle)


def test_every_profile_and_variant_has_a_row(done: Done) -> None:
    assert list(engines(done)) == [(profile, variant) for profile in ("cpu", "jetson-orin") for variant in VARIANTS]
    begin = done.out.splitlines().index("# Engines")
    assert done.out.splitlines()[begin + 1].split("\t")[-2:] == ["bound to", "proof"]
    assert "# proof: logit difference to PyTorch on the golden images" in done.out


def test_engines_that_ran_say_what_they_are_bound_to_and_how_near_they_came(done: Done, digits_bundle: Path) -> None:
    manifest = json.loads((digits_bundle / "manifest.json").read_text())
    for variant in manifest["variants"]:
        engine = variant["engines"]["cpu"]
        row, bound = engines(done)["cpu", variant["name"]], engine["fingerprint"]
        size = manifest["files"][engine["file"]]["bytes"] / 1e6
        start = f"fp32 {size:.1f} {bound['runtime']} {bound['runtime_version']}, {bound['device']} "
        assert row.startswith(start)
        assert re.fullmatch(PROOF, row.removeprefix(start))
        assert "never run" not in row


def test_engines_of_boards_are_built_there_and_have_never_run(done: Done) -> None:
    for variant in VARIANTS:
        row = engines(done)["jetson-orin", variant]
        assert re.fullmatch(rf"fp16 built on the device graph (alone|emulated): {PROOF}; never run", row)


def test_a_graph_that_was_only_emulated_says_so(bundle_copy: Path) -> None:
    def change(manifest: Any) -> None:
        for variant, emulated in zip(manifest["variants"], (True, False, None), strict=True):
            graph = variant["graphs"]["jetson-orin"]
            graph["parity"] = None if emulated is None else {**graph["parity"], "emulated": emulated}

    rows = engines(inspect(edit(bundle_copy, change)))
    proofs = [rows["jetson-orin", variant].removeprefix("fp16 built on the device ") for variant in VARIANTS]
    assert re.fullmatch(rf"graph emulated: {PROOF}; never run", proofs[0])
    assert re.fullmatch(rf"graph alone: {PROOF}; never run", proofs[1])
    assert proofs[2] == "never run"


def test_a_proof_that_says_nothing_of_what_was_allowed(bundle_copy: Path) -> None:
    def change(manifest: Any) -> None:
        manifest["variants"][0]["engines"]["cpu"]["parity"]["logit_tolerance"] = None

    row = engines(inspect(edit(bundle_copy, change)))["cpu", VARIANTS[0]]
    assert re.search(r" \de-\d\d$", row), row


OURS = "libztdeploy_plugins-sm87-0123456789abcdef.so"


def test_an_engine_from_a_board_shows_its_device_and_plugins(bundle_copy: Path) -> None:
    """As finalize leaves it there."""

    def change(manifest: Any) -> None:
        for variant in manifest["variants"]:
            cpu = variant["engines"]["cpu"]
            bound = {"runtime": "tensorrt", "runtime_version": "10.3.0", "device": "sm_87 Orin", "plugins": OURS}
            fingerprint = {**cpu["fingerprint"], **bound}
            parity = {**cpu["parity"], "replayed": False, "median_logit_difference": 0.01, "logit_tolerance": 0.03}
            changes = {"profile": "jetson-orin", "backend": "tensorrt", "fingerprint": fingerprint, "parity": parity}
            variant["engines"]["jetson-orin"] = {**cpu, **changes}
        manifest["missing"] = []

    done = inspect(edit(bundle_copy, change))
    for variant in VARIANTS:
        row = engines(done)["jetson-orin", variant]
        bound = "tensorrt 10.3.0, sm_87 Orin, plugins (library) 1e-02 of 3e-02"
        assert row.endswith(bound), "the median is what is judged"
        assert "built on the device" not in row


def test_json_is_the_manifest(digits_bundle: Path) -> None:
    assert inspect(digits_bundle, "--json").json() == json.loads((digits_bundle / "manifest.json").read_text())
