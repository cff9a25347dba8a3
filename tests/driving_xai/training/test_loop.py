"""The loop of all recipes: kills leave good checkpoints, logs continue, and what it says of a training."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import platform
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.lock import exclusive
from data_prep.shards.atomic import TEMPORARY
from driving_xai import checkpoint, unfinished
from driving_xai.errors import CheckpointError, DataError
from driving_xai.training import loop
from driving_xai.training.classify import ClassifierTraining, train
from driving_xai.training.recipe import Plan, RecipeModule
from driving_xai.training.state import Start, begun
from driving_xai.unfinished import RESUME, load_saved
from tests.driving_xai.training import together
from tests.driving_xai.training.pictures import Pictures

HOW = replace(together.CLASSIFIER, epochs=3)
SAVES = 6
"""Of best.ckpt and last.ckpt in three epochs that all improve."""


class Interrupt(L.Callback):
    """Ctrl-C in the middle of the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt


def trained(out: Path, how: ClassifierTraining = HOW, **options) -> dict:
    return train(Pictures(), out, how, data={}, device="cpu", **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    trained(out)
    return out


def die(out: Path, save: int, share: float) -> None:
    """Trains, and is killed when so much of the numbered checkpoint file is written; needs no temporary folder."""
    tempfile.tempdir = "/nowhere"
    written, real = [0], torch.save

    def partial(content, path) -> None:
        written[0] += 1
        if written[0] < save:
            real(content, path)
            return
        data = io.BytesIO()
        real(content, data)
        path.write(data.getvalue()[: int(share * len(data.getvalue()))])
        path.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = partial
    trained(out)


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_training_leaves_good_checkpoints_and_resumes_to_the_same_weights(
    whole, tmp_path, seed
) -> None:
    draw = np.random.default_rng(seed)
    save, share = int(draw.integers(1, SAVES + 1)), float(draw.choice([0.0, 0.3, 1.0]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.driving_xai.training.test_loop"])
    process = context.Process(target=die, args=(tmp_path, save, share))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    folder = tmp_path / RESUME
    assert list(folder.glob("*.tmp"))
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / name).exists():
            torch.load(folder / name, weights_only=True)
    assert (folder / "best.ckpt").exists() == (save > 1)
    trained(tmp_path, resume=True)
    assert not list(tmp_path.rglob("*.tmp"))
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.METRICS):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_features_that_another_process_of_the_training_is_writing_stay(tmp_path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    ended = 2**22 + 1  # More than Linux gives as the number of a process.
    files = [folder / f"f.npy.{platform.node()}-{process}{TEMPORARY}" for process in (os.getppid(), ended)]
    for file in files:
        file.touch()
    with begun(tmp_path, {"training": {"epochs": 1}}, resume=False):
        assert [file.exists() for file in files] == [True, False]


class EverWorse(L.Callback):
    """The first epoch stays the best."""

    def on_validation_end(self, trainer, pl_module) -> None:
        trainer.callback_metrics["val_loss"] = torch.tensor(float(trainer.current_epoch))


def test_the_last_epoch_is_kept_though_an_earlier_one_was_better(tmp_path) -> None:
    trained(tmp_path, callbacks=(EverWorse(),))
    found = unfinished.read(tmp_path)
    assert (found.epoch, found.best_epoch, found.monitor, found.value) == (3, 1, "val_loss", 0.0)


def test_an_interrupted_training_says_with_which_epoch_it_goes_on(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"up to 1 are kept.* --resume goes on with epoch 2"):
        trained(tmp_path, callbacks=(Interrupt(),))
    found = unfinished.read(tmp_path)
    assert (found.kind, found.epoch, found.best_epoch) == ("classifier", 1, 1)
    assert found.best.is_file()
    (tmp_path / "resume" / "best.ckpt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="cannot be read"):
        unfinished.read(tmp_path)


def test_logs_are_one_run_across_a_resume(whole, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, callbacks=(Interrupt(),))
    trained(tmp_path, resume=True)
    assert [folder.name for folder in (tmp_path / "logs").iterdir()] == ["version_0"]
    rows, expected = (
        list(csv.DictReader((out / "logs/version_0/metrics.csv").read_text().splitlines()))
        for out in (tmp_path, whole)
    )
    for row in [*rows, *expected]:  # How fast each was is its own.
        if row.pop("frames_per_s"):
            assert 0 <= float(row.pop("data_wait_share")) <= 1
        row.pop("data_wait_share", None)
    assert rows == expected
    assert [row["epoch"] for row in rows if row["train_loss"]] == ["0", "1", "2"]
    events = EventAccumulator(str(tmp_path / "logs/version_0")).Reload()
    assert [scalar.step for scalar in events.Scalars("train_loss")] == [6, 13, 20]
    assert "_hparams_/experiment" in events.PluginTagToContent("hparams")
    text = (tmp_path / "logs/version_0/hparams.yaml").read_text()
    assert "learning_rate: 0.001" in text
    assert "python/" not in text


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(whole) -> None:
    before = {name: (whole / name).read_bytes() for name in (checkpoint.WEIGHTS, checkpoint.METRICS)}
    trained(whole, resume=True)
    assert before == {name: (whole / name).read_bytes() for name in before}


def test_more_epochs_extend_a_finished_run(whole, tmp_path) -> None:
    # A copy: the best epoch so far is known in another folder too, or Lightning would warn and forget it.
    out = shutil.copytree(whole, tmp_path / "extended")
    assert trained(out, replace(HOW, epochs=4), resume=True)["epochs"] == 4
    assert load_saved(out / RESUME / "last.ckpt")["epoch"] == 3
    saved = [json.loads((out / folder / "config.json").read_text()) for folder in (".", RESUME)]
    assert [config["training"]["epochs"] for config in saved] == [4, 4]


def test_with_a_constant_rate_an_extended_run_is_one_begun_that_long(tmp_path) -> None:
    how = replace(HOW, schedule="constant", epochs=3)
    trained(tmp_path / "long", how)
    out = tmp_path / "extended"
    for epochs in (1, 2, 3):
        trained(out, replace(how, epochs=epochs), resume=epochs > 1)
    for name in (checkpoint.WEIGHTS, checkpoint.METRICS):
        assert (out / name).read_bytes() == (tmp_path / "long" / name).read_bytes(), name
    long, extended = (checkpoint.load(path).config for path in (tmp_path / "long", out))
    history = [{"epochs": 1, "after_epoch": 1}, {"epochs": 2, "after_epoch": 2}]
    assert extended == {**long, "extended": history}
    assert json.loads((out / RESUME / "config.json").read_text())["extended"] == history


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 7}, "training.seed was 0 and is 7;"),
        ({"epochs": 2}, r"training.epochs was 3 and is 2 \(it can only be raised\);"),
        ({"epochs": 5, "batch_size": 2}, "data: training.batch_size was . and is 2;"),
    ],
)
def test_a_resume_names_what_differs(whole, change, said) -> None:
    before = (whole / RESUME / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=said):
        trained(whole, replace(HOW, **change), resume=True)
    assert (whole / RESUME / "config.json").read_bytes() == before


def test_a_process_that_torchrun_starts_again_resumes_by_itself(whole, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    config, last = {"kind": "x"}, tmp_path / RESUME / "last.ckpt"
    with begun(tmp_path, config, resume=False) as start:
        assert start.state is None
    shutil.copyfile(whole / RESUME / "last.ckpt", last)
    with begun(tmp_path, config, resume=False) as start:
        assert start.state == last
    with pytest.raises(CheckpointError, match="another configuration"), begun(tmp_path, {"kind": "y"}, False):
        pass


def test_a_second_run_is_refused_and_changes_nothing(whole) -> None:
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    with exclusive(whole), pytest.raises(DataError, match="another run is writing here"):
        trained(whole, resume=True)
    assert {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("harm", ["cut", "flipped", "other", "empty", "foreign"])
def test_a_damaged_state_is_refused_in_one_line(whole, tmp_path, name, harm) -> None:
    shutil.copytree(whole, tmp_path / "out")
    file = tmp_path / "out" / RESUME / name
    data = bytearray(file.read_bytes())
    if harm == "flipped":
        data[data.find(b"state_dict") + 2000] ^= 4
    made = {"cut": data[: len(data) // 2], "flipped": data, "other": b"\x80\x02}q\x00.", "empty": b""}
    if harm == "foreign":
        torch.save({"state_dict": {}, "epoch": 0}, file)
    else:
        file.write_bytes(made[harm])
    with pytest.raises(
        CheckpointError, match=rf"{name} is damaged \(.*\); restore it, or remove .*out and train again$"
    ):
        trained(tmp_path / "out", resume=True)


def test_another_models_state_is_refused_in_one_line(whole, tmp_path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    file = tmp_path / "out" / RESUME / "last.ckpt"
    state = torch.load(file, weights_only=True)
    state["state_dict"] = {name: value[None] for name, value in state["state_dict"].items()}
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="damaged"):
        trained(tmp_path / "out", resume=True)


class Line(L.Callback):
    """What the loop says at the start."""

    line = ""

    def on_train_start(self, trainer, pl_module) -> None:
        self.line = loop.what_runs(trainer, pl_module)


def test_what_runs_is_one_line(tmp_path) -> None:
    line = Line()
    trained(tmp_path, replace(HOW, epochs=1), callbacks=(line,))
    assert line.line == (
        "training 842 parameters on cpu, epochs 1 to 1; an epoch is 36 images, 5 a step, validated on 12"
    )


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"test": {"mae_deg": 3.0, "mae_deg_zero": 4.0, "mae_deg_train_mean": 2.5}}, "mae_deg 3 against 2.5"),
        ({"test": {"mae_deg": 2.0, "mae_deg_zero": 4.0, "mae_deg_train_mean": 2.5}}, None),
        ({"val": {"accuracy": 0.5, "accuracy_majority": 0.5}}, "On the val split"),
        ({"test": {"accuracy": 0.6, "majority": {"accuracy": 0.7}}}, "accuracy 0.6 against 0.7"),
        (
            {
                "test": {"accuracy": 0.9, "accuracy_majority": 0.5},
                "val": {"accuracy": 0.1, "accuracy_majority": 0.5},
            },
            None,
        ),
        ({"train_loss": 1.0}, None),
    ],
)
def test_a_model_that_is_no_better_than_without_looking_is_named(metrics, expected) -> None:
    found = loop.worse_than_trivial(metrics)
    assert found is None if expected is None else expected in found


def test_more_devices_than_there_are_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="devices is 3 and torch finds 1 GPUs"):
        loop.run(Planned(), tmp_path, start=Start(None, {}), device="cuda", devices=3)


class Planned(RecipeModule):
    """A plan and nothing else."""

    def plan(self) -> Plan:
        return Plan(epochs=1, precision="32")
