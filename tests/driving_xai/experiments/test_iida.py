"""Tables 2 and 4 of Iida et al. at a tiny scale, and the stand-in they run on."""

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
from driving_xai.experiments import iida
from driving_xai.experiments.iida import Iida, _plan, _recipe, table2, table4
from driving_xai.experiments.iida_failures import failures
from driving_xai.experiments.image_sets import NamedImages
from driving_xai.experiments.runs import each_run
from driving_xai.experiments.stand_ins import Spots, spotted_discs

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
        if name not in ("network", "confusions", "failures"):
            assert set(values) == {"ID", "ID, RISE", "PID 1", "PID 2", "PID 4", "PID 8", "PID 16"}
            assert all(-1 <= each["mean"] <= 1 for each in values.values())
    assert "paper, IDRiD: labn" in (out / "table.md").read_text()
    counts = results["runs"][0]
    assert sum(counts["confusions"].values()) == 8
    assert sum(counts["failures"][kind] for kind in ("IP", "OA", "IA", "WA")) == counts["failures"]["failed"]
    assert "| TN |" in (out / "table.md").read_text()
    assert "| OA: more than half of the image is highlighted |" in (out / "table.md").read_text()


def test_failures_are_told_apart_one_by_one():
    """Five maps whose kind is plain, one for each, and one that is no failure."""
    maps = torch.zeros(5, 10, 10)
    maps[1] = 0.9
    maps[2, 0, 0] = 0.9
    maps[3, :4] = 0.9
    maps[4] = 0.9
    score, right = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.3]), torch.tensor([False, True, True, True, True])
    found = failures(score, right, maps, highlighted=0.2)
    assert found == {"explained": 5, "failed": 4, "IP": 1, "OA": 1, "IA": 1, "WA": 1}


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


SCORES = ("ID", "PID 1", "PID 2", "PID 4", "PID 8", "PID 16")


def _kept(out, experiment: str, how: Iida, variants: tuple[str, ...]) -> list:
    """Runs as an earlier call left them: numbers drawn, nothing trained."""
    images = spotted_discs(train=16, val=4, test=8, how=how.spots, seed=0)
    name = "spotted discs (synthetic stand-in for IDRiD and DeFN)"
    plan = _plan(
        experiment, how, NamedImages(images=images, described={"name": name, "sha256": images.sha256})
    )

    def drawn(seed: int):
        draw = np.random.default_rng(seed)
        scores = ("ID, RISE", *SCORES, "accuracy")
        return {each: {score: float(draw.normal()) for score in scores} for each in variants}

    return each_run(out / "runs", plan, how.seeds, drawn)


def _values(runs, variant: str, score: str) -> np.ndarray:
    return np.array([run[variant][score] for run in runs])


def _agrees(test, differences: np.ndarray, text: str) -> None:
    """SciPy's exact test and interval, an effect by hand, and all in a row of the table."""
    assert test["difference"] == pytest.approx(differences.mean())
    assert test["p"] == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
    ranks = stats.rankdata(abs(differences))
    effect = (ranks[differences > 0].sum() - ranks[differences < 0].sum()) / ranks.sum()
    assert test["rank_biserial"] == pytest.approx(effect)
    within = stats.ttest_1samp(differences, 0).confidence_interval()
    assert (test["interval"]["low"], test["interval"]["high"]) == pytest.approx(tuple(within))
    score = test["ours"] if " - " in test["quantity"] else test["quantity"]
    cells = f"{differences.mean():+.3f} | {within.low:+.3f} to {within.high:+.3f} | {test['p']:.3f} | {effect:+.2f}"
    assert f"| {score} | {cells} |" in text


def test_table2_tests_the_papers_claims_on_runs_that_are_kept(tmp_path):
    how = replace(HOW, seeds=8)
    exact, coarse = "causes, exact", "causes, coarse"
    runs = _kept(
        tmp_path,
        "iida-table2",
        how,
        ("network", "rise", "lambda-attention", "labn", "grad-cam", "random", "centre-prior", exact, coarse),
    )
    results = table2(None, tmp_path, how)
    assert not (tmp_path / "models").exists()
    tests = {(each["ours"], each["theirs"], each["quantity"]): each for each in results["tests"]}
    assert len(results["tests"]) == len(tests) == 4 * 6 + 4
    text = (tmp_path / "table.md").read_text()
    separation = {score: _values(runs, exact, score) - _values(runs, coarse, score) for score in SCORES}
    for score in SCORES:
        _agrees(tests[exact, coarse, score], separation[score], text)
        for other in ("rise", "grad-cam", "random"):
            differences = _values(runs, "labn", score) - _values(runs, other, score)
            _agrees(tests["labn", other, score], differences, text)
    for score in SCORES[2:]:
        grown = separation[score] - separation["PID 1"]
        _agrees(tests[score, "PID 1", f"{exact} - {coarse}"], grown, text)


def test_table4_tests_each_condition_against_neither(tmp_path):
    how = replace(HOW, seeds=8)
    runs = _kept(tmp_path, "iida-table4", how, ("neither", "bias image", "divergence", "both"))
    results = table4(None, tmp_path, how)
    text = (tmp_path / "table.md").read_text()
    assert len(results["tests"]) == 3 * 6
    for each in results["tests"]:
        assert each["theirs"] == "neither"
        ours, theirs = (_values(runs, name, each["quantity"]) for name in (each["ours"], "neither"))
        _agrees(each, ours - theirs, text)


def test_a_single_run_has_neither_test_nor_interval(compared):
    out, results = compared
    assert {each["p"] for each in results["tests"]} == {None}
    means = [each for row in results["means"].values() for each in row.values()]
    reasons = [each["interval"]["reason"] for each in (*results["tests"], *means)]
    assert set(reasons) == {"a single run says nothing about others"}
    rows = (out / "table.md").read_text().split("| difference |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) == len(results["tests"])
    assert all(row.endswith(" | - | - | - |") for row in rows)


def test_networks_that_were_trained_otherwise_are_refused(compared, tmp_path):
    out, _ = compared
    shutil.copytree(out / "models", tmp_path / "models")
    with pytest.raises(CheckpointError, match="trained with another data; give another folder"):
        table2(None, tmp_path, replace(HOW, spots=replace(HOW.spots, noise=0.0)))


def test_a_class_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="positive is 'ill'; the classes are clear, spotted"):
        table2(None, tmp_path, replace(HOW, positive="ill"))


def test_a_further_method_is_scored_with_its_options(compared, tmp_path):
    out, usual = compared
    shutil.copytree(out / "models", tmp_path / "models")
    how = replace(HOW, methods=("rise@coarse",), options={"rise@coarse": {"grid": 2}})
    results = table2(None, tmp_path, how)
    for name in ("rise", "labn", "random"):
        assert results["runs"][0][name] == usual["runs"][0][name]
    assert results["runs"][0]["rise@coarse"] != usual["runs"][0]["rise"]
    assert "| rise@coarse |" in (tmp_path / "table.md").read_text()


def test_each_side_takes_its_own_step(compared, monkeypatch):
    """The authors' (m, step) pairs: what the curves are asked for."""
    asked = {}
    usual = iida.patch_insertion_deletion

    def noted(*arguments, patch_px, patches_per_step, **options):
        asked.setdefault(patch_px, set()).add(patches_per_step)
        return usual(*arguments, patch_px=patch_px, patches_per_step=patches_per_step, **options)

    monkeypatch.setattr(iida, "patch_insertion_deletion", noted)
    out, _ = compared
    model = checkpoint.load(out / "models" / "both-0").model
    frames, maps, classes = torch.rand(2, 3, 24, 24), torch.rand(2, 24, 24), torch.ones(2, dtype=torch.int64)
    for steps, expected in (((), (144, 36, 9, 3, 1)), ((500, 100, 20, 5, 2), (500, 100, 20, 5, 2))):
        asked.clear()
        how = replace(HOW, fill="black", patches_per_step=steps)
        iida._scores_of_frames(None, model, frames, maps, classes, how, 0)
        assert asked == {side: {step} for side, step in zip((1, 2, 4, 8, 16), expected, strict=True)}
    with pytest.raises(ValueError, match=r"got patches_per_step \[5\]; expected a number from 1 on"):
        Iida(patches_per_step=(5,))
