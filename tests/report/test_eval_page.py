"""The page of an evaluation: what changes is on top, only changed answers are framed, and names do nothing."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.pages import EVIL, check_inert
from helpers.reports import TEMPLATE
from PIL import Image

from ztdeploy.core.verdict import Verdict
from ztdeploy.report.evaluate.page import eval_page
from ztdeploy.report.kit.numbers import estimate
from ztdeploy.report.kit.plots.frame import SVG
from ztdeploy.target.evaluate.eval_report import (
    AgainstDense,
    Answer,
    Apart,
    CascadeScore,
    DataFacts,
    EvalReport,
    EvalRequest,
    Far,
    Likeness,
    Quantile,
    StageReached,
    VariantScore,
    WentOn,
)
from ztdeploy.target.evaluate.scoring import change, mean, share
from ztdeploy.target.measure.bench_report import read_report
from ztdeploy.target.measure.statistics import Interval

IMAGES, LOST, GAINED, OTHER = 300, 22, 5, 24
RIGHT = np.arange(IMAGES) < 200


def report(
    folder: Path,
    *,
    labelled: bool = True,
    vectors: bool = False,
    variants: int = 2,
    name: str = "",
    cascade: bool = False,
) -> EvalReport:
    """The last image is not in the folder; every second of the worst images has another answer than the baseline's."""
    for place in range(3):
        Image.new("RGB", (60, 40), (place, 99, 0)).save(folder / f"{place}.png")
    scores = [_score("dense", vectors, labelled=labelled, pruned=False)]
    scores += [_score(f"{name}keep-{place}", vectors, labelled=labelled, pruned=True) for place in range(variants)]
    if cascade:
        scores.append(_score("cascade", vectors, labelled=labelled, pruned=True).model_copy(update=_of_cascade(name)))
    facts = DataFacts(
        name=f"{name}photographs",
        path=str(folder),
        rule="listed in labels.json",
        labelled=labelled,
        digest="1" * 64,
        found=IMAGES,
        images=IMAGES,
        classes=10,
        ignored=0,
    )
    return EvalReport(
        created="2026-01-02T03:04:05+00:00",
        request=EvalRequest(bundle=Path("b"), data=folder),
        bundle=read_report(TEMPLATE).bundle.model_copy(update={"timm_name": f"{name}vit"}),
        output="embedding" if vectors else "logits",
        data=facts,
        variants=tuple(scores),
    )


def _score(name: str, vectors: bool, *, labelled: bool, pruned: bool) -> VariantScore:
    right = RIGHT.copy()
    right[:LOST], right[200 : 200 + GAINED] = False, True
    likeness = Likeness(
        mean=mean(np.linspace(0.9, 1, IMAGES), 0),
        p5=Quantile(value=0.91, interval=Interval(low=0.9, high=0.92, confidence=0.95)),
        lowest=0.9,
        furthest=(Far(image="0.png", cosine=0.9),),
        positions=None,
    )
    against = AgainstDense(
        agreement=share(np.arange(IMAGES) >= LOST + GAINED + OTHER),
        kl=mean(np.linspace(0, 0.4, IMAGES), 0),
        change=change(right, RIGHT) if labelled else None,
        worst=tuple(_apart(place, name, labelled) for place in range(4)),
    )
    return VariantScore(
        variant=name,
        keep_ratio=0.7,
        method="novelty-merge",
        gmacs=1.0,
        engine_sha256="0" * 64,
        top1=share(right) if labelled and not vectors else None,
        top5=None,
        against_dense=against if pruned and not vectors else None,
        likeness=likeness if pruned and vectors else None,
    )


def _of_cascade(name: str) -> dict[str, CascadeScore]:
    stages = [(f"{name}keep-0", np.ones(IMAGES, np.bool_), 1.0), ("dense", np.arange(IMAGES) < 90, 0.1)]
    score = CascadeScore(
        stages=tuple(StageReached(variant=one, reached=share(on), expected=part) for one, on, part in stages),
        agreement=share(np.arange(IMAGES) >= 12),
        bound=0.98,
        calibrated_on=f"{name}calibration",
        held=False,
        unlike=f"these images are unlike '{name}calibration'",
        worst_gmacs=3.0,
        went_on=tuple(WentOn(image=f"{place}.png", confidence=0.01 * place, variant="dense") for place in range(90)),
    )
    return {"cascade": score}


def _apart(place: int, name: str, labelled: bool) -> Apart:
    answers = [Answer(index=index, name=f"{name} {index}", probability=0.4) for index in (0, place % 2)]
    labels = (answers[0].name,) if labelled else ()
    return Apart(image=f"{place}.png", kl=0.3 - 0.01 * place, dense=answers[0], variant=answers[1], labels=labels)


@pytest.mark.parametrize(
    "options",
    [{}, {"labelled": False}, {"vectors": True}, {"variants": 0}, {"variants": 20}, {"name": EVIL, "cascade": True}],
    ids=["labelled", "unlabelled", "vectors", "baseline alone", "many", "hostile"],
)
def test_a_page_asks_for_nothing(options: dict[str, object], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(eval_page(report(tmp_path, **options)), encoding="utf-8")  # type: ignore[arg-type]
    check_inert(page)
    shown = "".join(ElementTree.fromstring(page.read_text().replace("<!DOCTYPE html>", "")).itertext())
    if options.get("variants") != 0:
        assert f"{options.get('name', '')}keep-0".replace("\x1b", " ") in shown


def test_what_changes_is_on_the_page(tmp_path: Path) -> None:
    made = report(tmp_path)
    page = ElementTree.fromstring(eval_page(made).replace("<!DOCTYPE html>", ""))
    _, dense, pruned, *_ = page.iter("tr")
    assert "baseline" in (dense[0].text or "")
    found = made.variants[1].against_dense
    assert found is not None
    assert found.change is not None
    exact = {float(cell.attrib["data-value"]) for cell in pruned if "data-value" in cell.attrib}
    assert {found.kl.value, found.change.value, (LOST + GAINED + OTHER) / IMAGES, LOST, GAINED} <= exact
    bars = next(one for one in page.iter(f"{{{SVG}}}svg") if one.get("aria-label") == "Changed answers")
    said = [title.text or "" for title in bars.iter(f"{{{SVG}}}title") if "keep-0" in (title.text or "")]
    assert [int(text.split(": ")[1].split()[0]) for text in said] == [LOST, GAINED, OTHER]


def test_a_cascade_shows_its_shares_its_bound_and_who_went_on(tmp_path: Path) -> None:
    page = ElementTree.fromstring(eval_page(report(tmp_path, cascade=True)).replace("<!DOCTYPE html>", ""))
    (part,) = [one for one in page.iter("section") if one[0].text == "Cascade"]
    shares = [float(cell.attrib["data-value"]) for cell in part.iter("td") if "data-value" in cell.attrib]
    assert shares == [1, 100, 0.3, 10]
    assert "98.0 % from 'calibration' is missed, by more than chance explains" in "".join(part.itertext())
    assert [one.text for one in part.iter("figcaption")] == [f"{place}.png" for place in range(6)]
    assert "These images are unlike" in "".join(page.itertext())


def test_only_changed_answers_are_framed(tmp_path: Path) -> None:
    page = ElementTree.fromstring(eval_page(report(tmp_path, variants=1)).replace("<!DOCTYPE html>", ""))
    (images,) = [one for one in page.iter("div") if one.get("class") == "images"]
    assert [one.get("class") == "changed" for one in images] == [False, True, False, True]
    assert [len(list(one.iter("img"))) for one in images] == [1, 1, 1, 0], "one is no longer there"


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (2.63, 1.62, 4.24, ("2.6", "1.6 to 4.2")),
        (17.0, 13.2, 21.7, ("17", "13 to 22")),
        (0.02314, 0.0189, 0.0279, ("0.023", "0.019 to 0.028")),
        (-0.02, -1.1, 1.1, ("0.0", "-1.1 to 1.1")),
        (100.0, 98.9, 100.0, ("100.0", "98.9 to 100.0")),
        (0.0, 0.0, 0.0, ("0", "0 to 0")),
    ],
)
def test_an_interval_decides_the_digits(value: float, low: float, high: float, words: tuple[str, str]) -> None:
    found = Quantile(value=value, interval=Interval(low=low, high=high, confidence=0.95))
    assert estimate(found) == words


def test_the_recommended_variant_stands_out(tmp_path: Path) -> None:
    verdict = Verdict(decision="deploy", sentence="keep 1 changes nothing: deploy.", variant="keep-1")
    made = report(tmp_path).model_copy(update={"verdict": verdict})
    page = ElementTree.fromstring(eval_page(made).replace("<!DOCTYPE html>", ""))
    assert [row[0].text for row in page.iter("tr") if row.get("class") == "chosen"] == ["keep-1"]
    text = "".join(page.itertext())
    assert text.index(verdict.sentence) < text.index("What changes"), "the verdict comes first"
