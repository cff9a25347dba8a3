"""Where a training's metrics and pictures go: TensorBoard, Weights & Biases, MLflow, and the table alone."""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from driving_xai.errors import OptionError, UnsupportedModelError
from driving_xai.training import classify, logs
from driving_xai.training.classify import ClassifierTraining, train
from driving_xai.training.heat_pictures import HeatPictures
from driving_xai.training.logs import LoggerName, Progress, loggers
from driving_xai.training.loop import train_to_checkpoint
from driving_xai.training.recipe import RecipeModule
from tests.driving_xai.training import together
from tests.driving_xai.training.pictures import Pictures

HOW = replace(together.CLASSIFIER, epochs=2)


def trained(out: Path, how: ClassifierTraining = HOW, **options) -> dict:
    return train(Pictures(), out, how, data={}, device="cpu", **options)


def test_frames_with_heat_are_logged_and_change_nothing(tmp_path) -> None:
    trained(tmp_path / "plain", logger="none")
    trained(tmp_path / "shown", callbacks=(HeatPictures(every=2),))
    events = EventAccumulator(str(tmp_path / "shown/logs/version_0"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == [f"heat/{number}" for number in range(4)]
    (picture,) = events.Images("heat/0")
    assert picture.step == 14
    assert picture.width > 1.9 * picture.height, "the frame, its heat on its right"
    assert not list((tmp_path / "plain").rglob("events*"))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "shown")]
    assert weights[0] == weights[1]
    rows = list(csv.DictReader((tmp_path / "plain/logs/version_0/metrics.csv").read_text().splitlines()))
    assert all(float(row["frames_per_s"]) > 0 for row in rows if row["train_loss"])


def test_a_training_that_stops_early_has_pictures_of_its_last_epoch(tmp_path) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True

    trained(tmp_path, replace(HOW, epochs=9), callbacks=(HeatPictures(every=5), Stop()))
    events = EventAccumulator(str(tmp_path / "logs/version_0"), size_guidance={"images": 0}).Reload()
    assert [picture.step for picture in events.Images("heat/0")] == [7]


def test_a_method_that_the_model_lacks_is_refused_before_anything_is_computed_or_written(tmp_path) -> None:
    def features_for_hours() -> RecipeModule:
        raise AssertionError("built")

    recipe = replace(classify.recipe(Pictures(), HOW, data={}), build=features_for_hours)
    heat = (HeatPictures(method="sign-attention"),)
    options = {"device": "cpu", "devices": None, "resume": False, "logger": "none"}
    with pytest.raises(UnsupportedModelError):
        train_to_checkpoint(recipe, tmp_path / "out", callbacks=heat, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_one_line(tmp_path, monkeypatch, name) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        OptionError, match=rf"--logger {name}: it is not installed; `pip install '.\[{name}\]'`"
    ):
        loggers(tmp_path, Progress(-1, 0), name)


class Recorded:
    """Stands for the logger of a library that may not be installed."""

    run_id = "7"

    def __init__(self, *_: object, **options: object) -> None:
        self.options = options


@pytest.mark.parametrize(("name", "option"), [("wandb", "id"), ("mlflow", "run_id")])
def test_a_resumed_training_goes_on_with_the_same_run(
    tmp_path, monkeypatch, name: LoggerName, option
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(logs, {"wandb": "WandbLogger", "mlflow": "MLFlowLogger"}[name], Recorded)
    first, resumed, anew = (loggers(tmp_path, Progress(epoch, 0), name)[1].options for epoch in (-1, 2, -1))
    known = first[option] or Recorded.run_id
    assert resumed[option] == known
    assert anew[option] != known


@pytest.mark.filterwarnings("ignore:")  # What the two warn of in their own dependencies is theirs.
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_library_itself_takes_metrics_settings_and_pictures(tmp_path, monkeypatch, name) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    trained(tmp_path / "run", logger=name, callbacks=(HeatPictures(every=1),))
    if name == "wandb":
        assert list((tmp_path / "run/logs/wandb").glob("offline-run-*/files/media/images/heat/*.png"))
        return
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run/logs/mlflow.db'}")
    run = client.get_run((tmp_path / "run/logs/version_0/mlflow.id").read_text().strip())
    assert run.data.metrics["train_loss"] > 0
    assert run.data.params["training/seed"] == "0"
    assert client.list_artifacts(run.info.run_id, "images")
    assert torch.isfinite(torch.tensor(run.data.metrics["frames_per_s"]))
