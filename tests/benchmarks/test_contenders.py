"""The benchmark's contenders do the same work: same logits from one input; who cannot run does not stop the others."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("benchmarks.contenders", reason="the benchmarks lie in a checkout only")

from benchmarks.contenders import CONTENDERS, PLAIN, Contender, Job, pixels_for, plain_export, read_job
from benchmarks.peers import table
from benchmarks.turns import time_in_turns

#: No user meets it: the benchmarks are run by hand.
pytestmark = pytest.mark.long
#: torch.compile takes most of a minute here; it compiles the very module that "torch eager" runs.
QUICK = [name for name in CONTENDERS if name != "torch.compile"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    found = Job("vit_digits", None, 2, 1, tmp_path_factory.mktemp("plain") / "plain.onnx")
    size = plain_export(found)
    return Job(found.model, size, found.batch, found.threads, found.onnx)


@pytest.mark.parametrize("name", [name for name in QUICK if name != "torch eager"])
def test_dense_contenders_compute_the_same(name: str, job: Job) -> None:
    import torch

    if name == "OpenVINO" and importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    assert job.image_size is not None
    pixels, threads = pixels_for(job, job.image_size), torch.get_num_threads()
    try:
        expected = CONTENDERS["torch eager"](job)(pixels)
    finally:
        torch.set_num_threads(threads)
    assert expected.shape[0] == job.batch
    assert np.abs(expected).max() > 1e-3, "logits of random weights are not all zero"
    np.testing.assert_allclose(CONTENDERS[name](job)(pixels), expected, atol=1e-5, rtol=1e-4)


def test_who_cannot_run_is_named_and_left_out(job: Job, tmp_path: Path) -> None:
    broken = Job(job.model, job.image_size, job.batch, job.threads, tmp_path / "missing.onnx")
    subjects = [Contender(PLAIN, broken), Contender("torch eager", job)]
    absent, there = time_in_turns(subjects, rounds=2, seconds=0)
    assert "missing.onnx" in absent.reason
    assert (absent.rounds_ms, there.reason) == ({}, "")
    assert [len(samples) for samples in there.rounds_ms.values()] == [1, 1]
    rows = table([absent, there], {}).splitlines()
    assert len(rows) == 3
    assert rows[2].startswith("| torch eager | ")


def test_a_job_survives_its_command_line(job: Job) -> None:
    *_, name, text = Contender(PLAIN, job).command()
    assert (name, read_job(text)) == (PLAIN, job)
