"""Tables 2 and 4 of Iida et al. at a tiny scale, and the stand-in they run on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from driving_xai import checkpoint
from driving_xai.errors import CheckpointError, DataError
from driving_xai.experiments.iida import Iida, _recipe, table2, table4
from driving_xai.experiments.spots import Spots, spotted_discs

HOW = Iida(
    training=replace(_recipe(), epochs=1, batch_size=8),
    seeds=1,
    images=3,
    rise_masks=4,
    curve_steps=4,
    pictures=(16, 4, 8),
    spots=Spots(size_px=24),
)


def test_spots_are_dark_few_and_only_on_one_class():
    images = spotted_discs(train=40, val=0, test=0, how=Spots(noise=0.0, texture=0.0), seed=0)
    grey = images.pixels.float().mean(1) / 255
    for picture, cause, spotted in zip(grey, images.causes, images.classes, strict=True):
        assert bool(cause.any()) == bool(spotted)
        assert cause.float().mean() < 0.06
        if spotted:
            around = torch.nn.functional.max_pool2d(cause.float()[None, None], 7, 1, 3)[0, 0].bool() & ~cause
            assert picture[cause].mean() < picture[around].mean() - 0.1


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("iida")
    return out, table2(None, out, HOW)


def test_table2_compares_on_one_network(compared):
    out, results = compared
    assert json.loads((out / "results.json").read_text())["runs"] == json.loads(json.dumps(results["runs"]))
    means = results["means"]
    assert {"rise", "lambda-attention", "labn", "random", "causes, exact", "causes, coarse"} <= means.keys()
    for name, values in means.items():
        if name != "network":
            assert set(values) == {"ID", "ID, RISE", "PID 1", "PID 2", "PID 4", "PID 8", "PID 16"}
            assert all(-1 <= each["mean"] <= 1 for each in values.values())
    assert "paper, IDRiD: labn" in (out / "table.md").read_text()


def test_table4_trains_each_condition_with_its_losses(tmp_path):
    table4(None, tmp_path, HOW)
    found = {}
    for name in ("neither", "bias-image", "divergence", "both"):
        config = checkpoint.load(tmp_path / "models" / f"{name}-0").config
        found[name] = (
            config["training"]["labn"]["divergence_weight"],
            config["training"]["labn"]["bias_image"],
        )
    assert found == {
        "neither": (0.0, "mask-only"),
        "bias-image": (0.0, "negative-sample"),
        "divergence": (1.0, "mask-only"),
        "both": (1.0, "negative-sample"),
    }


def test_networks_that_were_trained_otherwise_are_refused(compared, tmp_path):
    out, _ = compared
    shutil.copytree(out / "models", tmp_path / "models")
    with pytest.raises(CheckpointError, match="trained with another data; give another folder"):
        table2(None, tmp_path, replace(HOW, spots=replace(HOW.spots, noise=0.0)))


def test_a_class_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="positive is 'ill'; the classes are clear, spotted"):
        table2(None, tmp_path, replace(HOW, positive="ill"))
