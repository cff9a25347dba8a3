"""The accuracy experiment: every image tested once, numbers by hand, with the papers'."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from driving_xai import checkpoint
from driving_xai.data.images import LabelledImages
from driving_xai.data.splits import FoldOut
from driving_xai.errors import CheckpointError, DataError
from driving_xai.experiments.zhu_accuracy import ZhuAccuracy, _interval, run
from driving_xai.models.actions import ActionConfig
from driving_xai.training.actions import ActionTraining

MODEL = ActionConfig(
    backbone="vit_tiny_patch16_224", patch_px=8, embed_dim=24, depth=2, heads=3, blocks=2, image_size=(24, 40)
)
HOW = ZhuAccuracy(
    folds=3,
    training=ActionTraining(
        model=MODEL, short_side_px=24, epochs=2, batch_size=8, calibrate="f1", learning_rate=1.0
    ),
)


@pytest.fixture(scope="module")
def shards(streets: Path) -> Path:
    return streets


def test_every_image_is_tested_once_and_the_numbers_are_those_of_the_models(shards, tmp_path) -> None:
    results = run(shards, tmp_path, HOW, device="cpu")
    truth = LabelledImages(shards).labels(MODEL.actions).numpy() > 0
    said = np.zeros_like(truth)
    for fold in range(3):
        folder = tmp_path / f"fold-{fold}"
        predicted = pd.read_parquet(folder / "predictions.parquet").query("split == 'test'")
        thresholds = checkpoint.load(folder).metrics["thresholds"]
        for k, name in enumerate(MODEL.actions):
            said[predicted["index_row"], k] = predicted[name] > thresholds[name]
    assert results["images"] == 40
    assert results["model"]["accuracy"] == pytest.approx((said == truth).mean())
    hits = (said & truth)[:, 2].sum()
    assert results["model"]["f1"]["left"] == pytest.approx(
        2 * hits / max((said[:, 2].sum() + truth[:, 2].sum()), 1)
    )
    assert (
        results["accuracy_interval"]["low"]
        <= results["model"]["accuracy"]
        <= results["accuracy_interval"]["high"]
    )
    assert len(list((tmp_path / "features").iterdir())) == 2, "folds share their features"
    table = (tmp_path / "table.md").read_text()
    assert "| Zhu et al. 2024 (BDD-OIA) | 0.746 | - |" in table
    assert "| 0.718 | 0.734 |" in table

    before = (tmp_path / "fold-0" / "model.safetensors").stat().st_mtime_ns
    assert run(shards, tmp_path, HOW, device="cpu") == results
    assert (tmp_path / "fold-0" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="trained with another training"):
        run(shards, tmp_path, replace(HOW, training=replace(HOW.training, seed=1)), device="cpu")


def test_without_folds_prep_s_split_is_tested(shards, tmp_path) -> None:
    results = run(shards, tmp_path, replace(HOW, folds=0), device="cpu")
    assert results["images"] == 8
    assert (tmp_path / "whole" / "model.safetensors").exists()


def test_an_interval_draws_whole_groups() -> None:
    """Two groups of equal values: the mean is one of three, and 95 % of draws hold all of them."""
    values, groups = np.array([0.0] * 5 + [1.0] * 5), np.array(["a"] * 5 + ["b"] * 5)
    assert _interval(values, groups, 0) == {"low": 0.0, "high": 1.0}
    assert _interval(np.ones(10), groups, 0) == {"low": 1.0, "high": 1.0}
    apart = _interval(values, np.arange(10), 0)
    assert 0.1 < apart["low"] < 0.5 < apart["high"] < 0.9


def test_nothing_to_test_is_said_before_anything_is_trained(shards, tmp_path, monkeypatch) -> None:
    def without_test(held_out: FoldOut, index: pd.DataFrame) -> np.ndarray:
        return np.full(len(index), "train")

    monkeypatch.setattr(FoldOut, "splits", without_test)
    with pytest.raises(DataError, match="no image to test in split `test`"):
        run(shards, tmp_path / "out", replace(HOW, folds=0), device="cpu")
    assert not (tmp_path / "out").exists()


def test_one_fold_is_none() -> None:
    with pytest.raises(ValueError, match="expected 0, or at least 2"):
        ZhuAccuracy(folds=1)
