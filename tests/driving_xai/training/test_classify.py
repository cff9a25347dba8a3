"""The classifier recipe: it learns, it resumes exactly, it refuses what it cannot use."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from driving_xai import checkpoint
from driving_xai.errors import CheckpointError, DataError, UnsupportedModelError
from driving_xai.models.classify import Classifier, ClassifierConfig, load_weights
from driving_xai.models.lambda_net import LambdaAttentionBranchNetwork, LambdaResNet
from driving_xai.training.augment import Augmentation
from driving_xai.training.classify import ClassifierTraining, judged, train
from driving_xai.training.labn import LabnLoss, labn_loss, masked_by_attention
from driving_xai.unfinished import BEST, RESUME, load_saved
from tests.driving_xai.training.pictures import SIDE, Pictures

LAMBDAS = {"stages": (1, 1), "width": 8, "stem": "small", "heads": 2, "key_depth": 4, "context": 5}
HOW = ClassifierTraining(
    model=ClassifierConfig(network="small-cnn", channels=(8, 8), pooled=1),
    augmentation=Augmentation(flip=True, brightness=0.2, contrast=0.2),
    epochs=3,
    batch_size=8,
    learning_rate=0.01,
)
LABN = replace(
    HOW,
    model=ClassifierConfig(network="labn", split=1, threshold=0.3, **LAMBDAS),
    features_learning_rate=1e-3,
)


class Interrupt(L.Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures()


def test_a_transformer_trains_on_images_of_another_size_than_its_own(pictures, tmp_path):
    how = replace(HOW, model=ClassifierConfig(network="vit_tiny_patch16_224"), epochs=1)
    train(pictures, tmp_path / "vit", how, data={}, device="cpu")
    loaded = checkpoint.load(tmp_path / "vit", device="cpu")
    rows = pictures.rows("test")
    frames = pictures.frames(rows)
    with torch.no_grad():
        assert loaded.model(frames).isfinite().all()
    assert loaded.model.network.patch_embed.img_size == (SIDE, SIDE)


def test_images_smaller_than_a_patch_leave_no_folder(pictures, tmp_path):
    how = replace(HOW, model=ClassifierConfig(network="vit_small_patch32_224"))
    with pytest.raises(UnsupportedModelError, match=f"takes no frames of {SIDE} x {SIDE} px"):
        train(pictures, tmp_path / "out", how, data={}, device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", [HOW, LABN], ids=["small-cnn", "labn"])
def test_a_resumed_run_ends_where_an_unbroken_one_does(pictures, tmp_path, how):
    train(pictures, tmp_path / "straight", how, data={}, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(pictures, tmp_path / "broken", how, data={}, device="cpu", callbacks=(Interrupt(1),))
    so_far = checkpoint.load(tmp_path / "broken")
    assert (so_far.unfinished.epoch, so_far.unfinished.best_epoch) == (1, 1)
    saved = load_saved(tmp_path / "broken" / RESUME / BEST)["state_dict"]
    learnt = 0
    for name, weight in so_far.model.named_parameters():
        kept = [each for key, each in saved.items() if key.endswith(name) and each.shape == weight.shape]
        learnt += bool(kept)
        assert not kept or any(torch.equal(weight, each) for each in kept), name
    assert learnt > 1
    train(pictures, tmp_path / "broken", how, data={}, device="cpu", resume=True)
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.METRICS):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_frozen_features_are_the_same_in_training_and_after_it(pictures, tmp_path):
    """Statistics of batch normalisation are frozen with the weights that they follow."""
    train(pictures, tmp_path / "start", replace(HOW, epochs=1), data={}, device="cpu")
    save_file(checkpoint.load(tmp_path / "start").model.network.state_dict(), tmp_path / "start.safetensors")
    start = checkpoint.load(tmp_path / "start").model.network.state_dict()
    how = replace(HOW, epochs=2, features_learning_rate=0.0, weights=str(tmp_path / "start.safetensors"))
    train(pictures, tmp_path / "out", how, data={}, device="cpu")
    found = checkpoint.load(tmp_path / "out").model.network.state_dict()
    changed = {name for name, value in found.items() if not torch.equal(value, start[name])}
    assert changed == {"3.weight", "3.bias"}


@pytest.mark.parametrize(
    ("rates", "frozen"),
    [
        ({"extraction_learning_rate": 0.0}, {"extract"}),
        ({"features_learning_rate": 0.0, "extraction_learning_rate": 1e-3}, {"perceive"}),
        ({"features_learning_rate": 0.0}, {"extract", "perceive"}),
    ],
    ids=["authors", "perception", "both"],
)
def test_labns_two_parts_are_frozen_each_by_itself(pictures, tmp_path, rates, frozen):
    """The authors freeze the feature extractor and train the perception branch; statistics go with the weights."""
    start = replace(LABN, epochs=1, patience=None)
    train(pictures, tmp_path / "start", start, data={}, device="cpu")
    before = checkpoint.load(tmp_path / "start").model.network.state_dict()
    save_file(before, tmp_path / "start.safetensors")
    how = replace(start, epochs=2, weights=str(tmp_path / "start.safetensors"), **rates)
    train(pictures, tmp_path / "out", how, data={}, device="cpu")
    after = checkpoint.load(tmp_path / "out").model.network.state_dict()
    unchanged = {name.split(".")[0] for name in after if torch.equal(after[name], before[name])}
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert frozen <= unchanged
    assert changed == {"extract", "perceive", "branch", "attend", "classify", "head"} - frozen


def test_a_rate_of_labns_first_part_is_of_labn_only():
    with pytest.raises(ValueError, match="extraction_learning_rate is of labn only"):
        replace(HOW, extraction_learning_rate=0.0)


@pytest.mark.parametrize(
    "network",
    [
        {"network": "small-cnn", "channels": (8, 8), "pooled": 1},
        {"network": "lambda-resnet", **LAMBDAS},
        {"network": "labn", "split": 1, "threshold": 0.3, **LAMBDAS},
    ],
    ids=lambda each: each["network"],
)
def test_networks_learn_more_than_the_majority_and_load_to_the_same_scores(pictures, tmp_path, network):
    how = replace(HOW, model=ClassifierConfig(**network), epochs=8, patience=None)
    metrics = train(pictures, tmp_path, how, data={"shards_sha256": "x"}, device="cpu")
    assert metrics["test"]["accuracy"] > 0.8
    assert metrics["test"]["accuracy_majority"] == 0.5
    loaded = checkpoint.load(tmp_path, kind="classifier")
    assert loaded.model.outputs.names == ("green", "red")
    assert loaded.config["data"] == {"shards_sha256": "x"}
    assert loaded.config["input"] == {"geometry": None, "short_side_px": None}
    frames = torch.rand(2, 3, SIDE, SIDE)
    again = checkpoint.load(tmp_path).model
    with torch.no_grad():
        assert torch.equal(loaded.model(frames), again(frames))


def test_labns_loss_is_its_equation():
    torch.manual_seed(0)
    model = Classifier(
        ClassifierConfig(classes=("a", "b"), network="labn", image_size=(SIDE, SIDE), split=1, **LAMBDAS)
    ).eval()
    frames, labels = torch.rand(4, 3, SIDE, SIDE), torch.tensor([0, 1, 1, 0])
    bias, weights = torch.rand(3, SIDE, SIDE), torch.tensor([2.0, 1.0])
    how = LabnLoss(branch_weight=3.0, divergence_weight=0.5, mask_threshold=0.6)
    found = labn_loss(model, frames, labels, how, bias=bias, class_weights=weights)
    branches = model.network.branches(model.normalised(frames))
    attention = torch.nn.functional.interpolate(branches.attention[:, None], (SIDE, SIDE), mode="bilinear")
    masked = frames * (attention > 0.6) + bias * (attention <= 0.6)
    assert 0 < (attention > 0.6).float().mean() < 1
    assert torch.equal(masked_by_attention(frames, branches.attention, bias, threshold=0.6), masked)
    expected = torch.zeros(())
    total = weights[labels].sum()
    for i, label in enumerate(labels.tolist()):
        share = weights[label] / total
        expected = expected - share * branches.scores[i].log_softmax(0)[label]
        expected = expected - 3.0 * share * branches.branch_scores[i].log_softmax(0)[label]
        clean, hidden = branches.scores[i].softmax(0), model(masked[i : i + 1])[0].softmax(0)
        expected = expected + 0.5 / 4 * (clean * (clean / hidden).log()).sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    without = labn_loss(model, frames, labels, replace(how, divergence_weight=0.0), bias=bias)
    assert without < found + 1
    detached = labn_loss(
        model, frames, labels, replace(how, through="masked"), bias=bias, class_weights=weights
    )
    torch.testing.assert_close(detached, found)


def test_labns_statistics_are_of_whole_images_and_the_masked_pass_uses_its_own():
    """The running mean is one step from 0 towards the stem's mean on clean images; the loss is the same either way."""
    config = ClassifierConfig(classes=("a", "b"), network="labn", image_size=(SIDE, SIDE), split=1, **LAMBDAS)
    torch.manual_seed(0)
    model = Classifier(config).train()
    weights = deepcopy(model.state_dict())
    frames, labels = torch.rand(4, 3, SIDE, SIDE), torch.tensor([0, 1, 1, 0])
    bias, stem = torch.rand(3, SIDE, SIDE), model.network.extract[0]
    expected = 0.1 * stem[0](model.normalised(frames)).mean((0, 2, 3))
    losses = {}
    for statistics in ("clean", "both"):
        model.load_state_dict(weights)
        how = LabnLoss(mask_threshold=0.6, statistics=statistics)
        losses[statistics] = labn_loss(model, frames, labels, how, bias=bias)
        assert torch.allclose(stem[1].running_mean, expected, atol=1e-6) == (statistics == "clean")
        assert int(stem[1].num_batches_tracked) == (1 if statistics == "clean" else 2)
        assert all(
            layer.track_running_stats for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)
        )
    assert torch.equal(losses["clean"], losses["both"])


def test_metrics_stand_beside_the_majority():
    scores = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    found = judged(scores, torch.tensor([0, 1, 1, 0]), torch.tensor([1, 1, 1, 0]))
    assert found["accuracy"] == 0.75
    assert found["accuracy_majority"] == 0.5
    assert found["confusion"] == [[2, 0], [1, 1]]
    assert found["log_loss_shares"] == pytest.approx(-(np.log(0.25) + np.log(0.75)) / 2)


def test_weights_of_a_local_file_are_loaded_strictly(tmp_path):
    torch.manual_seed(0)
    whole = Classifier(ClassifierConfig(classes=("a", "b", "c"), network="resnet10t", image_size=(32, 32)))
    save_file(whole.network.state_dict(), tmp_path / "three.safetensors")
    same = Classifier(whole.config)
    load_weights(same, tmp_path / "three.safetensors")
    assert all(torch.equal(w, same.network.state_dict()[n]) for n, w in whole.network.state_dict().items())
    other = Classifier(replace(whole.config, classes=("a", "b")))
    drawn = other.network.fc.weight.clone()
    load_weights(other, tmp_path / "three.safetensors")
    assert torch.equal(other.network.layer4[0].conv1.weight, whole.network.layer4[0].conv1.weight)
    assert torch.equal(other.network.fc.weight, drawn)
    with pytest.raises(CheckpointError, match="another architecture than resnet18"):
        load_weights(Classifier(replace(whole.config, network="resnet18")), tmp_path / "three.safetensors")
    torch.save({"fc.weight": print}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="code is not run"):
        load_weights(other, tmp_path / "code.pth")


def test_images_of_several_classes_are_refused(pictures, tmp_path):
    class Several(Pictures):
        def labels(self, names):
            return torch.ones(len(self), 2)

    with pytest.raises(DataError, match="image 0 of the index has 2 classes"):
        train(Several(), tmp_path, HOW, data={}, device="cpu")


def test_a_refused_run_leaves_no_folder(pictures, tmp_path):
    how = replace(HOW, model=ClassifierConfig(network="resnet19"))
    with pytest.raises(UnsupportedModelError, match="did you mean resnet18"):
        train(pictures, tmp_path / "out", how, data={}, device="cpu")
    assert not (tmp_path / "out").exists()


def test_class_weights_are_one_a_class(pictures, tmp_path):
    with pytest.raises(DataError, match="3 values for 2 classes"):
        train(pictures, tmp_path, replace(HOW, class_weights=(1.0, 1.0, 1.0)), data={}, device="cpu")


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}])
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        replace(HOW, **wrong)


def test_the_plateau_takes_a_third_as_torchs_scheduler_does(pictures, tmp_path):
    """Rates of each epoch against ReduceLROnPlateau by itself, on the losses that were logged; resumed in between."""
    how = replace(
        HOW, schedule="plateau", epochs=8, learning_rate=3.0, patience=None, features_learning_rate=1.0
    )
    with pytest.raises(KeyboardInterrupt):
        train(pictures, tmp_path / "model", how, data={}, device="cpu", callbacks=(Interrupt(5),))
    rates: dict[int, list[float]] = {}
    callback = Rates(rates)
    train(pictures, tmp_path / "model", how, data={}, device="cpu", resume=True, callbacks=(callback,))
    table = pd.read_csv(tmp_path / "model" / "logs" / "version_0" / "metrics.csv")
    losses = table.groupby("epoch")["val_loss"].first()
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (3.0, 1.0)]
    alone = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(alone, factor=1 / 3, patience=2, min_lr=1e-6)
    expected = []
    for loss in losses:
        expected.append([group["lr"] for group in alone.param_groups])
        scheduler.step(loss)
    assert expected[-1][0] < 3.0, "the losses hold a plateau"
    assert sorted(rates) == [5, 6, 7]
    for epoch, found in rates.items():
        assert found == pytest.approx(expected[epoch])


class Rates(L.Callback):
    def __init__(self, rates: dict[int, list[float]]) -> None:
        self.rates = rates

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.rates[trainer.current_epoch] = [group["lr"] for group in trainer.optimizers[0].param_groups]


def test_two_way_binary_cross_entropy_weighs_the_wanted_label_of_each_logit():
    """By hand: each logit is a label of its own, and what is wanted counts double in both of them."""
    scores, labels = torch.randn(5, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    loss = LabnLoss(classification="binary")
    terms = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        for place, logit in enumerate(row):
            chance = 1 / (1 + np.exp(-logit))
            terms.append(-2 * np.log(chance) if place == label else -np.log(1 - chance))
    assert float(loss.classified(scores, labels, None)) == pytest.approx(np.mean(terms))
    with pytest.raises(ValueError, match="positive_weight is of classification binary"):
        LabnLoss(positive_weight=3.0)
    with pytest.raises(ValueError, match=r"set labn\.positive_weight"):
        replace(LABN, labn=loss, class_weights=(2.0, 1.0))


def test_a_labn_begins_with_a_pretrained_lambda_resnet(tmp_path):
    """Features and perception are the ResNet's: with the attention taken away, so are the scores."""
    torch.manual_seed(3)
    config = ClassifierConfig(network="labn", classes=("a", "b"), image_size=(SIDE, SIDE), split=1, **LAMBDAS)
    resnet = LambdaResNet(config, classes=2).eval()
    for norm in (each for each in resnet.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    model = Classifier(config).eval()
    drawn = {name: value.clone() for name, value in model.network.branch.state_dict().items()}
    load_weights(model, tmp_path / "resnet.safetensors")
    frames = torch.rand(3, 3, SIDE, SIDE)
    with torch.no_grad():
        network = model.network
        assert isinstance(network, LambdaAttentionBranchNetwork)
        scores = network.head(network.perceive(network.extract(frames)).mean((2, 3)))
        torch.testing.assert_close(scores, resnet(frames))
    assert all(torch.equal(value, drawn[name]) for name, value in network.branch.state_dict().items())

    # Of ten classes all but the head is taken; of another width nothing.
    ten = LambdaResNet(config, classes=10)
    save_file(ten.state_dict(), tmp_path / "ten.safetensors")
    load_weights(model, tmp_path / "ten.safetensors")
    assert torch.equal(model.network.extract[0][0].weight, ten.stem[0].weight)
    assert torch.equal(model.network.head.weight, resnet.head.weight)
    wider = Classifier(replace(config, width=16))
    with pytest.raises(CheckpointError, match=r"lambda-resnet of stages \[1, 1\], width 16"):
        load_weights(wider, tmp_path / "ten.safetensors")
