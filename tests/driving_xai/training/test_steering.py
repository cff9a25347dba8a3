"""The steering recipe: it learns, it resumes exactly, it refuses what it cannot use."""

import shutil
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from data_prep.prepare import PrepConfig, prepare
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import Manifest
from driving_xai import checkpoint
from driving_xai.data import drives
from driving_xai.data.drives import Route, open_index, runs, vehicle_of
from driving_xai.data.splits import HoldOut
from driving_xai.errors import CheckpointError, DataError
from driving_xai.models.steering import SteeringConfig
from driving_xai.training import schedules
from driving_xai.training.augment import Augmentation, augment
from driving_xai.training.dino import DinoTraining
from driving_xai.training.drive_features import FeatureWindows, drive_features
from driving_xai.training.evaluation import walk
from driving_xai.training.forecast import forecast
from driving_xai.training.presets import preset, table_of
from driving_xai.training.steering import (
    MIRRORED,
    SteeringModule,
    SteeringTraining,
    recipe,
    start_model,
    train,
)
from driving_xai.unfinished import BEST, RESUME, load_saved

HOW = SteeringTraining(
    model=SteeringConfig(hidden_size=8),
    held_out=HoldOut(block=2, gap_s=0.2, val_fraction=0.2),
    epochs=2,
    frame_epochs=1,
    window=5,
    batch_size=4,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds of the synthetic road in three blocks."""
    out = tmp_path_factory.mktemp("shards") / "route"
    options = {"seconds": 12.0, "height": 120, "width": 160}
    short = {"blocks": 3, "gap_s": 0.2, "smoothing": 0.7}
    prepare(PrepConfig(reader="synthetic", source=Path("-"), reader_options=options, **short), out)
    return out


@pytest.fixture(scope="module")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained without an interruption."""
    out = tmp_path_factory.mktemp("straight")
    train(shards, out, HOW, device="cpu")
    return out


class Rates(L.Callback):
    """The learning rate of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_the_rate_decays_by_steps_over_both_phases_and_a_resumed_run(shards, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(schedules, "DECAY_STEPS", 3)
    how, rates = replace(HOW, schedule="decay"), Rates()
    with pytest.raises(KeyboardInterrupt):
        train(shards, tmp_path, how, device="cpu", callbacks=(rates, Interrupt(1)))
    before = len(rates.found) - 2
    train(shards, tmp_path, how, device="cpu", resume=True, callbacks=(rates,))
    found = rates.found[:before] + rates.found[before + 2 :]
    bases = [how.frame_learning_rate] * before + [how.learning_rate] * (len(found) - before)
    assert len(found) > before + 3
    assert found == pytest.approx([base * 0.96 ** (step // 3) for step, base in enumerate(bases)])


class Interrupt(L.Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_resumed_run_ends_where_an_unbroken_one_does(shards, straight, tmp_path, epoch) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(shards, tmp_path, HOW, device="cpu", callbacks=(Interrupt(epoch),))
    if epoch:
        averaged = load_saved(tmp_path / RESUME / BEST)["state_dict"]
        kept = checkpoint.load(tmp_path, kind="steering").model.initial_hidden.weight
        assert torch.equal(kept, averaged["averaged.initial_hidden.weight"])
    else:
        with pytest.raises(CheckpointError, match="has not ended its first epoch"):
            checkpoint.load(tmp_path)
    train(shards, tmp_path, HOW, device="cpu", resume=True)
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.METRICS):
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes(), name


def test_a_checkpoint_says_what_it_is_and_loads_to_the_same_predictions(shards, straight) -> None:
    loaded = checkpoint.load(straight, kind="steering")
    assert loaded.config["data"]["held_out"] == {"block": 2, "gap_s": 0.2, "val_fraction": 0.2}
    assert loaded.config["input"]["geometry"]["height"] == 80
    assert loaded.metrics["test"]["frames"] == 80
    assert set(loaded.metrics["test"]) >= {
        "mae_deg",
        "mae_deg_zero",
        "mae_deg_train_mean",
        "mae_deg_train_median",
    }
    frames = torch.rand(1, 3, 80, 160)
    again = checkpoint.load(straight)
    with torch.no_grad():
        assert torch.equal(loaded.model.step(frames, None)[0], again.model.step(frames, None)[0])
    assert loaded.sha256 == again.sha256
    assert len(loaded.sha256) == 64


def test_where_frames_are_kept_changes_no_weight(shards, straight, tmp_path) -> None:
    """`straight` keeps them on the device; with no room they are read again and again."""
    train(shards, tmp_path, replace(HOW, keep_mib=0), device="cpu")
    weights = [(out / checkpoint.WEIGHTS).read_bytes() for out in (tmp_path, straight)]
    assert weights[0] == weights[1]


def test_training_lowers_the_error_on_what_it_sees(shards, tmp_path) -> None:
    how = replace(HOW, frame_epochs=12, epochs=0, patience=None)
    train(shards, tmp_path, how, device="cpu")
    rows = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train_loss")
    losses = [float(value) for row in rows[1:] if (value := row.split(",")[column])]
    assert losses[-1] < 0.6 * losses[0]


def test_a_warm_start_takes_the_convolutions_of_a_model_that_saw_no_more(shards, straight, tmp_path) -> None:
    # With a rate this small and no running average the model stays where it started.
    still = replace(HOW, learning_rate=1e-12, frame_epochs=0, epochs=1, averaging=0.0)
    soft = replace(still, model=replace(HOW.model, attention="soft"))
    train(shards, tmp_path / "warm", soft, device="cpu", encoder_from=straight)
    warm, source = (load_file(path / checkpoint.WEIGHTS) for path in (tmp_path / "warm", straight))
    for name in source:
        if name.startswith("encoder.") and name.endswith(".weight"):
            torch.testing.assert_close(warm[name], source[name], atol=1e-8, rtol=0)
    config = checkpoint.load(tmp_path / "warm").config
    assert config["training"]["encoder_from_sha256"] == checkpoint.load(straight).sha256

    other_block = replace(still, held_out=HoldOut(block=1, gap_s=0.2, val_fraction=0.2))
    with pytest.raises(CheckpointError, match="may have seen"):
        train(shards, tmp_path / "leak", other_block, device="cpu", encoder_from=straight)
    plain = replace(still, model=replace(HOW.model, normalisation="none"))
    with pytest.raises(CheckpointError, match="another encoder"):
        train(shards, tmp_path / "plain", plain, device="cpu", encoder_from=straight)


def test_frozen_convolutions_stay_as_they_were_and_the_others_learn(shards, straight, tmp_path) -> None:
    how = replace(HOW, frozen_convolutions=3, frame_epochs=0, epochs=1, averaging=0.0)
    train(shards, tmp_path / "warm", how, device="cpu", encoder_from=straight)
    warm, source = (load_file(path / checkpoint.WEIGHTS) for path in (tmp_path / "warm", straight))
    layers = {name: int(name.split(".")[1]) for name in source if name.startswith("encoder.")}
    fourth_convolution = 9
    for name, layer in layers.items():
        assert torch.equal(warm[name], source[name]) == (layer < fourth_convolution), name


def test_an_output_in_use_and_a_resume_without_a_run_are_refused(shards, straight, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="already holds a training run"):
        train(shards, straight, HOW, device="cpu")
    with pytest.raises(CheckpointError, match="no interrupted training"):
        train(shards, tmp_path / "nothing", HOW, device="cpu", resume=True)
    with pytest.raises(CheckpointError, match="another configuration"):
        train(shards, straight, replace(HOW, seed=1), device="cpu", resume=True)


def test_too_short_runs_are_refused(shards, tmp_path) -> None:
    with pytest.raises(DataError, match="no training run holds 500 consecutive frames"):
        train(shards, tmp_path / "model", replace(HOW, window=500, frame_epochs=0), device="cpu")
    assert not (tmp_path / "model").exists(), "a refused run would stand in the way of the next"


def test_frames_of_another_size_than_the_models_are_one_line(shards, tmp_path) -> None:
    how = replace(HOW, model=SteeringConfig(hidden_size=8, height=40, width=96))
    with pytest.raises(
        DataError, match=r"frames of 80 x 160 px .* takes 40 x 96; add --set model\.height=80"
    ):
        train(shards, tmp_path / "model", how, device="cpu")
    assert not (tmp_path / "model").exists()


def test_runs_of_just_one_window_train_in_every_epoch(shards, tmp_path) -> None:
    """Where a window starts is drawn; the draw must not leave a run without any."""
    index = open_index(shards, Manifest.load(shards))
    longest = max(map(len, runs(index, index["split"].to_numpy(dtype=str) == "train")))
    train(shards, tmp_path, replace(HOW, window=longest, frame_epochs=0, held_out=HoldOut()), device="cpu")
    assert checkpoint.load(tmp_path).config["training"]["window"] == longest


@pytest.mark.parametrize("damage", ["truncated", "other-shape", "unknown-key", "other-kind", "no-json"])
def test_a_damaged_checkpoint_is_one_clear_line(straight, tmp_path, damage) -> None:
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.METRICS):
        (tmp_path / name).write_bytes((straight / name).read_bytes())
    config = tmp_path / checkpoint.CONFIG
    if damage == "truncated":
        (tmp_path / checkpoint.WEIGHTS).write_bytes((straight / checkpoint.WEIGHTS).read_bytes()[:1000])
    elif damage == "other-shape":
        config.write_text(config.read_text().replace('"hidden_size": 8', '"hidden_size": 9'))
    elif damage == "unknown-key":
        config.write_text(config.read_text().replace('"hidden_size"', '"hiden_size"'))
    elif damage == "other-kind":
        config.write_text(config.read_text().replace('"kind": "steering"', '"kind": "actions"'))
    else:
        config.write_text("not json")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_changed_index_is_refused(shards, tmp_path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    index = pd.read_parquet(copy / "index.parquet")
    index.assign(split="train").to_parquet(copy / "index.parquet")
    with pytest.raises(DataError, match="index"):
        train(copy, tmp_path / "out", HOW, device="cpu")


def test_impatience_waits_for_the_windows(shards, tmp_path) -> None:
    """With no patience at all, single frames never stop a run before its windows."""
    how = replace(HOW, frame_epochs=4, epochs=1, patience=1, learning_rate=1e-9, frame_learning_rate=1e-9)
    assert train(shards, tmp_path, how, device="cpu")["epochs"] == 5


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"learning_rate": -1.0}, {"epochs": 0, "frame_epochs": 0}, {"averaging": 1.0}]
)
def test_settings_that_cannot_train_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(HOW, **wrong)


def test_the_papers_own_settings_are_the_literal_ones_and_train() -> None:
    how = preset(SteeringTraining)
    assert how.model == SteeringConfig(energy="scalar", attention_scale="sum-to-one", normalisation="none")
    assert (how.schedule, how.batch_size, how.window, how.loss) == ("decay", 2, 20, "l1")
    assert (how.patience, how.averaging, how.gradient_clip) == (None, 0, 0)
    still = torch.rand(2, 5, 3, 8, 8), torch.rand(2, 5)
    for ours, theirs in zip(
        augment(*still, how.augmentation, torch.Generator().manual_seed(0)), still, strict=True
    ):
        assert torch.equal(ours, theirs)
    unchanged = {"learning_rate": 1e-4, "epochs": 30, "weight_decay": 0.0}
    assert {name: getattr(how, name) for name in unchanged} == unchanged
    assert preset(DinoTraining).start == "timm"
    assert set(table_of(DinoTraining, "paper")) == {"start", "model"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the network of timm that the encoder below is."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def frozen(weights: Path) -> SteeringTraining:
    model = SteeringConfig(hidden_size=8, encoder="timm:test_efficientnet", encoder_stride=8, colour="rgb")
    kept = {"start": str(weights), "tune": "head", "feature_precision": "fp32"}
    return replace(HOW, model=model, augmentation=MIRRORED, **kept)


@pytest.fixture(scope="module")
def on_features(shards: Path, frozen: SteeringTraining, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("frozen")
    train(shards, out, frozen, device="cpu")
    return out


def test_a_frozen_network_of_timm_keeps_its_weights_and_what_follows_learns(weights, on_features) -> None:
    given, learnt = load_file(weights), load_file(on_features / checkpoint.WEIGHTS)
    inside = {name.removeprefix("encoder.trunk."): value for name, value in learnt.items() if "trunk" in name}
    assert len(inside) > 10
    assert all(torch.equal(value, given[name]) for name, value in inside.items())
    # Of the projection every weight moved.
    fresh = checkpoint.load(on_features).config["model"]
    assert fresh["encoder"] == "timm:test_efficientnet"
    assert learnt["encoder.project.1.running_mean"].abs().min() > 0
    said = checkpoint.load(on_features).config["training"]["start"]
    assert said == {"file": "net.safetensors", "sha256": sha256_of(weights)}


def test_kept_features_drive_as_the_frames_do(shards, frozen, on_features) -> None:
    """A whole drive, on the features that training kept and on frames; and what was validated is the model's."""
    model = checkpoint.load(on_features).model
    route, kept = _route(shards), sorted((on_features / "features").glob("*.npy"))
    assert len(kept) == 2
    features = drive_features(
        model,
        route,
        on_features / "features",
        source=Manifest.load(shards).sha256,
        mirrored=True,
        precision="fp32",
    )
    assert sorted((on_features / "features").glob("*.npy")) == kept, "nothing is computed twice"
    all_runs = runs(route.index, np.ones(len(route.index), bool))
    plain = walk(model, route, all_runs)
    torch.testing.assert_close(
        torch.tensor(walk(model, route, all_runs, features=features)["prediction"]),
        torch.tensor(plain["prediction"]),
        rtol=0,
        atol=1e-7,
    )
    rows = np.arange(3)
    turned = model.encoder.features(model.converted(route.frames(rows).flip(-1).float() / 255))
    torch.testing.assert_close(features.frames(rows, mirrored=True), turned.detach())


def test_mirrored_windows_have_the_steering_of_the_other_side(shards, frozen, on_features) -> None:
    model, route = checkpoint.load(on_features).model, _route(shards)
    where = on_features / "features"
    how = {"source": Manifest.load(shards).sha256, "mirrored": True, "precision": "fp32"}
    features = drive_features(model, route, where, **how)
    pair = FeatureWindows(features, route, [np.arange(4)] * 2, [False, True])
    assert torch.equal(pair[0].target, -pair[1].target)
    assert torch.equal(pair[1].frames, features.frames(np.arange(4), mirrored=True))
    assert not torch.allclose(pair[0].frames, pair[1].frames)


def test_training_on_features_resumes_exactly(shards, frozen, on_features, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(shards, tmp_path, frozen, device="cpu", callbacks=(Interrupt(1),))
    train(shards, tmp_path, frozen, device="cpu", resume=True)
    assert (tmp_path / checkpoint.WEIGHTS).read_bytes() == (on_features / checkpoint.WEIGHTS).read_bytes()


def test_features_may_lie_where_runs_share_them(shards, frozen, on_features, tmp_path) -> None:
    told: list[tuple[int, int]] = []
    how = replace(frozen, epochs=0, held_out=replace(frozen.held_out, block=1))
    shared = {"features": on_features / "features", "on_features": lambda *done: told.append(done)}
    train(shards, tmp_path, how, device="cpu", **shared)
    assert not told
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tune": "head"}, "for encoders of timm"),
        ({"start": "net.safetensors"}, "for encoders of timm"),
    ],
)
def test_weights_and_a_frozen_encoder_are_of_timm(wrong, says) -> None:
    with pytest.raises(ValueError, match=says):
        replace(HOW, **wrong)


def test_what_would_not_act_on_kept_features_is_refused(frozen) -> None:
    with pytest.raises(ValueError, match=r"augmentation\.brightness"):
        replace(frozen, augmentation=Augmentation())
    with pytest.raises(ValueError, match="set tune to head"):
        replace(frozen, frozen_convolutions=1)


def _route(shards: Path) -> Route:
    manifest = Manifest.load(shards)
    return Route(shards, open_index(shards, manifest), vehicle_of(shards, manifest))


def test_a_forecast_of_a_frozen_encoder_computes_and_writes_no_features(shards, frozen, tmp_path) -> None:
    out = tmp_path / "out"
    found = forecast(recipe(shards, out, frozen, device="cpu"), device="cpu")
    assert found.speed is None
    assert 0 < found.before_s < 600
    assert not out.exists()
    whole = sum(each.numel() for each in start_model(frozen).parameters())
    trunk = sum(each.numel() for each in start_model(frozen).encoder.trunk.parameters())
    assert found.parameters == whole - trunk


def test_a_forecast_knows_which_features_are_kept_already(shards, frozen, on_features) -> None:
    assert forecast(recipe(shards, on_features, frozen, device="cpu"), device="cpu").before_s == 0
    other = replace(frozen, feature_precision="fp16" if frozen.feature_precision == "fp32" else "fp32")
    assert forecast(recipe(shards, on_features, other, device="cpu"), device="cpu").before_s > 0


def test_a_forecast_measures_steps_over_windows_and_not_the_cheap_ones_before(
    shards, tmp_path, monkeypatch
) -> None:
    lengths, step = [], SteeringModule.training_step

    def recorded(module: SteeringModule, batch, batch_idx: int) -> torch.Tensor:
        lengths.append(batch.target.shape[1])
        return step(module, batch, batch_idx)

    monkeypatch.setattr(SteeringModule, "training_step", recorded)
    found = forecast(recipe(shards, tmp_path / "out", HOW, device="cpu"), device="cpu")
    assert set(lengths) == {HOW.window}
    assert found.epochs == HOW.epochs + HOW.frame_epochs
    assert found.speed is not None


def test_frames_go_to_the_device_in_small_pieces_and_lie_in_memory_once(
    shards, tmp_path, monkeypatch
) -> None:
    module = recipe(shards, tmp_path / "out", HOW, device="cpu").build()
    assert isinstance(module, SteeringModule)
    used = [*module.splits.train, *module.splits.val]
    wanted = torch.cat([module.route.frames(run.rows) for run in used])
    read, real, lengths = [], drives.read_frames, drives.shard_lengths(module.route.index)

    def recorded(path: Path, start: int, stop: int) -> np.ndarray:
        read.append(stop - start)
        return real(path, start, stop)

    monkeypatch.setattr(drives, "read_frames", recorded)
    monkeypatch.setattr(drives, "_PIECE", 40)
    module.on_fit_start()
    assert max(read) <= 40 < max(lengths.values()), "no whole shard, though there is room to keep it"
    assert sum(read) == len(wanted) + 1, "each frame once, and one for the size"
    assert module.on_device is not None
    assert torch.equal(module.on_device.read(np.concatenate([run.rows for run in used])), wanted)
