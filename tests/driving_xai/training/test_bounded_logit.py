"""Kept features are the network's own; paired runs share what they should; training is seeded."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from data_prep.prepare import PrepConfig, prepare
from driving_xai import checkpoint
from driving_xai.cli import app
from driving_xai.data.images import LabelledImages
from driving_xai.errors import CheckpointError, DataError
from driving_xai.evaluation.results import Results
from driving_xai.models.bounded_logit import AttentiveHead, BoundedLogitConfig, cells_of
from driving_xai.models.small_cnn import SmallCNN
from driving_xai.training.bounded_logit import (
    BoundedLogitTraining,
    FrameExamples,
    PairedTraining,
    Schedule,
    StoredExamples,
    fit,
    judge,
    loss_of,
    train,
    train_baseline,
    train_variant,
)
from driving_xai.training.feature_cache import FeatureCache, as_frames, cached_features

COUNT = 40


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (COUNT, 3, 12, 12), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def network() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(channels=(4, 6), kernel=3, pooled=1).eval()


def cache(folder, network, images, **settings) -> FeatureCache:
    def read(rows: np.ndarray) -> torch.Tensor:
        return images[torch.from_numpy(rows)]

    return cached_features(
        folder, network, read, len(images), **{"source": "a", "architecture": {}, "batch_size": 16} | settings
    )


def test_kept_features_are_the_networks_own(tmp_path, network, images):
    with torch.no_grad():
        expected = cells_of(network(as_frames(images)))
    exact, half = (cache(tmp_path, network, images, precision=name) for name in ("fp32", "fp16"))
    rows = np.array([7, 3, 3, 39])
    torch.testing.assert_close(exact.batch(rows), expected[torch.from_numpy(rows)], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(half.batch(rows), expected[torch.from_numpy(rows)], rtol=1e-3, atol=1e-4)
    assert half.path.stat().st_size < 0.6 * exact.path.stat().st_size
    assert not expected.requires_grad


def test_features_are_computed_once_and_never_taken_for_others(tmp_path, network, images):
    calls: list[int] = []

    def read(rows: np.ndarray) -> torch.Tensor:
        calls.append(len(rows))
        return images[torch.from_numpy(rows)]

    first = cached_features(tmp_path, network, read, COUNT, source="a", architecture={}, batch_size=16)
    again = cached_features(tmp_path, network, read, COUNT, source="a", architecture={}, batch_size=5)
    assert calls == [16, 16, 8]
    assert again.path == first.path
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.layers[0].bias[0] += 1
    assert cache(tmp_path, other, images).path != first.path
    assert cache(tmp_path, network, images, source="b").path != first.path
    assert cache(tmp_path, network, images, architecture={"heads": 2}).path != first.path
    assert cache(tmp_path, other, images, unused=("layers.0.",)).path == (
        cache(tmp_path, network, images, unused=("layers.0.",)).path
    )


def test_an_interrupted_pass_leaves_nothing_that_counts(tmp_path, network, images):
    def read(rows: np.ndarray) -> torch.Tensor:
        if rows[0] > 0:
            raise KeyboardInterrupt
        return images[torch.from_numpy(rows)]

    with pytest.raises(KeyboardInterrupt):
        cached_features(tmp_path, network, read, COUNT, source="a", architecture={}, batch_size=16)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_says_what_to_do(tmp_path, network, images):
    path = cache(tmp_path, network, images).path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"features-.*npy: damaged .*; delete it"):
        cache(tmp_path, network, images)
    with pytest.raises(ValueError, match="SmallCNN is in training mode"):
        cache(tmp_path, copy.deepcopy(network).train(), images)


HOW = PairedTraining(
    head=BoundedLogitConfig(classes=("a", "b", "c"), subset_size=3),
    channels=6,
    baseline=Schedule(epochs=2, batch_size=8),
    augmented=Schedule(epochs=2, batch_size=8, learning_rate=0.05),
)
LABELS = torch.arange(COUNT) % 3
ROWS = np.arange(30)


@pytest.fixture
def features(tmp_path, network, images) -> FeatureCache:
    return cache(tmp_path, network, images)


def weights(head: AttentiveHead) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in head.state_dict().items()}


def test_the_same_seed_gives_the_same_heads_and_torchs_generator_is_left_alone(features):
    torch.manual_seed(9)
    before = torch.get_rng_state()
    runs = []
    for _ in range(2):
        baseline = train_baseline(HOW, features, LABELS, ROWS, seed=4)
        variants = [
            train_variant(name, baseline, HOW, features, LABELS, ROWS, seed=4)
            for name in ("l2x-f", "bla", "bla-t")
        ]
        runs.append([weights(head) for head in (baseline, *variants)])
    for first, second in zip(*runs, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_after_the_fact_only_the_explanation_learns(features):
    baseline = train_baseline(HOW, features, LABELS, ROWS, seed=4)
    kept = weights(baseline)
    head = train_variant("bla-ph", baseline, HOW, features, LABELS, ROWS, seed=4)
    untrained = replace(HOW, augmented=Schedule(epochs=0))
    start = train_variant("bla-ph", baseline, untrained, features, LABELS, ROWS, seed=4)
    assert torch.equal(head.classify.weight, baseline.classify.weight)
    assert torch.equal(head.classify.bias, baseline.classify.bias)
    assert not torch.equal(head.explain.weight, start.explain.weight)
    changed = train_variant("bla-t", baseline, HOW, features, LABELS, ROWS, seed=4)
    assert not torch.equal(changed.classify.weight, baseline.classify.weight)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(baseline).items())


def test_the_papers_threshold_leaves_the_explanation_as_it_was(features):
    literal = replace(HOW, head=replace(HOW.head, thresholding="indicator"))
    baseline = train_baseline(literal, features, LABELS, ROWS, seed=4)
    untrained = replace(literal, augmented=Schedule(epochs=0))
    before, after = (
        train_variant("bla-t", baseline, how, features, LABELS, ROWS, seed=4) for how in (untrained, literal)
    )
    assert torch.equal(before.explain.weight, after.explain.weight)
    assert not torch.equal(before.classify.weight, after.classify.weight)


def test_training_is_adam_on_cross_entropy(images):
    """A slow twin of one epoch, from the same order and dropout."""
    torch.manual_seed(1)
    head = AttentiveHead(BoundedLogitConfig(classes=("a", "b", "c"), attention="bla"), channels=3)
    twin = copy.deepcopy(head)

    class Pixels:
        def __len__(self) -> int:
            return COUNT

        def batch(self, rows):
            return cells_of(as_frames(images[torch.from_numpy(rows)]))

    fit(head, Pixels(), LABELS, ROWS, Schedule(epochs=1, batch_size=8), seed=6)
    order = np.random.default_rng(6).permutation(ROWS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3, fused=True)
        for part in (order[:8], order[8:16], order[16:24], order[24:]):
            optimizer.zero_grad()
            F.cross_entropy(twin.train()(Pixels().batch(part)), LABELS[part]).backward()
            optimizer.step()
    for ours, theirs in zip(head.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not head.training


def test_judging_is_by_rows_and_not_by_batch(features):
    head = train_baseline(HOW, features, LABELS, ROWS, seed=4)
    rows = np.array([31, 5, 39, 12, 0])
    whole = judge(head, features, LABELS, rows)
    parts = judge(head, features, LABELS, rows, batch_size=2)
    assert whole.accuracy == parts.accuracy
    assert whole.loss == pytest.approx(parts.loss, rel=1e-6)
    scores = head(features.batch(rows)).detach()
    right = [int(scores[i].argmax()) == int(LABELS[row]) for i, row in enumerate(rows)]
    assert whole.accuracy == pytest.approx(sum(right) / 5)
    losses = [-float(torch.log_softmax(scores[i], 0)[LABELS[row]]) for i, row in enumerate(rows)]
    assert whole.loss == pytest.approx(sum(losses) / 5, rel=1e-5)


def test_frames_are_read_in_order(images):
    rows = np.array([3, 1])
    frames = FrameExamples(images).batch(rows)
    torch.testing.assert_close(frames[0], images[3] / 255, rtol=1e-6, atol=0)
    torch.testing.assert_close(frames[1], images[1] / 255, rtol=1e-6, atol=0)


def test_a_schedule_out_of_range_says_so():
    with pytest.raises(ValueError, match="batch_size is 0; expected 1 or more"):
        Schedule(batch_size=0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> LabelledImages:
    """Bright pictures and dark ones, prepared as a user would."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 4), ("test", 8)):
        for place in range(count):
            name = ("bright", "dark")[place % 2]
            folder = root / "raw" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            low = {"bright": 120, "dark": 0}[name]
            picture = draw.integers(low, low + 120, size=(32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / f"{place}.png"), picture)
    prepare(PrepConfig(reader="image-folder", source=root / "raw"), root / "shards")
    return LabelledImages(root / "shards")


BRIEF = {"baseline": Schedule(epochs=3), "augmented": Schedule(epochs=3), "weights": "random"}


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("backbone", ["resnet10t", "small-cnn"])
def test_the_recipe_writes_the_model_that_it_measured(tmp_path, pictures, kind, backbone):
    """The checkpoint, fed with frames, does as well as the head did on kept features."""
    model = BoundedLogitConfig(backbone=backbone, output_kind=kind, attention="bla-t")
    how = BoundedLogitTraining(model=model, precision="fp32", **BRIEF)
    metrics = train(pictures, tmp_path, how)
    loaded = checkpoint.load(tmp_path, kind="bounded-logit")
    assert loaded.model.outputs.names == ("bright", "dark")
    assert loaded.model.outputs.kind == kind
    assert loaded.config["data"]["shards_sha256"] == pictures.manifest.sha256
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    rows = pictures.rows("test")
    columns = pictures.labels(pictures.label_names)
    labels = columns if kind == "multilabel" else columns.argmax(1)
    found = judge(loaded.model, StoredExamples(pictures), labels, rows)
    assert found.accuracy == metrics["test"]["accuracy"]
    assert found.loss == pytest.approx(metrics["test"]["loss"], rel=1e-4)
    assert ("baseline" in metrics) == (backbone != "small-cnn")
    assert metrics["test"]["accuracy_majority"] == 0.5
    with pytest.raises(CheckpointError, match="already holds a training run"):
        train(pictures, tmp_path, how)
    if backbone == "small-cnn":
        assert train(pictures, tmp_path, how, resume=True) == metrics


def test_random_weights_of_a_frozen_network_are_the_seeds(tmp_path, pictures):
    found = []
    for place, seed in enumerate((0, 0, 1)):
        torch.manual_seed(place)
        how = BoundedLogitTraining(model=BoundedLogitConfig(backbone="resnet10t"), seed=seed, **BRIEF)
        train(pictures, tmp_path / str(place), how)
        found.append(checkpoint.load(tmp_path / str(place)).sha256)
    assert found[0] == found[1] != found[2]


def test_the_command_trains_and_explains(tmp_path, pictures):
    """From the command line to a map of the selection, as a user goes."""
    run = CliRunner().invoke
    model, brief = tmp_path / "model", ["--epochs", "1", "--device", "cpu", "--set", "model.channels=[4,4,4]"]
    done = run(app, ["train", "classifier", str(pictures.root), str(model), "--model", "bla", *brief])
    assert done.exit_code == 0, done.output
    assert "accuracy 0." in done.output
    assert "always the commonest class 0.500" in done.output
    picture = next(pictures.root.parent.glob("raw/test/dark/*.png"))
    explained = ["explain", str(model), str(picture), "--out", str(tmp_path / "maps"), "--method"]
    for method in ("bla", "bla-hard"):
        assert run(app, [*explained, method]).exit_code == 0
        assert list((tmp_path / "maps").glob(f"*{method}*.png"))
    refused = run(app, [*explained, "l2x-f"])
    assert refused.exit_code == 3
    assert "BoundedLogitModel does not write l2x-f (it writes bla, bla-hard)" in refused.output


def test_the_originals_predictions_are_scored_beside_their_explanation(tmp_path, pictures):
    """Post hoc, as section 3.2: the test split is predicted as the baseline does, and trained attention explains it."""
    run, model, shards = CliRunner().invoke, str(tmp_path / "model"), str(pictures.root)
    small = [
        "--set",
        "model.backbone=resnet10t",
        "--weights",
        "random",
        "--epochs",
        "2",
        "--set",
        "precision=fp32",
    ]
    whole = ["--set", "model.predicts=all-cells"]
    refused = run(app, ["train", "classifier", shards, model, "--model", "bla-t", *whole])
    assert refused.exit_code == 2
    assert "expected head 'baseline' (bla-ph) on a frozen backbone" in refused.output
    done = run(app, ["train", "classifier", shards, model, "--model", "bla-ph", *whole, *small])
    assert done.exit_code == 0, done.output
    loaded = checkpoint.load(tmp_path / "model")
    rows = pictures.rows("test")
    with torch.no_grad():
        right = loaded.model(pictures.frames(rows)).argmax(1) == pictures.labels(pictures.label_names)[
            rows
        ].argmax(1)
    assert float(right.float().mean()) == loaded.metrics["baseline"]["test"]["accuracy"]

    block = tmp_path / "block.safetensors"
    done = run(
        app, ["train", "attention", shards, model, str(block), "--epochs", "1", "--set", "reduction=64"]
    )
    assert done.exit_code == 0, done.output
    assert f"{block}: cross-entropy of the training images" in done.output
    names = "bla-hard,another-image:bla,attention-guided-cam@trained,attention-guided-cam@random"
    options = [f"trained.attention={block}", "random.attention=random"]
    asked = [part for each in options for part in ("--set", f"options.attention-guided-cam@{each}")]
    done = run(app, ["score", model, shards, "--method", names, *asked, "-o", str(tmp_path / "scores")])
    assert done.exit_code == 0, done.output
    found = Results.load(tmp_path / "scores").per_frame
    assert set(names.split(",")) < set(found["method"])
    assert found["value"].notna().all()


def test_several_labels_are_trained_scored_and_replayed(tmp_path, streets):
    """Selections of driving actions, on what was held out, from the command line."""
    run, model = CliRunner().invoke, tmp_path / "model"
    labels = ["--model", "bla-t", "--set", "model.output_kind=multilabel", "--set", "model.channels=[4,4,4]"]
    done = run(app, ["train", "classifier", str(streets), str(model), *labels, "--epochs", "1"])
    assert done.exit_code == 0, done.output
    asked = [
        "--method",
        "bla,bla-hard,attention-guided-cam",
        "--measure",
        "deletion,pid-16,percentage-in,aupc",
    ]
    rest = ["--target", "every-predicted", "--every", "6", "-o", str(tmp_path / "scores")]
    done = run(app, ["score", str(model), str(streets), *asked, *rest])
    assert done.exit_code == 0, done.output
    found = Results.load(tmp_path / "scores")
    tested = set(np.flatnonzero(LabelledImages(streets).index["split"] == "test"))
    assert set(found.per_frame["frame"]) <= tested
    assert set(found.per_frame["target"]) <= {"forward", "stop", "left", "right"}
    video = ["-o", str(tmp_path / "drive.mp4"), "--method", "bla-hard", "--no-score", "--end", "0.5"]
    played = run(app, ["replay", str(model), str(streets), *video])
    assert played.exit_code == 0, played.output


def test_the_recipe_learns_what_is_easy(tmp_path, pictures):
    how = BoundedLogitTraining(
        model=BoundedLogitConfig(attention="bla", dropout=0.0),
        augmented=Schedule(epochs=12, batch_size=8, learning_rate=0.01),
    )
    metrics = train(pictures, tmp_path, how)
    assert metrics["test"]["accuracy"] == 1.0
    assert metrics["test"]["loss"] < 0.2


def test_of_several_labels_each_is_judged_by_itself():
    scores = torch.tensor([[2.0, -1.0], [0.5, 0.5]])
    truth = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    by_hand = -np.log([1 / (1 + np.exp(-z)) for z in (2.0, 1.0, 0.5, -0.5)]).mean()
    assert float(loss_of(scores, truth)) == pytest.approx(by_hand, rel=1e-6)

    class Given(torch.nn.Module):
        def forward(self, rows, **_):
            return scores[rows.long()]

    class Rows:
        def __len__(self) -> int:
            return 2

        def batch(self, rows):
            return torch.from_numpy(rows)

    assert judge(Given().eval(), Rows(), truth, np.array([0, 1])).accuracy == 0.75
    with pytest.raises(ValueError, match="Given is in training mode"):
        judge(Given(), Rows(), truth, np.array([0, 1]))


def test_an_image_without_a_class_is_refused(tmp_path, pictures, monkeypatch):
    none = torch.zeros(len(pictures), 2)
    monkeypatch.setattr(pictures, "labels", lambda names: none)
    with pytest.raises(DataError, match=r"has 0 classes, expected one; .*output_kind=multilabel"):
        train(pictures, tmp_path, BoundedLogitTraining())
