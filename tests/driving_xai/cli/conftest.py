"""A four-second drive taken through every command once, for the tests of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from driving_xai.cli import app

Run = Callable[..., Result]


@dataclass(frozen=True, kw_only=True)
class Made:
    """The outputs of each command."""

    route: Path
    shards: Path
    model: Path
    scores: Path
    video: Path


def invoke(*arguments: object) -> Result:
    """Runs a command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="driving-xai")


def succeed(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="session")
def run() -> Run:
    return invoke


TRAINING = """
window = 5
batch_size = 4
frame_epochs = 1
epochs = 1
[model]
hidden_size = 8
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """prep, train, score and replay of a route small enough for a test."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    route, recipe = folder / "route.toml", folder / "recipe.toml"
    route.write_text("seconds = 4.0\nrate_hz = 10.0\nheight = 96\nwidth = 160\n")
    recipe.write_text(TRAINING)
    shards, model, scores = folder / "shards", folder / "model", folder / "scores"
    video = folder / "drive.mp4"
    succeed(
        "prep",
        "synthetic",
        route,
        shards,
        "--set",
        "gap_s=0.1",
        "--smoothing",
        0.99,
        "--set",
        "frames_per_shard=15",
        "--workers",
        1,
    )
    succeed("train", "steering", shards, model, "--config", recipe, "--device", "cpu")
    measures = "deletion,insertion,pointing-game"
    succeed(
        "score", model, shards, "--method", "sign-attention,grad-cam", "--measure", measures, "-o", scores
    )
    succeed("replay", model, route, "--start", 1, "--end", 2, "-o", video, "--device", "cpu")
    return Made(route=route, shards=shards, model=model, scores=scores, video=video)
