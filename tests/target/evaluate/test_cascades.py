"""What an evaluation says of a cascade: who went on, whether its bound holds, and whether images are like those of its
calibration.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.cascades import setting, with_cascade

from ztdeploy.core.bundle import read_bundle
from ztdeploy.target.evaluate import cascades
from ztdeploy.target.evaluate.answers import ClassAnswers, VectorAnswers, class_answers
from ztdeploy.target.evaluate.cascades import cascade_score, mean_gmacs_of
from ztdeploy.target.evaluate.eval_report import EvalRequest
from ztdeploy.target.evaluate.evaluate import plan
from ztdeploy.target.runtime.interface import Outputs

NAMES = [f"{place}.png" for place in range(100)]
SURE = np.linspace(0, 1, 100, dtype=np.float32)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two stages of 1 and 3 GMACs; images go on below a confidence of 0.1, which 10 % of the calibration images had."""
    monkeypatch.setattr(cascades, "mean_gmacs", lambda _bundle, shares: shares[0] + 3 * shares[1])
    rows = [(SimpleNamespace(name=name),) for name in ("dense", "keep-0.50")]
    rows.append((SimpleNamespace(name="keep-0.50"), SimpleNamespace(name="dense")))
    return SimpleNamespace(bundle=None, rows=rows, setting=setting(), dense_profile=None)


def classes(confidence: np.ndarray, wrong: int) -> ClassAnswers:
    """Two rows, of which the second, the cascade, has another answer for the last few images."""
    logits = np.tile(np.eye(3, dtype=np.float32)[0], (len(confidence), 1))
    other = logits.copy()
    other[len(other) - wrong :] = [0, 1, 0]
    answers = class_answers([Outputs(one, ()) for one in (logits, other)], np.zeros((len(logits), 32), np.uint8))
    return ClassAnswers(**{**vars(answers), "confidence": confidence[:, None]})


@pytest.mark.parametrize(
    ("wrong", "held", "words"), [(5, True, "reached"), (7, False, "chance"), (30, False, "by more")]
)
def test_whether_the_bound_holds(work: Any, wrong: int, held: bool, words: str) -> None:
    score = cascade_score(work, classes(SURE, wrong), NAMES)
    assert (score.agreement.count, score.held) == (100 - wrong, held)
    assert words in score.sentence
    work.dense_profile = "fp32"
    assert cascade_score(work, classes(SURE, wrong), NAMES).held is None


def test_which_images_went_on_and_what_it_costs(work: Any) -> None:
    answers = classes(SURE[::-1], 0)
    score = cascade_score(work, answers, NAMES)
    assert [(one.variant, one.reached.count, one.expected) for one in score.stages] == [
        ("keep-0.50", 100, 1),
        ("dense", 10, 0.1),
    ]
    assert [one.image for one in score.went_on] == [f"{place}.png" for place in range(99, 89, -1)]
    assert {one.variant for one in score.went_on} == {"dense"}
    assert mean_gmacs_of(work, answers) == pytest.approx(1.3)
    assert score.worst_gmacs == 4


def test_images_unlike_those_of_the_calibration_are_said(work: Any) -> None:
    assert cascade_score(work, classes(SURE, 0), NAMES).unlike is None
    warning = cascade_score(work, classes(SURE / 5, 0), NAMES).unlike
    assert warning is not None
    assert "50 of 100 went on from the first stage, where 10 % were expected" in warning


def test_vectors_agree_from_the_cosine_of_the_bound_on(work: Any) -> None:
    cosine = np.stack([np.ones((100, 2)), np.full((100, 2), 0.95)]).astype(np.float32)
    cosine[1, :10, 0] = 0.8
    nothing = np.zeros((2, 100, 2), np.bool_)
    answers = VectorAnswers(
        content=np.zeros((100, 32), np.uint8),
        problem=np.full(100, ""),
        confidence=SURE[:, None],
        cosine=cosine,
        filled=nothing,
        vectors=np.zeros((2, 100, 0), np.float32),
    )
    assert cascade_score(work, answers, NAMES).agreement.count == 90


def test_a_cascade_runs_where_no_variants_are_chosen_and_its_thresholds_name_what_is_kept(digits_bundle: Path) -> None:
    def digests(threshold: float | None, **asked: Any) -> list[str]:
        bundle = read_bundle(digits_bundle)
        request = EvalRequest(bundle=bundle.root, data=Path("photos"), **asked)
        return plan(request, bundle if threshold is None else with_cascade(bundle, threshold))[1].digests

    static, low, high = digests(None), digests(0.1), digests(0.2)
    assert low[:-1] == high[:-1] == static
    assert low[-1] != high[-1]
    assert len(digests(0.1, keep_ratios=(0.5,))) == len(digests(None, keep_ratios=(0.5,)))
    assert digests(0.1, variants=("keep-0.50",), cascade=True)[-1] == low[-1]
