"""Tables 3 and 4 of An and Joe at a tiny scale: what they hold is what the measures say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from driving_xai import checkpoint
from driving_xai.errors import CheckpointError, DataError
from driving_xai.experiments import an
from driving_xai.experiments.an import OURS, An, _recipe, _tested_rows, tables
from driving_xai.experiments.an_networks import AnNetworks, accuracies, table2
from driving_xai.experiments.stand_ins import Clutter, digits_in_clutter
from driving_xai.explain.registry import fitted
from driving_xai.metrics.confidence import OfClass, average_drop, scores_of_weighted
from driving_xai.models.classify import ClassifierConfig
from driving_xai.targets import outputs_at
from driving_xai.training.attention import AttentionTraining

HOW = An(
    training=replace(
        _recipe(),
        epochs=1,
        model=ClassifierConfig(network="small-cnn", channels=(4, 8), pooled=2, reduction=4),
    ),
    attention=AttentionTraining(reduction=4, epochs=1),
    seeds=1,
    images=4,
    pictures=(24, 4, 6),
    clutter=Clutter(size_px=32, digit_px=(14, 16)),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("an")
    tables(None, folder, HOW)
    return folder


def test_a_cell_of_the_table_is_what_the_measure_says(out):
    results = json.loads((out / "results.json").read_text())
    source = digits_in_clutter(train=24, val=4, test=6, how=HOW.clutter, seed=0)
    model = checkpoint.load(out / "models" / "seed-0").model
    rows = np.random.default_rng(0).permutation(source.rows("test"))[:4]
    frames = source.frames(rows)
    with torch.no_grad():
        scores = model(frames)
    classes = scores.argmax(1)
    saliency = fitted(OURS, model)(model, frames, outputs_at(classes))
    value = OfClass(classes=classes)
    expected = average_drop(value(scores), value(scores_of_weighted(model, frames, saliency))).mean().item()
    assert results["means"][OURS]["drop"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert results["images"]["name"].startswith("digits in clutter")
    names = results["means"].keys()
    assert {f"{OURS} trained", f"{OURS} random weights", "grad-cam of a CBAM network", "random"} <= names


def test_the_other_table_comes_from_the_same_runs(out):
    made = (out / "models" / "seed-0" / "model.safetensors").stat().st_mtime_ns
    tables(None, out, HOW, table="table4")
    assert (out / "models" / "seed-0" / "model.safetensors").stat().st_mtime_ns == made
    text = (out / "table.md").read_text()
    assert "| grad-cam |" in text
    assert "| 8.9952 |" in text


def test_every_method_is_tested_with_its_effect(out, tmp_path, monkeypatch):
    """Eight runs of drawn numbers: interval, p and effect of every cell as SciPy has them, the effect by hand."""
    names = list(json.loads((out / "results.json").read_text())["means"])

    def drawn(_source, _out, _how, seed: int, _device, _given):
        draw, kinds = np.random.default_rng(seed), ("logit", "probability", "drop", "increase")
        shown = [f"{kind} {percent} %" for kind in kinds for percent in (5, 10, 20, 25, 50)]
        quantities = ("drop", "increase", *shown)
        return {name: {each: float(draw.normal()) for each in quantities} for name in names}

    monkeypatch.setattr(an, "_run", drawn)
    how = replace(HOW, seeds=8)
    results = tables(None, tmp_path, how)
    texts = [(tmp_path / "table.md").read_text()]
    tables(None, tmp_path, how, table="table4")
    texts.append((tmp_path / "table.md").read_text())
    cams = ("grad-cam", "grad-cam++", "smooth-grad-cam++", "xgrad-cam")
    for other in (*cams, "random", "centre-prior"):
        for place, quantity in ((0, "drop"), (0, "increase"), (1, "logit 5 %"), (1, "logit 50 %")):
            (test,) = (
                each for each in results["tests"] if (each["theirs"], each["quantity"]) == (other, quantity)
            )
            values = [[run[name][quantity] for run in results["runs"]] for name in (OURS, other)]
            differences = np.subtract(*values)
            assert test["p"] == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
            ranks = stats.rankdata(abs(differences))
            effect = (ranks @ np.sign(differences)) / ranks.sum()
            assert test["rank_biserial"] == pytest.approx(effect)
            within = stats.ttest_rel(*values).confidence_interval()
            assert (test["interval"]["low"], test["interval"]["high"]) == pytest.approx(tuple(within))
            mean, low, high = (
                f"{each:+{'.2f' if place == 0 else '.3f'}}" for each in (differences.mean(), *within)
            )
            cell = f"| {mean} ({low} to {high}), p {test['p']:.3f}, r {effect:+.2f} |"
            rows = [row for row in texts[place].splitlines() if row.startswith(f"| {other} | ")]
            assert any(cell in row for row in rows)


def test_networks_that_were_trained_otherwise_are_refused(out, tmp_path):
    shutil.copytree(out / "models", tmp_path / "models")
    otherwise = replace(HOW, training=replace(HOW.training, learning_rate=1e-4))
    with pytest.raises(CheckpointError, match="trained with another training; give another folder"):
        tables(None, tmp_path, otherwise)


def test_runs_of_one_network_share_no_image_and_name_it_by_its_weights(out, tmp_path, monkeypatch):
    fixed = An(
        checkpoint=str(out / "models" / "seed-0"),
        attention=HOW.attention,
        seeds=2,
        images=3,
        pictures=HOW.pictures,
        clutter=HOW.clutter,
    )
    tested = np.arange(100, 107)
    drawn = [_tested_rows(tested, fixed, seed) for seed in range(2)]
    assert [len(rows) for rows in drawn] == [3, 3]
    assert len(np.unique(np.concatenate(drawn))) == 6
    assert set(np.concatenate(drawn)) <= set(tested)
    with pytest.raises(DataError, match="2 runs of 4 images are 8, and there are 6 to test"):
        tables(None, tmp_path, replace(fixed, images=4))

    monkeypatch.setattr(an, "_measured", lambda *_: {"drop": 0.0, "increase": 0.0})
    monkeypatch.setattr(an, "_text", lambda *_: "")
    sha256 = checkpoint.load(out / "models" / "seed-0").sha256
    assert tables(None, tmp_path, fixed)["config"]["checkpoint"] == sha256
    # The same weights at another place are the same runs; others are not.
    shutil.copytree(out / "models" / "seed-0", tmp_path / "moved")
    tables(None, tmp_path, replace(fixed, checkpoint=str(tmp_path / "moved")))
    with pytest.raises(DataError, match="of another configuration"):
        tables(None, tmp_path, replace(fixed, checkpoint=str(out / "models" / "seed-0-cbam")))


def test_no_digit_serves_two_splits():
    """The stand-in's splits are drawn from digits of their own."""
    source = digits_in_clutter(train=30, val=10, test=20, how=HOW.clutter, seed=0)
    assert [len(source.rows(split)) for split in ("train", "val", "test")] == [30, 10, 20]
    again = digits_in_clutter(train=30, val=10, test=20, how=HOW.clutter, seed=0)
    assert source.sha256 == again.sha256
    assert source.sha256 != digits_in_clutter(train=30, val=10, test=20, how=HOW.clutter, seed=1).sha256


def test_further_methods_are_measured_with_options_of_their_own(out, tmp_path):
    shutil.copytree(out / "models", tmp_path / "models")
    fine = {"window_px": [4, 4], "stride_px": [4, 4]}
    how = replace(
        HOW, methods=("occlusion", "occlusion@fine"), options={"occlusion@fine": fine}, with_cbam=False
    )
    results = tables(None, tmp_path, how)
    usual, found = json.loads((out / "results.json").read_text())["runs"][0], results["runs"][0]
    for name in ("grad-cam", "smooth-grad-cam++", OURS, f"{OURS} trained", "random"):
        assert found[name] == usual[name], "the paper's methods stay as they were"
    assert found["occlusion"] != found["occlusion@fine"]
    assert "| occlusion@fine |" in (tmp_path / "table.md").read_text()
    with pytest.raises(DataError, match="of another configuration"):
        tables(None, tmp_path, replace(how, methods=(), options={}))


def test_table_2_counts_what_is_right_and_what_is_not_among_the_first_five():
    """Against one image after the other, in plain Python."""
    draw = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(40, 9, generator=draw), torch.randint(0, 4, (40,), generator=draw)
    orders = [sorted(range(9), key=lambda k: -row[k]) for row in scores.tolist()]
    right = [order[0] == label for order, label in zip(orders, labels.tolist(), strict=True)]
    missed = [label not in order[:5] for order, label in zip(orders, labels.tolist(), strict=True)]
    by_class = [
        np.mean([hit for hit, label in zip(right, labels.tolist(), strict=True) if label == each])
        for each in range(4)
    ]
    found = accuracies(scores, labels)
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert found["class_mean_accuracy"] == pytest.approx(np.mean(by_class))
    assert found["top5_error"] == pytest.approx(np.mean(missed))


def test_given_networks_are_compared_on_the_same_images(out, tmp_path):
    networks = tuple(str(out / "models" / name) for name in ("seed-0", "seed-0-cbam"))
    how = AnNetworks(networks=networks, pictures=HOW.pictures, clutter=HOW.clutter)
    results = table2(None, tmp_path, how)
    assert len(results["runs"]) == 1
    assert set(results["means"]) == set(networks)
    usual = json.loads((out / "results.json").read_text())["accuracy"]
    assert usual is not None
    bounds = results["over_images"][networks[0]]
    accuracy, count, z = results["means"][networks[0]]["accuracy"]["mean"], 6, stats.norm.ppf(0.975)
    centre = (accuracy + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * np.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2))
    assert (bounds["low"], bounds["high"]) == pytest.approx((centre - reach, centre + reach), abs=1e-9)
    assert "| paper: VGG19 | 0.9372 |  | 9.21 |" in (tmp_path / "table.md").read_text()
    with pytest.raises(ValueError, match="two networks or more"):
        AnNetworks(networks=networks[:1])
