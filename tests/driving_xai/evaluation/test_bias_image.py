"""PID as in its paper, from `score`: on the bias image, of the true class, of positives alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import driving_xai as dx
from data_prep.prepare import PrepConfig, prepare
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.images import LabelledImages
from driving_xai.errors import DataError, OptionError
from driving_xai.evaluation.api import evaluate
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.run import score
from driving_xai.explain.gradient import Gradient
from driving_xai.metrics.batch import EvalBatch
from driving_xai.metrics.curves import area, both_ways, rank
from driving_xai.metrics.faithfulness import PID
from driving_xai.metrics.perturbation_curves import patch_ranks
from driving_xai.models.foreign import as_checkpoint
from driving_xai.targets import output

SIDE, PATCH = 24, 8


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Sixteen images of two classes, in the three splits."""
    root, drawn = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (root / "raw" / name).mkdir(parents=True)
        for number in range(8):
            picture = drawn.normal(level, 30, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(root / "raw" / name / f"{number}.png"), picture)
    prepare(PrepConfig(reader="image-folder", source=root / "raw"), root / "shards")
    return root / "shards"


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return as_checkpoint(dx.wrap(net.eval(), outputs="multiclass", names=("light", "dark")))


def test_it_equals_one_patch_after_the_other(classes, model, tmp_path):
    """A slow twin of eqs. 14 to 16, from the shards on; the model's classes stand in another order than theirs."""
    config = ScoreConfig(
        methods=("gradient",),
        measures=(f"pid-{PATCH}",),
        fill="bias-image",
        target="true-class",
        only_label="dark",
        split="all",
    )
    found = score(model, classes, tmp_path / "out", config)
    rows = found.select(method="gradient", measure=f"pid-{PATCH}", reference="target").sort_values("frame")
    images = LabelledImages(classes)
    bias = images.frames(images.rows("train")).double().mean(0).float()
    positive = np.flatnonzero(images.labels(["dark"])[:, 0].numpy())
    assert rows["frame"].tolist() == positive.tolist()
    assert set(rows["target"]) == {"dark"}
    for number, value in zip(rows["frame"], rows["value"], strict=True):
        frame = images.frames(np.array([number]))
        saliency = Gradient()(model.model, frame, output(1))
        order = rank(saliency, torch.Generator().manual_seed(0))
        places = patch_ranks(order, (SIDE, SIDE), PATCH).view(SIDE, SIDE)
        heights = []
        for count in range(10):
            inserted = torch.where(places < count, frame, bias)
            deleted = torch.where(places < count, bias, frame)
            with torch.no_grad():
                shown, left = (model.model(each).softmax(1)[0, 1].item() for each in (inserted, deleted))
            heights.append(shown - left)
        expected = area([count / 9 for count in range(10)], np.array(heights))
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-6)
    described = found.summary["measures"][f"pid-{PATCH}"]["fill"]
    assert described == {"insertion": "bias-image", "deletion": "bias-image"}


def test_without_training_images_it_is_refused(model):
    net, frames = model.model, torch.rand(1, 3, SIDE, SIDE)
    with pytest.raises(DataError, match="fill 'bias-image' is the mean of training images"):
        PID(fill="bias-image")(net, frames, frames[:, 0], output(0))
    batch = EvalBatch.of(net, frames, output(0))._replace(bias_image=torch.zeros(3, SIDE, SIDE))
    size = (SIDE, SIDE)
    expected = both_ways(
        size, insertion_fill=batch.bias_image, deletion_fill=batch.bias_image, patch_px=PATCH
    )
    assert PID(fill="bias-image", patch_px=PATCH).curves(batch) == expected


def test_images_that_are_not_scored_may_have_no_class(classes, model, tmp_path, monkeypatch):
    images = LabelledImages(classes)
    unlabelled = int(np.flatnonzero(images.labels(["light"])[:, 0].numpy())[0])
    read = LabelledImages.labels

    def labels(self, names):
        found = read(self, names).clone()
        found[unlabelled] = 0
        return found

    monkeypatch.setattr(LabelledImages, "labels", labels)
    config = {"methods": ("gradient",), "target": "true-class", "split": "all"}
    found = score(model, classes, tmp_path / "out", ScoreConfig(only_label="dark", **config))
    assert set(found.per_frame["target"]) == {"dark"}
    with pytest.raises(DataError, match=f"image {unlabelled} of the index has 0 classes"):
        score(model, classes, tmp_path / "refused", ScoreConfig(**config))


@pytest.mark.parametrize("fill", ["bias-image", ("black", "bias-image")])
def test_frames_in_memory_have_no_bias_image_and_are_refused_at_once(model, fill):
    with pytest.raises(ValueError, match=r"'bias-image' for frames in memory.*give a folder of images"):
        evaluate(model.model, torch.rand(2, 3, SIDE, SIDE), methods=("gradient",), fill=fill)


def test_what_drives_and_other_measures_cannot_have_is_refused(classes, shards, model, steering, tmp_path):
    for settings, message in (
        ({"fill": "bias-image"}, "and this model steers"),
        ({"only_label": "dark"}, "chooses among images"),
        ({"target": "true-class"}, "target 'true-class' is unknown"),
    ):
        with pytest.raises(DataError, match=message):
            score(
                steering(),
                shards,
                tmp_path / "drive",
                ScoreConfig(methods=("gradient",), split="all", **settings),
            )
    for settings, error, message in (
        ({"only_label": "grey"}, DataError, "has no label 'grey'; it has dark, light"),
        ({"fill": "bias-image", "measures": ("infidelity",)}, OptionError, "got fill 'bias-image'"),
    ):
        with pytest.raises(error, match=message):
            score(
                model, classes, tmp_path / "no", ScoreConfig(methods=("gradient",), split="all", **settings)
            )
