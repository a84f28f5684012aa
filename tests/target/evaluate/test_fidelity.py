"""Accuracy: labels that may come from anywhere, and figures against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ztdeploy.core.errors import ImageError
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.target.evaluate.accuracy import accuracy, all_logits, all_pixels
from ztdeploy.target.evaluate.labels import LabelledImage, read_labels
from ztdeploy.target.runtime.runner import load


@pytest.fixture
def labels(tmp_path):
    """Writes a list of labels (text, bytes, or what becomes JSON) and returns its path."""

    def write(data):
        path = tmp_path / "labels.json"
        content = data if isinstance(data, bytes | str) else json.dumps(data)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def images(*accepted, tmp="nowhere.png"):
    return [LabelledImage(tmp, frozenset(indices)) for indices in accepted]


def refused(path, *fragments):
    with pytest.raises(ImageError) as caught:
        read_labels(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert all(fragment in message for fragment in fragments), message


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


def test_figures_by_hand():
    result = accuracy(PRUNED, DENSE, images({0}, {1}, {1, 2}))
    assert (result.images, result.correct) == (3, 2)
    assert result.top1 == pytest.approx(2 / 3)
    assert result.agreement == pytest.approx(2 / 3)
    second = 0.6 * math.log(0.6 / 0.2) + 0.2 * math.log(0.2 / 0.6)
    third = 2 * 0.1 * math.log(0.1 / 0.25) + 0.8 * math.log(0.8 / 0.5)
    assert result.kl == pytest.approx((0 + second + third) / 3)


def test_any_accepted_class_is_right_and_others_are_wrong():
    assert accuracy(PRUNED, DENSE, images({0, 1}, {2}, {2, 5})).correct == 3
    assert accuracy(PRUNED, DENSE, images({1}, {0, 1}, set())).correct == 0


def test_the_dense_model_agrees_with_itself():
    result = accuracy(DENSE, DENSE, images({0}, {1}, {2}))
    assert (result.top1, result.agreement, result.kl) == (1, 1, 0)


def test_logits_and_not_probabilities_are_compared():
    """An offset per image changes no probability."""
    shifted = PRUNED + np.array([[100.0], [-50.0], [3.0]])
    labelled = images({0}, {1}, {2})
    assert accuracy(shifted, DENSE, labelled).kl == pytest.approx(accuracy(PRUNED, DENSE, labelled).kl)


def test_certainty_gives_no_infinite_divergence():
    sure = np.float32([[2000.0, 0.0], [0.0, 2000.0]])
    result = accuracy(sure[::-1], sure, images({0}, {1}))
    assert np.isfinite(result.kl)
    assert result.kl > 100
    assert result.agreement == 0


def test_a_label_for_every_image():
    with pytest.raises(ValueError, match="zip"):
        accuracy(DENSE, DENSE, images({0}))


# -------------------- on an engine


def test_engines_are_scored_in_chunks_of_any_remainder(digits_bundle):
    labelled = read_labels(ASSETS / "digits" / "labels.json")[:70]
    with load(digits_bundle, keep_ratio=1, threads=1) as runner:
        pixels = all_pixels(runner, labelled)
        dense = all_logits(runner, pixels)
        assert pixels.shape == (70, 32, 32, 3)
        assert dense.shape == (70, 10)
        np.testing.assert_allclose(dense[33], runner.infer(pixels[33:34]).logits[0], atol=1e-4)
        runner.switch(0.5)
        pruned = accuracy(all_logits(runner, pixels), dense, labelled)
    assert accuracy(dense, dense, labelled).top1 > 0.9
    assert 0.5 < pruned.top1 < 1 + 1e-9
    assert pruned.kl > 0
