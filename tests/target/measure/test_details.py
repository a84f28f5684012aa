"""Where the time of a real engine goes, and what is kept when looking into it fails, is stopped, or goes on."""

from __future__ import annotations

import json
import sys

import pytest
from helpers.bundles import edit
from helpers.errors import refused
from helpers.reports import run
from helpers.reports import sweep as made_up

from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.errors import BundleError, EnvironmentLacksError
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.jobs.sweep import sweep
from ztdeploy.report.sweep_folder import REPORT, read_previous
from ztdeploy.target.measure import details
from ztdeploy.target.measure.details import look_into, measure_details, plan_details
from ztdeploy.target.measure.details_worker import DetailsOrder
from ztdeploy.target.measure.operators import EXPOSED
from ztdeploy.target.measure.sweep_report import OperatorProfile, Staircase, SweepRequest, TokenStep


def order(bundle, variant=None, **changes) -> DetailsOrder:
    return DetailsOrder(
        **{"bundle": bundle, "profile": "cpu", "variant": variant, "image_size": 32, "batch": 1, "threads": 1}
        | {"seconds": 0.2}
        | changes
    )


# Real engines.


@pytest.mark.parametrize("variant", ["dense", "keep-0.50"])
def test_a_real_engines_operators(variant, digits_bundle):
    profile = look_into(order(digits_bundle, variant, batch=2))
    assert isinstance(profile, OperatorProfile)
    assert (profile.variant, profile.image_size, profile.batch, profile.threads) == (variant, (32, 32), 2, 1)
    assert profile.calls >= 5
    total = sum(part.ms for part in profile.parts)
    assert total == pytest.approx(sum(one.ms for one in profile.operators))
    assert profile.call_ms == pytest.approx(total + profile.between_ms)
    manifest = read_bundle(digits_bundle).manifest
    record = next(one for one in manifest.variants if one.name == variant)
    depth, pruned = manifest.model.architecture.depth, {layer.block for layer in record.plan.layers}
    by_block = {block: {part.kind for part in profile.parts if part.block == block} for block in (*range(depth), None)}
    for block in range(depth):
        assert {"linear", "attention", "norm", "activation"} <= by_block[block], block
        assert ("pruning" in by_block[block]) == (block in pruned)
    assert "linear" in by_block[None], "the patch embedding and the classifier"
    assert not {"pruning", "attention"} & by_block[None]
    unknown = sum(part.ms for part in profile.parts if part.kind == "other")
    assert unknown < 0.01 * total, "every operator has a kind"
    assert [one.block for one in profile.attention] == list(range(depth))
    assert {one.block for one in profile.attention if one.reason == EXPOSED} == pruned
    assert all(one.operators and (one.fused or one.reason) for one in profile.attention)


def test_a_real_staircase(digits_bundle):
    staircase = look_into(order(digits_bundle))
    assert isinstance(staircase, Staircase)
    tokens = read_bundle(digits_bundle).manifest.model.architecture.tokens
    counts = [point.tokens for point in staircase.points]
    assert (counts, counts[-1]) == (sorted(set(counts)), tokens)
    assert all(point.block_ms > 0 for point in staircase.points)
    assert staircase.points[-1].block_ms > staircase.points[0].block_ms, "four times the tokens"
    assert set(staircase.treads) <= set(counts)
    assert staircase.rounds >= 7


def test_the_blocks_cost_no_weights(digits_bundle):
    """Their graph reads the file that all others read, and runs there."""
    bundle = read_bundle(digits_bundle)
    record = bundle.manifest.blocks["cpu"]
    assert set(bundle.manifest.blocks) == {"cpu"}, "a Jetson's engines cannot be looked into"
    assert record.count == 3
    assert bundle.path(record.file).stat().st_size < 100_000
    assert b"blocks.5.mlp.fc1.weight.T" in bundle.path(record.file).read_bytes()


# Bundles that are not as they should be.


def test_a_damaged_block_graph(bundle_copy):
    path = bundle_copy / read_bundle(bundle_copy).manifest.blocks["cpu"].file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    refused(lambda: look_into(order(bundle_copy)), "has changed since the build")
    path.unlink()
    refused(lambda: look_into(order(bundle_copy)), "missing")


def test_a_block_graph_that_is_none(bundle_copy):
    """One whose hash is right: somebody has rewritten the manifest."""
    from ztdeploy.core.bundle import sha256_of

    name = read_bundle(bundle_copy).manifest.blocks["cpu"].file
    (bundle_copy / name).write_bytes(b"no graph")
    entry = {"sha256": sha256_of(bundle_copy / name), "bytes": 8}
    edit(bundle_copy, lambda manifest: manifest["files"].update({name: entry}))
    refused(lambda: look_into(order(bundle_copy)), "cannot be run")


def test_a_block_graph_that_the_manifest_does_not_list(bundle_copy):
    edit(bundle_copy, lambda manifest: manifest["blocks"]["cpu"].update(file="graphs/other.onnx"))
    refused(lambda: read_bundle(bundle_copy), "graphs/other.onnx")


def test_an_older_bundle_has_profiles_and_no_staircase(bundle_copy):
    edit(bundle_copy, lambda manifest: manifest.pop("blocks"))
    bundle = read_bundle(bundle_copy)
    items, notes = plan_details(report(), [bundle])
    assert [item.variant for item in items] == ["dense", "keep-0.50"]
    assert len(notes) == 1
    assert "no token staircase: the bundle has no blocks" in notes[0]
    refused(lambda: look_into(order(bundle_copy)), "no blocks of their own", "build the bundle again")


def test_a_changed_engine(bundle_copy):
    (bundle_copy / "graphs" / "dense.cpu.onnx").write_bytes(b"")
    refused(lambda: look_into(order(bundle_copy, "dense")), "has changed since the build")


def test_a_process_that_is_killed(digits_bundle, monkeypatch):
    kill = "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setattr(details, "module_command", lambda *_: [sys.executable, "-c", kill])
    refused(lambda: look_into(order(digits_bundle)), "'the blocks' was killed by SIGKILL", kind=EnvironmentLacksError)


def test_a_worker_does_not_outlive_ctrl_c(digits_bundle, monkeypatch, children):
    monkeypatch.setattr(details, "module_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(details.Worker, "answer", stop)
    with pytest.raises(KeyboardInterrupt):
        look_into(order(digits_bundle))
    assert [child.returncode for child in children] == [-9]


# What is measured, in which order, and what stays.


def report(**changes):
    """Of a sweep at two batches and two numbers of threads."""
    made = []
    for batch in (1, 8):
        for threads in (1, 2):
            own = run(variants=("dense", "keep-0.50"), batch=batch, threads=threads)
            made.append(own.model_copy(update={"bundle": own.bundle.model_copy(update=IN_BUNDLE)}))
    return made_up(*made, **changes)


IN_BUNDLE = {"image_size": ImageSize(32, 32), "profile": "cpu"}


class Worker:
    """In place of `look_into`: answers, or something else on the calls that a test names."""

    def __init__(self, **on_call):
        self.orders, self.on_call = [], on_call

    def __call__(self, asked: DetailsOrder) -> OperatorProfile | Staircase:
        self.orders.append(asked)
        error = self.on_call.get(f"call_{len(self.orders)}")
        if error is not None:
            raise error
        setting = {"image_size": ImageSize(32, 32), "batch": asked.batch, "threads": asked.threads}
        if asked.variant is None:
            points = (TokenStep(tokens=65, block_ms=1.0),)
            return Staircase(**setting, points=points, treads=())
        empty = {"parts": (), "operators": (), "attention": ()}
        return OperatorProfile(variant=asked.variant, **setting, calls=1, call_ms=1.0, **empty)


@pytest.fixture
def measure(digits_bundle, monkeypatch):
    """Measures, and returns the report and what was saved."""

    def call(worker, start):
        saved = []
        monkeypatch.setattr(details, "look_into", worker)
        done = measure_details(start, [read_bundle(digits_bundle)], progress=lambda *_step: None, save=saved.append)
        return done, saved

    return call


EXPECTED = [("dense", 1, 1), ("keep-0.50", 1, 1), (None, 1, 1), (None, 1, 2), (None, 8, 1), (None, 8, 2)]


def asked(worker):
    return [(one.variant, one.batch, one.threads) for one in worker.orders]


def test_profiles_at_the_first_setting_and_staircases_at_all(measure):
    worker = Worker()
    done, saved = measure(worker, report())
    assert asked(worker) == EXPECTED
    assert (len(done.profiles), len(done.staircases), done.notes, done.failures) == (2, 4, (), ())
    assert [len(one.profiles) + len(one.staircases) for one in saved] == [1, 2, 3, 4, 5, 6]
    assert {one.progress for one in saved} == {"running"}
    assert done.progress == "complete"
    again = Worker()
    assert measure(again, done)[0] == done
    assert again.orders == []


def test_a_failure_loses_nothing(measure):
    worker = Worker(call_1=BundleError("an engine that is broken", "a whole one", "build again"))
    start = report()
    done, _ = measure(worker, start)
    assert asked(worker) == EXPECTED
    assert (done.runs, done.progress) == (start.runs, "complete")
    assert [one.variant for one in done.profiles] == ["keep-0.50"]
    (failure,) = done.failures
    assert failure.message.startswith("the operators of dense at 32 px, batch 1, 1 thread: an engine that is broken")
    assert failure.exit_code == 4


def test_ctrl_c_keeps_what_there_is_and_the_next_one_goes_on(measure):
    start = report()
    stopped, saved = measure(Worker(call_4=KeyboardInterrupt()), start)
    assert stopped.progress == "interrupted"
    assert (stopped.runs, len(stopped.profiles), len(stopped.staircases)) == (start.runs, 2, 1)
    assert saved[-1] == stopped.model_copy(update={"progress": "running"})
    worker = Worker()
    done, _ = measure(worker, stopped.model_copy(update={"progress": "complete"}))
    assert asked(worker) == EXPECTED[3:]
    assert done == measure(Worker(), start)[0]


def test_a_runtime_that_says_nothing(digits_bundle):
    opened = read_bundle(digits_bundle)
    cpu = opened.manifest.profiles["cpu"].model_copy(update={"backend": "tensorrt"})
    manifest = opened.manifest.model_copy(update={"profiles": {**opened.manifest.profiles, "cpu": cpu}})
    items, notes = plan_details(report(), [Bundle(opened.root, manifest)])
    assert items == []
    assert notes == ("at 32 px: the runtime of tensorrt engines says nothing about their operators or blocks",)


# All of it.


def test_a_sweep_with_details_and_one_that_goes_on(digits_bundle, tmp_path, monkeypatch):
    quick = {"threads": (1,), "warmup_s": 0.0, "duration_s": 0.05, "rounds": 2}
    request = SweepRequest(model=None, bundle=digits_bundle, keep_ratios=(0.5,), **quick)
    out, notes = tmp_path / "out", []
    steps = []
    real = details.look_into

    def stop(asked):
        if asked.variant is None:
            raise KeyboardInterrupt
        return real(asked.model_copy(update={"seconds": 0.2}))

    monkeypatch.setattr(details, "look_into", stop)
    first = sweep(request, out, progress=lambda *step: steps.append(step), note=notes.append)
    assert (first.progress, len(first.profiles), first.staircases) == ("interrupted", 2, ())
    assert read_previous(out) == (first, None)
    assert steps[-1][0] == "looking into the token staircase at 32 px, batch 1, 1 thread"
    monkeypatch.setattr(details, "look_into", lambda one: real(one.model_copy(update={"seconds": 0.2})))
    second = sweep(request, out, note=notes.append)
    assert (second.progress, len(second.staircases)) == ("complete", 1)
    assert (second.runs, second.profiles) == (first.runs, first.profiles)
    monkeypatch.setattr(details, "look_into", lambda _: pytest.fail("it is measured again"))
    assert sweep(request, out, note=notes.append) == second
    without = request.model_copy(update={"details": False})
    assert sweep(without, out, note=notes.append).profiles == second.profiles, "what is there stays"
    assert sweep(without, out, fresh=True, note=notes.append).profiles == ()
    assert json.loads((out / REPORT).read_text())["staircases"] == []
