"""Parts of a batch add up to it, and processes that train together learn what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep.prepare import PrepConfig, prepare
from driving_xai.training import classify, processes, steering
from driving_xai.training.augment import augment
from driving_xai.training.processes import part_of, placement
from tests.driving_xai.training import together
from tests.driving_xai.training.pictures import Pictures


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [1, 2, 7, 10])
def test_parts_cover_a_batch_once_and_their_means_add_up(total, processes) -> None:
    values = np.random.default_rng(0).normal(size=total)
    parts = [part_of(total, number, processes) for number in range(processes)]
    real = [part for part in parts if part.share > 0]
    assert np.concatenate([np.arange(total)[part.inside] for part in real]).tolist() == list(range(total))
    mean = sum(part.share * values[part.inside].mean() for part in parts) / processes
    assert mean == pytest.approx(values.mean())
    weights = torch.from_numpy(np.random.default_rng(1).random(total))
    weighted = [
        part.share_of(weights, processes) * np.average(values[part.inside], weights=weights[part.inside])
        for part in parts
    ]
    assert sum(weighted) / processes == pytest.approx(np.average(values, weights=weights))


def test_a_part_is_augmented_as_in_its_batch() -> None:
    frames, target = torch.rand(7, 2, 3, 8, 12), torch.randn(7, 2)
    how = replace(together.CHANGES, pitch=2)
    frames_of, targets_of = augment(frames, target, how, torch.Generator().manual_seed(1))
    for part in (part_of(7, number, 3) for number in range(3)):
        found = augment(
            frames[part.inside], target[part.inside], how, torch.Generator().manual_seed(1), part=part
        )
        torch.testing.assert_close(found, (frames_of[part.inside], targets_of[part.inside]), rtol=0, atol=0)


def test_a_part_is_dropped_and_normalised_as_in_its_batch(monkeypatch) -> None:
    """The processes' sums are put together by hand; rows of a frame stay side by side in a network."""
    values = torch.randn(14, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    norm, drop = torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.4)
    torch.manual_seed(5)
    expected = drop(norm(values))
    parts = [part_of(7, number, 3) for number in range(3)]
    pieces = [values[2 * part.start : 2 * part.stop] for part in parts]
    sums = torch.cat([values.sum((0, 2, 3)), torch.tensor([14.0 * 9])])
    squares = (values - values.mean((0, 2, 3), keepdim=True)).square().sum((0, 2, 3))
    for part, piece in zip(parts, pieces, strict=True):
        own = torch.nn.BatchNorm2d(4)
        answers = iter([sums, squares])
        monkeypatch.setattr(processes, "_summed", lambda value, answers=answers: next(answers).clone())
        torch.manual_seed(5)
        with processes.as_one_batch(part, 3):
            found = drop(own(piece))
        torch.testing.assert_close(found, expected[2 * part.start : 2 * part.stop], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own.running_var, norm.running_var)
        torch.testing.assert_close(own.running_mean, norm.running_mean)


def test_torchrun_and_devices_must_agree(monkeypatch) -> None:
    assert placement(None) == (1, 1)
    assert placement(3) == (3, 1)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}.items():
        monkeypatch.setenv(name, value)
    assert placement(None) == placement(6) == (2, 3)
    with pytest.raises(ValueError, match="torchrun started 6 processes and devices is 2; leave it out"):
        placement(2)


@pytest.fixture(scope="module")
def route(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of the synthetic road in three blocks."""
    out = tmp_path_factory.mktemp("shards") / "route"
    options = {"seconds": 8.0, "height": 120, "width": 160}
    short = {"blocks": 3, "gap_s": 0.2, "smoothing": 0.7}
    prepare(PrepConfig(reader="synthetic", source=Path("-"), reader_options=options, **short), out)
    return out


def program(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs the training of `together` in processes of its own."""
    command = [*(launcher or (sys.executable, "-m")), "tests.driving_xai.training.together"]
    ours = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=ours | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def same_losses(one: Path, other: Path, *, rtol: float = 1e-4, later: float | None = None) -> None:
    """Of training and validation, epoch by epoch.

    Args:
        rtol: of the first epoch.
        later: of the others, where training amplifies rounding; None is `rtol`.
    """
    tables = [pd.read_csv(out / "logs" / "version_0" / "metrics.csv") for out in (one, other)]
    assert len(tables[0]) > 1
    first = [table[table["epoch"] == 0] for table in tables]
    pd.testing.assert_frame_equal(*first, check_exact=False, rtol=rtol)
    pd.testing.assert_frame_equal(*tables, check_exact=False, rtol=later or rtol)


STEERING_LOSSES = {"rtol": 1e-4, "later": 1e-2}
"""Weights changed by 1e-7 of themselves at the start change the losses of one process by 1e-5, 8e-5 and 7e-4
in its three epochs, by 1e-6 by 8e-4, 2e-3 and 5e-2: so much does this training amplify rounding."""


@pytest.mark.slow
def test_two_processes_train_a_classifier_as_one_does(tmp_path) -> None:
    classify.train(Pictures(), tmp_path / "one", together.CLASSIFIER, data={}, device="cpu")
    done = program("classifier", tmp_path / "two", "--devices", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    same_losses(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "two" / "config.json").read_bytes()


@pytest.mark.slow
def test_two_processes_train_steering_as_one_does(route, tmp_path) -> None:
    steering.train(route, tmp_path / "one", together.STEERING, device="cpu")
    done = program("steering", tmp_path / "two", "--devices", 2, "--shards", route)
    assert done.returncode == 0, done.stderr
    same_losses(tmp_path / "one", tmp_path / "two", **STEERING_LOSSES)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["labn", "timm", "actions"])
def test_two_processes_train_the_others_as_one_does(recipe, streets, tmp_path) -> None:
    for devices in (1, 2):
        done = program(recipe, tmp_path / str(devices), "--devices", devices, "--shards", streets)
        assert done.returncode == 0, done.stderr
    # Of the deep network rounding is amplified by normalisation over five images and by Adam.
    same_losses(tmp_path / "1", tmp_path / "2", rtol=2e-2 if recipe == "timm" else 1e-3)


@pytest.mark.slow
def test_two_processes_resume_where_they_were_killed(tmp_path) -> None:
    assert program("classifier", tmp_path / "whole", "--devices", 2).returncode == 0
    assert program("classifier", tmp_path / "out", "--devices", 2, "--dies", 1).returncode != 0
    assert (tmp_path / "out.died").exists()
    assert not (tmp_path / "out" / "config.json").exists()
    done = program("classifier", tmp_path / "out", "--devices", 2, "--resume")
    assert done.returncode == 0, done.stderr
    whole, found = (tmp_path / name / "model.safetensors" for name in ("whole", "out"))
    assert whole.read_bytes() == found.read_bytes()
    same_losses(tmp_path / "whole", tmp_path / "out", rtol=0)


@pytest.mark.slow
def test_torchrun_restarts_a_killed_process_and_the_training_ends_as_one_does(route, tmp_path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    launcher = (*torchrun, "--max-restarts", "1", "-m")
    done = program("steering", tmp_path / "out", "--shards", route, "--dies", 1, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.died").exists()
    steering.train(route, tmp_path / "one", together.STEERING, device="cpu")
    same_losses(tmp_path / "one", tmp_path / "out", **STEERING_LOSSES)
