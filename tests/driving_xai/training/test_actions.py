"""The action recipe: it learns, it resumes exactly, mirrored images change sides, bad input is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from driving_xai import checkpoint
from driving_xai.data.images import LabelledImages
from driving_xai.data.splits import FoldOut
from driving_xai.errors import CheckpointError, DataError, UnsupportedModelError
from driving_xai.models.actions import ActionConfig, ActionModel
from driving_xai.training.action_inputs import MirroredFrames, frozen_features
from driving_xai.training.actions import ActionTraining, _Batches, start_model, train
from driving_xai.training.augment import Augmentation
from driving_xai.unfinished import BEST, RESUME, load_saved

MODEL = ActionConfig(
    backbone="vit_tiny_patch16_224", patch_px=8, embed_dim=24, depth=2, heads=3, blocks=2, image_size=(24, 40)
)
HEAD = ActionTraining(model=MODEL, short_side_px=24, epochs=3, batch_size=8, learning_rate=1.0)
ALL = replace(HEAD, tune="all", optimizer="adamw", learning_rate=0.03, keep="last")


@pytest.fixture(scope="module")
def shards(streets: Path) -> Path:
    return streets


@pytest.fixture(scope="module", params=[HEAD, ALL], ids=["head", "all"])
def straight(request, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ActionTraining, Path]:
    """A checkpoint trained without an interruption, and how."""
    out = tmp_path_factory.mktemp("straight")
    train(shards, out, request.param, device="cpu")
    return request.param, out


class Interrupt(L.Callback):
    """Ctrl-C in the middle of the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_where_an_unbroken_one_does(shards, straight, tmp_path) -> None:
    how, whole = straight
    with pytest.raises(KeyboardInterrupt):
        train(shards, tmp_path, how, device="cpu", callbacks=(Interrupt(),))
    so_far = checkpoint.load(tmp_path)
    assert (so_far.unfinished.epoch, so_far.unfinished.best_epoch) == (1, 1)
    saved = load_saved(tmp_path / RESUME / BEST)["state_dict"]
    learnt = 0
    for name, weight in so_far.model.named_parameters():
        kept = [
            each
            for key, each in saved.items()
            if key.endswith(name.removeprefix("head.")) and each.shape == weight.shape
        ]
        learnt += bool(kept)
        assert not kept or any(torch.equal(weight, each) for each in kept), name
    assert learnt > 1
    train(shards, tmp_path, how, device="cpu", resume=True)
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.METRICS):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_checkpoint_says_what_it_is_and_its_metrics_are_those_of_its_model(shards, straight) -> None:
    how, out = straight
    loaded = checkpoint.load(out, kind="actions")
    images = LabelledImages(shards, short_side_px=24)
    rows = images.rows("test")
    with torch.no_grad():
        predicted = loaded.model(images.frames(rows)) > 0
    right = (predicted == images.labels(MODEL.actions)[rows].bool()).float().mean()
    assert loaded.metrics["test"]["accuracy"] == pytest.approx(float(right))
    assert set(loaded.metrics["test"]) >= {"f1", "mf1", "f1_all", "majority", "all_negative"}
    assert loaded.config["input"]["short_side_px"] == 24
    assert loaded.config["data"]["shards_sha256"] == images.manifest.sha256
    assert loaded.config["training"]["tune"] == how.tune


def test_only_the_head_learns_on_frozen_features_and_everything_otherwise(shards, straight) -> None:
    how, out = straight
    torch.manual_seed(how.seed)
    L.seed_everything(how.seed, verbose=False)
    before, after = start_model(how), checkpoint.load(out).model
    same = [
        torch.equal(a, b)
        for a, b in zip(before.vit.state_dict().values(), after.vit.state_dict().values(), strict=True)
    ]
    assert all(same) if how.tune == "head" else not any(same[:4])
    assert not torch.equal(before.head.weight, after.head.weight)


@pytest.mark.parametrize("how", [HEAD, ALL], ids=["head", "all"])
def test_training_lowers_the_loss_on_what_it_sees(shards, tmp_path, how) -> None:
    longer = replace(how, epochs=25, flip="none", schedule="constant")
    train(shards, tmp_path, longer, device="cpu")
    rows = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train_loss")
    losses = [float(value) for row in rows[1:] if (value := row.split(",")[column])]
    assert losses[-1] < 0.95 * losses[0]


def test_features_kept_on_disk_are_what_the_backbone_gives_of_each_image_and_its_mirror(
    shards, tmp_path
) -> None:
    images = LabelledImages(shards, short_side_px=24)
    model = start_model(HEAD).eval()
    found = frozen_features(model, images, tmp_path, mirrored=True)
    rows, turned = np.array([7, 0, 33]), np.array([False, True, True])
    with torch.no_grad():
        expected = model.features(MirroredFrames(images=images).batch(rows, turned))
    torch.testing.assert_close(found.batch(rows, turned), expected, rtol=1e-4, atol=1e-5)


def test_features_are_found_again_whatever_the_head_and_not_of_another_number_of_heads(shards, tmp_path):
    images = LabelledImages(shards, short_side_px=24)
    model = ActionModel(MODEL)

    def kept(model: ActionModel) -> Path:
        return frozen_features(model, images, tmp_path, mirrored=False).plain.path

    first = kept(model)
    torch.nn.init.ones_(model.head.weight)
    assert kept(model) == first
    # The number of heads has no weights: the same ones fit.
    other = ActionModel(replace(MODEL, heads=2))
    other.load_state_dict(model.state_dict())
    assert kept(other) != first


def test_a_mirrored_image_exchanges_left_and_right_or_literally_does_not(shards) -> None:
    images = LabelledImages(shards, short_side_px=24)
    targets, rows = images.labels(MODEL.actions), images.rows("train")
    plain = images.frames(rows)
    for flip, columns in (("swap", [0, 1, 3, 2]), ("literal", [0, 1, 2, 3])):
        batches = _Batches(MirroredFrames(images=images), targets, [rows], replace(ALL, flip=flip), 0)
        inputs, found = batches[0]
        turned = (inputs != plain).flatten(1).any(1)
        assert 0 < turned.sum() < len(rows)
        assert torch.equal(inputs[turned], plain[turned].flip(-1))
        assert torch.equal(found[turned], targets[rows][turned][:, columns])
        assert torch.equal(found[~turned], targets[rows][~turned])
    still = _Batches(MirroredFrames(images=images), targets, [rows], replace(ALL, flip="none"), 0)[0]
    assert torch.equal(still.inputs, plain)


def test_augmentation_changes_light_and_never_labels(shards) -> None:
    images = LabelledImages(shards, short_side_px=24)
    targets, rows = images.labels(MODEL.actions), images.rows("train")
    how = replace(ALL, flip="none", augmentation=Augmentation(flip=False, brightness=0.5))
    found = _Batches(MirroredFrames(images=images), targets, [rows], how, 0)[0]
    assert not torch.equal(found.inputs, images.frames(rows))
    assert torch.equal(found.targets, targets[rows])


def test_a_convolutional_network_trains_whole_and_keeps_its_statistics(shards, tmp_path) -> None:
    how = replace(ALL, model=ActionConfig(backbone="resnet10t"), short_side_px=32, epochs=1)
    train(shards, tmp_path, how, device="cpu")
    model = checkpoint.load(tmp_path).model
    assert model.cnn.conv1[1].num_batches_tracked > 0


def test_folds_test_each_image_once_and_keep_groups_whole(shards) -> None:
    index = LabelledImages(shards).index
    tested = np.zeros(len(index), int)
    for fold in range(3):
        names = FoldOut(fold=fold, folds=3, val_fraction=0.25).splits(index)
        tested += names == "test"
        assert {"train", "val", "test"} == set(names)
        for rows in index.groupby("group").indices.values():
            assert len(set(names[rows])) == 1
    assert (tested == 1).all()
    with pytest.raises(DataError, match="cannot be cut into 50 folds"):
        FoldOut(fold=0, folds=50).splits(index)


def test_a_folder_to_start_from_brings_its_architecture(shards, tmp_path) -> None:
    torch.manual_seed(3)
    source = start_model(HEAD)
    start = tmp_path / "dino"
    start.mkdir()
    save_file(source.vit.state_dict(), start / "model.safetensors")
    section = {name: value for name, value in vars(MODEL).items() if name not in ("actions", "blocks")}
    (start / "config.json").write_text(json.dumps({"kind": "dino", "model": section}))
    how = replace(HEAD, model=ActionConfig(blocks=2), start=str(start), epochs=1)
    train(shards, tmp_path / "out", how, device="cpu")
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.model.config == MODEL
    assert torch.equal(loaded.model.vit.pos_embed, source.vit.pos_embed)
    assert set(loaded.config["training"]["start"]) == {"file", "sha256"}
    other = replace(how, model=replace(MODEL, depth=3))
    with pytest.raises(CheckpointError, match="leave model's settings out"):
        train(shards, tmp_path / "other", other, device="cpu")


def test_another_action_model_lends_its_backbone(shards, straight, tmp_path) -> None:
    _, whole = straight
    how = replace(HEAD, model=ActionConfig(blocks=1), start=str(whole), epochs=1)
    train(shards, tmp_path, how, device="cpu")
    ours, theirs = (checkpoint.load(path).model.vit.state_dict() for path in (tmp_path, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_epochs_a_head_of_ours_or_theirs_is_only_measured(shards, tmp_path) -> None:
    weight, bias = torch.zeros(4, 48), torch.tensor([9.0, -9.0, -9.0, -9.0])
    torch.save(
        {"state_dict": {"module.linear.weight": weight, "module.linear.bias": bias}}, tmp_path / "h.pth"
    )
    metrics = train(
        shards, tmp_path / "out", replace(HEAD, head=str(tmp_path / "h.pth"), epochs=0), device="cpu"
    )
    images = LabelledImages(shards)
    forward = images.labels(("forward",))[images.rows("test")].mean()
    assert metrics["test"]["accuracies"]["forward"] == pytest.approx(float(forward))
    assert metrics["test"]["f1"]["stop"] == 0.0


def test_bad_input_is_one_line_and_leaves_no_run_behind(shards, tmp_path) -> None:
    wide = tmp_path / "w.pth"
    torch.save(start_model(replace(HEAD, model=replace(MODEL, patch_px=16))).vit.state_dict(), wide)
    cases = [
        (replace(HEAD, model=replace(MODEL, actions=("forward", "slow"))), DataError, "no label 'slow'"),
        (replace(HEAD, start=str(wide)), CheckpointError, "patches of 16 px, this model of 8"),
        (replace(HEAD, start=str(tmp_path / "none.pth")), CheckpointError, "no such file"),
        (replace(HEAD, short_side_px=7), UnsupportedModelError, "frames are 7 x 11 px"),
        (replace(HEAD, model=replace(MODEL, backbone="vit_tyni")), UnsupportedModelError, "did you mean"),
    ]
    for how, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            train(shards, tmp_path / "out", how, device="cpu")
        assert "\n" not in str(caught.value)
    train(shards, tmp_path / "out", replace(HEAD, epochs=1), device="cpu")
    with pytest.raises(CheckpointError, match="already holds a training run"):
        train(shards, tmp_path / "out", HEAD, device="cpu")
    with pytest.raises(CheckpointError, match="another configuration"):
        train(shards, tmp_path / "out", replace(HEAD, seed=1), device="cpu", resume=True)


def test_shards_without_training_images_are_refused(shards, tmp_path) -> None:
    copy = tmp_path / "s"
    shutil.copytree(shards, copy)
    with pytest.raises(DataError, match=r"no manifest"):
        train(tmp_path / "nothing", tmp_path / "o", HEAD, device="cpu")
    (copy / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="index"):
        train(copy, tmp_path / "o", HEAD, device="cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -1},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"augmentation": Augmentation(flip=False)},
        {"tune": "all", "augmentation": Augmentation()},
        {"model": replace(MODEL, actions=("forward", "left"))},
    ],
)
def test_settings_that_cannot_train_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"expected|augmentation needs"):
        replace(HEAD, **wrong)
