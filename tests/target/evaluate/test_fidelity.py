"""Accuracy: labels that may come from anywhere, and figures against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from helpers.errors import refused as refused_as

from ztdeploy.core.errors import ImageError
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.target.evaluate.answers import class_answers
from ztdeploy.target.evaluate.data import LabelledImage, read_labels
from ztdeploy.target.evaluate.scoring import against_dense, hits, share
from ztdeploy.target.runtime.interface import Outputs


@pytest.fixture
def labels(tmp_path):
    """Writes a list of labels (text, bytes, or what becomes JSON) and returns its path."""

    def write(data):
        path = tmp_path / "labels.json"
        content = data if isinstance(data, bytes | str) else json.dumps(data)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refused(path, *fragments):
    refused_as(lambda: read_labels(path), *fragments, kind=ImageError)


# -------------------- labels


def test_labels_name_files_beside_the_list(labels, tmp_path):
    path = labels([{"file": "a.png", "indices": [3]}, {"file": "sub/b.png", "indices": [1, 2, 2]}])
    assert read_labels(path) == [
        LabelledImage(tmp_path / "images" / "a.png", frozenset({3})),
        LabelledImage(tmp_path / "images" / "sub" / "b.png", frozenset({1, 2})),
    ]


def test_imagenet_indices_are_read_and_further_keys_ignored(labels):
    path = labels([{"file": "a.jpg", "imagenet_indices": [281, 282], "class": "cat", "licence": "CC0"}])
    assert read_labels(path)[0].accepted == {281, 282}


def test_the_shipped_labels_fit_their_images(digit_images):
    shipped = read_labels(ASSETS / "digits" / "labels.json")
    assert sorted(image.path for image in shipped) == digit_images
    for image in shipped:
        assert image.accepted == {int(image.path.stem.rpartition("_")[2])}


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{",
        "null",
        "3",
        '"text"',
        {},
        {"file": "a.png", "indices": [1]},
        ["a.png"],
        [["a.png", 1]],
        [{}],
        [{"file": "a.png"}],
        [{"indices": [1]}],
        [{"file": "a.png", "indices": None}],
        [{"file": "a.png", "indices": 3}],
        [{"file": "a.png", "indices": ["cat"]}],
        [{"file": "a.png", "indices": [[1]]}],
        '[{"file": "a.png", "indices": [Infinity]}]',
        '[{"file": "a.png", "indices": [NaN]}]',
        b"\xff\xfe\x00",
        "[" * 100_000,
        [{"file": "a\0b.png", "indices": [1]}],
    ],
    ids=lambda data: repr(data)[:40],
)
def test_what_is_no_list_of_labels_is_refused(labels, data):
    refused(labels(data), "labels.json", "list of labels")


def test_an_empty_list_is_refused(labels):
    """Nothing to be right about: any accuracy would be made up."""
    refused(labels([]), "labels.json")


def test_a_missing_list_and_a_folder_are_refused(tmp_path):
    refused(tmp_path / "labels.json", "labels.json")
    refused(tmp_path, "list of labels", "it is a folder")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "..", "../a\nb.png"])
def test_a_file_name_cannot_leave_the_folder(labels, name):
    refused(labels([{"file": "fine.png", "indices": [1]}, {"file": name, "indices": [1]}]), "leaves the image folder")


def test_a_link_cannot_leave_the_folder(labels, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "images" / "a.png").symlink_to(tmp_path / "secret.png")
    refused(labels([{"file": "a.png", "indices": [1]}]), "leaves the image folder")


# -------------------- figures

#: Three images, three classes: the dense model says 0, 1, 2; the pruned one 0, 2, 2.
DENSE = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]))
PRUNED = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.25, 0.25, 0.5]]))


def scored(logits, *accepted, dense=DENSE):
    """The pruned model's top-1 and its figures against dense."""
    content = np.zeros((len(dense), 32), np.uint8)
    answers = class_answers([Outputs(one, ()) for one in (dense, logits)], content)
    names = [f"image {index}" for index in range(len(dense))]
    return share(hits(answers.best[1][:, :1], accepted)), against_dense(answers, 1, names, accepted, None, 0)


def test_figures_by_hand():
    top1, against = scored(PRUNED, {0}, {1}, {1, 2})
    assert (top1.count, top1.total) == (2, 3)
    assert against.agreement.value == pytest.approx(2 / 3)
    assert (against.change.gained, against.change.lost) == (0, 1)
    second = 0.6 * math.log(0.6 / 0.2) + 0.2 * math.log(0.2 / 0.6)
    third = 2 * 0.1 * math.log(0.1 / 0.25) + 0.8 * math.log(0.8 / 0.5)
    assert against.kl.value == pytest.approx((0 + second + third) / 3)
    assert [one.image for one in against.worst] == ["image 1", "image 2"]


def test_any_accepted_class_is_right_and_others_are_wrong():
    assert scored(PRUNED, {0, 1}, {2}, {2, 5})[0].count == 3
    assert scored(PRUNED, {1}, {0, 1}, set())[0].count == 0


def test_the_dense_model_agrees_with_itself():
    top1, against = scored(DENSE, {0}, {1}, {2})
    assert (top1.value, against.agreement.value, against.kl.value, against.worst) == (1, 1, 0, ())


def test_logits_and_not_probabilities_are_compared():
    """An offset per image changes no probability."""
    shifted, labels = PRUNED + np.array([[100.0], [-50.0], [3.0]]), ({0}, {1}, {2})
    assert scored(shifted, *labels)[1].kl.value == pytest.approx(scored(PRUNED, *labels)[1].kl.value)


def test_certainty_gives_no_infinite_divergence():
    sure = np.float32([[2000.0, 0.0], [0.0, 2000.0]])
    _, against = scored(sure[::-1], {0}, {1}, dense=sure)
    assert np.isfinite(against.kl.value)
    assert against.kl.value > 100
    assert against.agreement.value == 0


def test_a_label_for_every_image():
    with pytest.raises(ValueError, match="zip"):
        scored(DENSE, {0})
