"""Switching while others infer: every answer belongs to one variant, no call fails, nothing is closed under a call."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.errors import refused

import ztdeploy
from ztdeploy.target.backends.onnxruntime import OnnxRuntimeRunner
from ztdeploy.target.runtime.runner import OpenEngine

VARIANTS = ("keep-0.70", "keep-0.50", "dense")
CALLS, SWITCHES = 20, 20


@pytest.fixture(scope="module")
def pixels(digits_bundle):
    return np.load(digits_bundle / "golden" / "pixels.npy")


@pytest.fixture(scope="module")
def expected(digits_bundle, pixels):
    """Per variant, what the engine gives for all golden images at once."""
    found = {}
    for name in VARIANTS:
        with ztdeploy.load(digits_bundle, variant=name, threads=1) as runner:
            found[name] = runner.infer(pixels)
    return found


def whose(outputs, expected):
    """The variants whose answer this is, to the last bit."""
    return [
        name
        for name, right in expected.items()
        if len(right.kept) == len(outputs.kept)
        and np.allclose(outputs.logits, right.logits, atol=1e-5)
        and all(np.array_equal(ours, theirs) for ours, theirs in zip(outputs.kept, right.kept, strict=True))
    ]


@pytest.mark.parametrize("memory", ["speed", "shared"])
@pytest.mark.parametrize("variants", [VARIANTS, ("keep-0.70", "keep-0.50")], ids=["all", "pruned"])
@pytest.mark.short("[all-")
def test_four_threads_infer_while_a_fifth_switches(digits_bundle, pixels, expected, memory, variants):
    """The pruned ones give outputs of other shapes than each other, and of other numbers than dense."""
    with ztdeploy.load(digits_bundle, variant=variants[0], memory=memory, threads=1) as runner:

        def infer(_):
            return [whose(runner.infer(pixels), expected) for _ in range(CALLS)]

        def switch():
            for turn in range(SWITCHES):
                runner.switch(variant=variants[turn % len(variants)])
                if turn % 10 == 9:
                    runner.close()  # the next call opens the variant again

        with ThreadPoolExecutor(5) as pool:
            switching = pool.submit(switch)
            answers = [one for answers in pool.map(infer, range(4)) for one in answers]
            switching.result()
    assert len(answers) == 4 * CALLS
    assert all(len(names) == 1 and names[0] in variants for names in answers), answers


def test_equal_shapes_do_not_mix(digits_bundle, pixels):
    """Models whose outputs are of the same shapes: all parts of a call go through one of them."""
    kept_open = ztdeploy.load(digits_bundle, keep_ratio=1, threads=1)
    raw = kept_open._active.runner

    class Shifted:
        """Another model with outputs of the same shapes."""

        def __init__(self, by):
            self.signature, self.by = raw.signature, by

        def infer(self, feeds):
            return {"logits": raw.infer(feeds)["logits"] + np.float32(self.by)}

        def close(self):
            pass

    alike = np.repeat(pixels[:1], 17, axis=0)  # cut into three parts

    def infer(_):
        return [np.ptp(runner.infer(alike).logits[:, 0]) for _ in range(5)]

    with ztdeploy.load(digits_bundle, keep_ratio=1, threads=1) as runner, ThreadPoolExecutor(5) as pool:
        switching = pool.submit(lambda: [runner.adopt("dense", Shifted(100 * turn)) for turn in range(200)])
        spread = [one for spreads in pool.map(infer, range(4)) for one in spreads]
        switching.result()
    assert max(spread) < 1e-3


class Gate:
    """Holds the calls of one engine until it is opened."""

    def __init__(self, monkeypatch):
        self.entered, self.open, self.closed = threading.Event(), threading.Event(), []
        infer, close = OnnxRuntimeRunner.infer, OnnxRuntimeRunner.close

        def held(runner, feeds):
            if runner is self.held:
                self.entered.set()
                assert self.open.wait(60)
            return infer(runner, feeds)

        def recorded(runner):
            self.closed.append(runner)
            close(runner)

        monkeypatch.setattr(OnnxRuntimeRunner, "infer", held)
        monkeypatch.setattr(OnnxRuntimeRunner, "close", recorded)

    held = None


@pytest.mark.parametrize("how", ["switch", "close"])
def test_an_engine_stays_open_until_its_last_call_has_ended(digits_bundle, pixels, expected, monkeypatch, how):
    gate = Gate(monkeypatch)
    with ztdeploy.load(digits_bundle, variant="dense", threads=1) as runner, ThreadPoolExecutor(1) as pool:
        gate.held = runner._active.runner
        call = pool.submit(runner.infer, pixels)
        assert gate.entered.wait(60)
        runner.switch(0.5) if how == "switch" else runner.close()
        assert gate.held not in gate.closed
        if how == "switch":
            assert whose(runner.infer(pixels), expected) == ["keep-0.50"], "calls go on while one is under way"
        gate.open.set()
        assert whose(call.result(60), expected) == ["dense"]
        assert gate.held in gate.closed


def test_a_call_that_fails_leaves_as_well(digits_bundle, pixels, monkeypatch):
    gate = Gate(monkeypatch)
    gate.open.set()
    with ztdeploy.load(digits_bundle, variant="dense", threads=1) as runner:
        engine = runner._active
        broken = engine.interface
        engine.interface = None
        with pytest.raises(AttributeError):
            runner.infer(pixels)
        engine.interface = broken
        runner.switch(0.5)
        assert engine.runner in gate.closed


def test_an_engine_is_closed_once_and_lets_nobody_in_then():
    closed = []

    class Runner:
        def close(self):
            closed.append(self)

    engine = OpenEngine(None, None, None, Runner())
    assert engine.enter()
    assert engine.enter()
    engine.retire()
    engine.leave()
    assert not closed
    assert not engine.enter()
    engine.retire()
    engine.leave()
    engine.retire()
    assert len(closed) == 1


def test_what_is_adopted_has_to_fit(digits_bundle):
    with ztdeploy.load(digits_bundle, keep_ratio=0.7, threads=1) as runner:
        other = ztdeploy.load(digits_bundle, keep_ratio=0.5, threads=1)._active.runner
        refused(lambda: runner.adopt("keep-0.70", other), "'blocks.2/prune/kept'", "46")
        assert runner.keep_ratio == 0.7
