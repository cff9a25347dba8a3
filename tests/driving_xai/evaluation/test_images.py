"""Scoring single images: against a slow twin, for one output or for each that is predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from data_prep.prepare import PrepConfig, prepare
from data_prep.shards.atomic import sha256_of
from driving_xai.data.images import LabelledImages
from driving_xai.errors import CheckpointError, DataError
from driving_xai.evaluation import job
from driving_xai.evaluation.run import ScoreConfig, score
from driving_xai.evaluation.sanity import PER_FRAME, SanityConfig, check
from driving_xai.explain.registry import fitted
from driving_xai.metrics.curves import rank
from driving_xai.metrics.localisation import auroc
from driving_xai.targets import output

METHODS = ("gradient", "occlusion")
HEIGHT, WIDTH = 48, 80


@pytest.fixture(scope="module")
def scored(actions, streets, tmp_path_factory):
    measures = ("deletion", "average-drop", "increase", "percentage-in", "pid-8", "auroc")
    config = ScoreConfig(methods=METHODS, measures=measures, split="all", every=9, target="left")
    return score(actions(), streets, tmp_path_factory.mktemp("scores") / "out", config)


def test_a_curve_is_the_probability_of_the_explained_output(scored, actions, streets):
    """One edited image, one forward pass at a time, from the shards on."""
    model, images = actions().model, LabelledImages(streets)
    for method in METHODS:
        rows = scored.select(method=method, measure="deletion", reference="target")
        for place in (0, 3):
            number = int(rows["frame"][place])
            frame = images.frames(np.array([number]))
            saliency = fitted(method, model)(model, frame, output(2))
            order = rank(saliency, torch.Generator().manual_seed(0)).view(HEIGHT, WIDTH)
            curve = []
            for percent in range(26):
                edited = frame * (order >= round(percent / 100 * HEIGHT * WIDTH))
                with torch.no_grad():
                    curve.append(torch.sigmoid(model(edited))[0, 2].item())
            np.testing.assert_allclose(rows["curve"][place], curve, rtol=1e-4)
            mean_height = np.trapezoid(curve, dx=0.01) / 0.25
            assert rows["value"][place] == pytest.approx(mean_height, rel=1e-3), "a percent is no whole pixel"
            assert rows["prediction"][place] == pytest.approx(curve[0], rel=1e-4)
            truth = images.labels(("left",))[number].item()
            assert rows["error"][place] == pytest.approx(abs(truth - curve[0]), rel=1e-4)


def test_what_a_number_means_is_said_in_its_own_unit(scored):
    assert scored.summary["measures"]["deletion"]["unit"] == "probability"
    assert scored.summary["measures"]["deletion"]["faithful"] == "low"
    assert scored.summary["measures"]["pid-8"]["faithful"] == "high"
    assert scored.summary["measures"]["average-drop"]["unit"] == "percent"
    assert scored.summary["prediction"]["unit"] == "probability"
    assert scored.summary["intervals"]["block"] == 1
    assert set(scored.per_frame["target"]) == {"left"}
    assert scored.summary["data"]["scored"] == 5


def test_drop_and_increase_exclude_each_other(scored):
    for method in (*METHODS, "random"):
        drop, rise, shown = (
            scored.select(method=method, measure=name, reference="target")
            for name in ("average-drop", "increase", "percentage-in")
        )
        assert ((drop["value"] > 0) != (rise["value"] == 100)).all()
        assert drop["value"].between(0, 100).all()
        np.testing.assert_allclose(shown["value"], np.stack(shown["curve"]).mean(1), rtol=1e-5)


def test_localisation_is_against_the_pixels_of_the_explained_output(scored, actions, streets):
    images = LabelledImages(streets)
    rows = scored.select(method="centre-prior", measure="auroc", reference="cause")
    number = int(rows["frame"][2])
    frame = images.frames(np.array([number]))
    saliency = fitted("centre-prior", actions().model)(actions().model, frame, output(2))
    causes = torch.from_numpy(images.causes(np.array([number]))[:, 2])
    expected = auroc(saliency, rank(saliency, torch.Generator().manual_seed(0)), causes)
    np.testing.assert_allclose(rows["value"][2], expected.value.item())


def test_accuracy_while_masked_is_of_all_labels(actions, streets, tmp_path):
    """Both areas from the definition, on the model's own forward passes; tokens against an edited ViT."""
    loaded, images = actions(), LabelledImages(streets)
    measures = ("aupc", "log-odds", "aupc-token", "log-odds-attention")
    config = ScoreConfig(methods=("gradient",), measures=measures, split="all", every=4, resamples=50)
    found = score(loaded, streets, tmp_path / "out", config)
    rows = found.select(method="gradient", measure="aupc", reference="labels")
    labels = images.labels(loaded.model.outputs.names)[rows["frame"].tolist()]
    for place, number in enumerate(rows["frame"]):
        frame = images.frames(np.array([number]))
        column = loaded.model(frame).argmax().item()
        saliency = fitted("gradient", loaded.model)(loaded.model, frame, output(column))
        order = rank(saliency, torch.Generator().manual_seed(0)).view(HEIGHT, WIDTH)
        curve = []
        for step in range(10):
            gone = order < round(step * 0.2 / 9 * HEIGHT * WIDTH)
            edited = torch.where(gone, frame.mean((2, 3), keepdim=True), frame)
            with torch.no_grad():
                right = (loaded.model(edited)[0] > 0) == (labels[place] > 0)
            curve.append(right.float().mean().item())
        np.testing.assert_allclose(rows["curve"][place], curve)
    mean = np.stack(rows["curve"]).mean(0)
    scores = {(each["measure"], each["method"]): each for each in found.summary["scores"]}
    assert scores["aupc", "gradient"]["value"]["mean"] == pytest.approx(100 * mean.sum())
    log_odds = scores["log-odds", "gradient"]["value"]
    assert log_odds["mean"] == pytest.approx(np.log(mean[1:] / mean[0]).sum(), rel=1e-6)
    assert log_odds["low"] <= log_odds["mean"] <= log_odds["high"]
    tokens = found.select(method="gradient", measure="aupc-token", reference="labels")
    np.testing.assert_array_equal(np.stack(tokens["curve"])[:, 0], np.stack(rows["curve"])[:, 0])
    names = {(each["measure"], each["control"]) for each in found.summary["differences"]}
    assert names == {(measure, control) for measure in measures for control in ("random", "centre-prior")}
    assert found.per_frame[found.per_frame["measure"] == "log-odds"]["value"].isna().all()
    assert found.summary["measures"]["aupc"]["fill"] == "mean"
    assert "fill" not in found.summary["measures"]["aupc-token"], "embeddings are zero, no pixel is filled"


def test_every_predicted_output_is_explained_by_itself(actions, streets, tmp_path):
    loaded, images = actions(), LabelledImages(streets)
    config = ScoreConfig(methods=("gradient",), split="all", every=5, target="every-predicted", batch_size=3)
    found = score(loaded, streets, tmp_path / "out", config)
    with torch.no_grad():
        logits = loaded.model(images.frames(np.arange(0, 40, 5)))
    expected = {
        (5 * number, loaded.model.outputs.names[column]) for number, column in (logits > 0).nonzero().tolist()
    }
    assert len({name for _, name in expected}) > 1, "the random weights say several things"
    rows = found.select(method="gradient", measure="deletion", reference="target")
    assert set(zip(rows["frame"], rows["target"], strict=True)) == expected
    assert (rows["prediction"] > 0.5).all()
    one = score(
        loaded,
        streets,
        tmp_path / "one",
        ScoreConfig(methods=("gradient",), split="all", every=5, target="stop"),
    )
    stop = rows[rows["target"] == "stop"].set_index("frame")["value"]
    alone = one.select(method="gradient", measure="deletion", reference="target").set_index("frame")["value"]
    np.testing.assert_allclose(stop, alone[stop.index], rtol=1e-4)


def _with_thresholds(loaded, threshold):
    """The same checkpoint, where an output counts as predicted over another probability."""
    known = dict.fromkeys(loaded.model.outputs.names, threshold)
    return replace(loaded, metrics={"thresholds": known})


def test_batches_without_a_predicted_output_are_passed_over(actions, streets, tmp_path):
    loaded = actions()
    with torch.no_grad():
        scores = loaded.model(LabelledImages(streets).frames(np.arange(0, 40, 5)))
    highest = torch.sigmoid(scores).max().item()
    config = ScoreConfig(
        methods=("gradient",), split="all", every=5, target="every-predicted", batch_size=2, resamples=10
    )
    few = score(_with_thresholds(loaded, highest - 1e-6), streets, tmp_path / "few", config)
    assert few.summary["data"]["scored"] == 1, "one of four batches says anything"
    with pytest.raises(DataError, match="nothing is predicted in any of 8 images"):
        score(_with_thresholds(loaded, 1.0), streets, tmp_path / "none", config)


def test_other_settings_or_thresholds_are_another_run(actions, streets, tmp_path):
    loaded = actions()
    config = ScoreConfig(methods=("random",), split="all", every=20, resamples=10)
    found = score(loaded, streets, tmp_path / "out", config)
    assert found.summary["data"]["thresholds"] == dict.fromkeys(loaded.model.outputs.names, 0.5)
    score(loaded, streets, tmp_path / "out", config, resume=True)
    other = replace(loaded, config={**loaded.config, "input": {"short_side_px": 48}})
    for changed in (_with_thresholds(loaded, 0.4), other):
        with pytest.raises(DataError, match="another settings_sha256"):
            score(changed, streets, tmp_path / "out", config, resume=True)


@pytest.mark.parametrize("threshold", ["high", None, True, float("nan")])
def test_a_threshold_that_is_no_number_is_refused(actions, threshold):
    with pytest.raises(CheckpointError, match="expected a number"):
        _ = _with_thresholds(actions(), threshold).thresholds


def test_labels_count_once_an_image_and_groups_are_drawn_whole(actions, streets, tmp_path):
    config = ScoreConfig(
        methods=("random",),
        measures=("deletion", "aupc"),
        split="all",
        every=3,
        target="every-predicted",
        resamples=10,
    )
    found = score(actions(), streets, tmp_path / "out", config)
    each = found.select(method="random", measure="deletion", reference="target")
    labels = found.select(method="random", measure="aupc", reference="labels")
    assert not labels.duplicated(["drive", "frame"]).any()
    assert set(labels["frame"]) == set(each["frame"])
    assert len(each) > len(labels), "some image has several outputs"
    likeliest = each.loc[each.groupby("frame")["prediction"].idxmax()].set_index("frame")["target"]
    assert likeliest[labels["frame"]].tolist() == labels["target"].tolist()
    assert found.summary["intervals"]["block"] == each["drive"].value_counts().max() > 1


def test_random_weights_are_asked_for_the_same_outputs(actions, streets, tmp_path):
    """Random weights predict other outputs of other images; their maps are of the trained model's choice."""
    config = SanityConfig(
        methods=("centre-prior",), checks=("independent",), split="all", every=10, target="every-predicted"
    )
    found = check(actions(), streets, tmp_path / "out", config)
    counts = {each["frames"] for each in found["means"]}
    assert len(counts) == 1, "each stage has the rows of the trained weights"
    alike = [each["value"]["mean"] for each in found["means"] if each["quantity"] == "spearman"]
    assert alike == pytest.approx([1.0] * len(alike))


def test_sanity_passes_over_images_in_which_nothing_is_predicted(actions, streets, tmp_path):
    loaded = actions()
    with torch.no_grad():
        scores = loaded.model(LabelledImages(streets).frames(np.arange(0, 40, 5)))
    highest = torch.sigmoid(scores).amax(1).sort().values
    config = SanityConfig(
        methods=("centre-prior", "random"),
        checks=("agreement",),
        split="all",
        every=5,
        target="every-predicted",
        batch_size=2,
    )
    some = _with_thresholds(loaded, highest[4].item() + 1e-6)
    found = check(some, streets, tmp_path / "some", config)
    assert (found["data"]["checked"], found["data"]["passed_over"]) == (3, 5)
    table = pd.read_parquet(tmp_path / "some" / PER_FRAME)
    assert len(table.drop_duplicates(["drive", "frame"])) == 3
    none = _with_thresholds(loaded, 1.0)
    with pytest.raises(DataError, match="nothing is predicted in any of 8 images; take target predicted"):
        check(none, streets, tmp_path / "none", config)
    assert not (tmp_path / "none").exists()
    likeliest = check(none, streets, tmp_path / "likeliest", replace(config, target="predicted"))
    assert (likeliest["data"]["checked"], likeliest["data"]["passed_over"]) == (8, 0)


def test_images_of_another_geometry_are_refused(actions, streets, tmp_path):
    loaded = actions()
    cut = {"height": 224, "width": 224}
    other = replace(loaded, config={**loaded.config, "input": {"geometry": cut}})
    with pytest.raises(DataError, match="is not the checkpoint's"):
        score(other, streets, tmp_path / "out", ScoreConfig(methods=("gradient",), split="all"))


def test_the_predicted_output_is_the_highest(actions, streets, tmp_path):
    loaded, images = actions(), LabelledImages(streets)
    found = score(loaded, streets, tmp_path / "out", ScoreConfig(methods=("gradient",), split="test"))
    rows = found.select(method="random", measure="deletion", reference="target")
    assert rows["frame"].tolist() == images.rows("test").tolist()
    with torch.no_grad():
        highest = loaded.model(images.frames(rows["frame"].to_numpy())).argmax(1)
    assert rows["target"].tolist() == [loaded.model.outputs.names[column] for column in highest.tolist()]


def test_what_does_not_fit_is_refused(actions, streets, tmp_path):
    for options, message in (
        ({"target": "magnitude"}, "this model has predicted, forward, stop, left, right"),
        ({"split": "held-out", "every": 1, "target": "sideways"}, "'sideways' is unknown"),
    ):
        with pytest.raises(DataError, match=message):
            score(actions(), streets, tmp_path / "out", ScoreConfig(methods=METHODS, **options))
    unknown = actions(names=("forward", "fly"))
    found = score(
        unknown, streets, tmp_path / "other", ScoreConfig(methods=("random",), split="all", every=20)
    )
    assert found.summary["prediction"]["error"]["mean"] is None, "labels of other names are no truth"
    with pytest.raises(DataError, match="need a label for each output"):
        score(
            unknown,
            streets,
            tmp_path / "third",
            ScoreConfig(methods=METHODS, split="all", measures=("aupc",)),
        )


def test_lime_of_an_image_is_fitted_on_its_probability_or_on_its_logit(actions, streets, tmp_path):
    """Maps of a run against the explainer called with the target that its paper names."""
    images = LabelledImages(streets)
    for name, explained in (("probability", lambda scores: scores.sigmoid()[:, 2]), ("logit", output(2))):
        config = ScoreConfig(
            methods=("lime", "gradient"), options={"lime": {"samples": 30}}, split="all", every=20, target="left",
            explained_score=name, save_maps=True, resamples=10,
        )  # fmt: skip
        found = score(actions(), streets, tmp_path / name, config)
        assert found.summary["plan"]["config"]["explained_score"] == name
        with h5py.File(tmp_path / name / "maps.h5") as file:
            saved, numbers = file["maps/lime"][:], file["frames/frame"][:]
            theirs = file["maps/gradient"][:]
        model = actions().model
        explain = fitted("lime", model, options={"samples": 30})
        for number, ours, gradient in zip(numbers, saved, theirs, strict=True):
            frame = images.frames(np.array([number]))
            expected = explain(model, frame, explained)[0]
            np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
            by_logit = fitted("gradient", model)(model, frame, output(2))[0]
            np.testing.assert_allclose(gradient, by_logit, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="explained_score 'logit', which no method of this run follows"):
        ScoreConfig(methods=("gradient",), explained_score="logit")


def test_finished_batches_are_neither_decoded_nor_predicted_again(actions, streets, tmp_path, monkeypatch):
    config = ScoreConfig(methods=("gradient",), measures=("deletion",), split="all", every=4, batch_size=3)
    whole = score(actions(), streets, tmp_path / "whole", config)
    read: list[int] = []
    frames = LabelledImages.frames

    def counted(self: LabelledImages, rows: np.ndarray) -> torch.Tensor:
        read.extend(rows.tolist())
        return frames(self, rows)

    def kill(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(LabelledImages, "frames", counted)
    with pytest.raises(KeyboardInterrupt):
        score(actions(), streets, tmp_path / "out", config, on_progress=kill)
    first = set(read)
    read.clear()
    seen: list[tuple[int, int]] = []
    resumed = score(
        actions(), streets, tmp_path / "out", config, resume=True, on_progress=lambda *at: seen.append(at)
    )
    assert first
    assert read
    assert not first & set(read)
    assert len(first) + len(read) == seen[-1][0] == seen[-1][1] == whole.summary["data"]["scored"]
    assert resumed.summary == whole.summary
    pd.testing.assert_frame_equal(resumed.per_frame, whole.per_frame)


def test_only_shards_that_are_read_are_hashed(actions, tmp_path, monkeypatch):
    options = {"images": 30, "height": HEIGHT, "width": WIDTH}
    source = PrepConfig(
        reader="synthetic-actions", source=Path("-"), reader_options=options, frames_per_shard=10
    )
    prepare(source, tmp_path / "shards")
    index = LabelledImages(tmp_path / "shards").index
    assert index["shard"].nunique() == 3
    config = ScoreConfig(methods=("gradient",), measures=("deletion",), split="all", every=20)
    hashed: list[str] = []
    monkeypatch.setattr(job, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    score(actions(), tmp_path / "shards", tmp_path / "out", config)
    assert hashed == [Path(index["shard"].iloc[row]).name for row in (0, 20)]
