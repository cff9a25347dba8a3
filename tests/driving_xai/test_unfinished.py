"""A training that has not ended is a model with its best weights so far, and everything that uses it says so."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

import driving_xai as dx
from driving_xai import checkpoint, unfinished
from driving_xai.errors import CheckpointError
from driving_xai.unfinished import BEST, KEPT, LAST, RESUME
from tests.driving_xai.cli.conftest import invoke
from tests.driving_xai.training.test_loop import Interrupt, trained


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of three epochs that was stopped in its second."""
    out = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        trained(out, callbacks=(Interrupt(),))
    return out


def test_it_is_a_checkpoint_of_its_best_weights(stopped) -> None:
    found = checkpoint.load(stopped, kind="classifier")
    assert found.unfinished is not None
    assert (found.unfinished.best_epoch, found.unfinished.epochs, found.metrics) == (1, 3, {})
    assert found.sha256 == hashlib.sha256((stopped / RESUME / BEST).read_bytes()).hexdigest()
    saved = torch.load(stopped / RESUME / BEST, weights_only=True)["state_dict"]
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"]), name
    assert found.in_plans["checkpoint_unfinished"] == {
        "epoch": 1,
        "epochs": 3,
        "best_epoch": 1,
        "monitor": "val_loss",
        "value": pytest.approx(found.unfinished.value),
    }


def test_a_validation_without_a_finite_value_is_said_without_one(stopped, tmp_path) -> None:
    out = shutil.copytree(stopped, tmp_path / "out")
    state = torch.load(out / RESUME / BEST, weights_only=True)
    for kept in state["callbacks"].values():
        kept["best_model_score"] = torch.tensor(float("inf"))  # As Lightning keeps NaN.
    torch.save(state, out / RESUME / BEST)
    assert unfinished.read(out).value is None
    assert json.loads(invoke("info", out, "--json").stdout)["value"] is None
    assert "best so far  epoch 1; explain" in invoke("info", out).stdout


def test_a_notebook_is_warned(stopped) -> None:
    with pytest.warns(
        UserWarning, match=r"the training has not ended; .* epoch 1 of 3, the best so far \(val_loss"
    ):
        found = dx.load(stopped)
    assert found.outputs.kind == "multiclass"


def test_a_finished_training_says_nothing(stopped, tmp_path) -> None:
    out = shutil.copytree(stopped, tmp_path / "out")
    trained(out, resume=True)
    found = dx.load(out)
    assert found.caution is None
    assert set(found.in_plans) == {"checkpoint_sha256"}


def test_before_its_first_epoch_ended_there_is_nothing_to_use(stopped, tmp_path) -> None:
    out = shutil.copytree(stopped, tmp_path / "out")
    (out / RESUME / BEST).unlink()
    with pytest.raises(CheckpointError, match="has not ended its first epoch; wait for it"):
        checkpoint.load(out)


def test_what_is_read_stays_whole_though_the_training_replaces_it(stopped, tmp_path) -> None:
    out = shutil.copytree(stopped, tmp_path / "out")
    file = out / RESUME / BEST
    with file.open("rb") as opened:
        newer = out / "newer"
        newer.write_bytes(b"half of the next")
        newer.replace(file)
        assert unfinished.load_saved(file, opened=opened)["epoch"] == 0
    with pytest.raises(CheckpointError, match=r"best.ckpt is damaged \(.*\); restore it"):
        checkpoint.load(out)


@pytest.mark.parametrize("harm", ["no model", "other model", "no config"])
def test_a_damaged_one_is_one_line(stopped, tmp_path, harm) -> None:
    out = shutil.copytree(stopped, tmp_path / "out")
    state = torch.load(out / RESUME / BEST, weights_only=True)
    if harm == "no model":
        del state[KEPT]
    elif harm == "other model":
        state["state_dict"] = {name: value[None] for name, value in state["state_dict"].items()}
    else:
        (out / RESUME / "config.json").write_text('{"kind": "classifier"}')
    torch.save(state, out / RESUME / BEST)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(out)
    assert "\n" not in str(caught.value)


def test_how_far_it_is_can_be_said_though_its_last_state_is_damaged(stopped, tmp_path) -> None:
    out = shutil.copytree(stopped, tmp_path / "out")
    (out / RESUME / LAST).write_bytes(b"half")
    assert str(checkpoint.load(out).unfinished).startswith("epoch 1 of 3")
