"""A small recording, its shards, and a small untrained steering model that fits both."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_prep.geometry import Geometry
from data_prep.prepare import PrepConfig, prepare
from data_prep.schema import VEHICLES
from driving_xai import checkpoint as checkpoints
from driving_xai.checkpoint import Checkpoint
from driving_xai.models.steering import SteeringConfig, SteeringModel

GEOMETRY = Geometry(crop_top=1 / 3, height=80, width=160)
FRAMES, HOLE_AFTER = 16, 8
PERIOD_NS = 50_000_000


def picture_of(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """A road-like picture that differs from frame to frame."""
    rng = np.random.default_rng(number)
    rows = np.linspace(40, 160, height)[:, None, None]
    picture = np.broadcast_to(rows, (height, width, 3)) + rng.normal(0, 12, (height, width, 3))
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    cv2.line(picture, (20 + 3 * number, height), (width // 2, height // 3), (250, 240, 90), 3)
    return picture


def write_recording(root: Path) -> Path:
    """Challenge 2's layout: `center/<ns>.jpg` and a CSV of angles. A hole of a second after half of the frames."""
    (root / "center").mkdir(parents=True)
    rows = []
    for number in range(FRAMES):
        stamp = 1_479_424_215_880_976_321 + PERIOD_NS * (number + (20 if number >= HOLE_AFTER else 0))
        image = cv2.cvtColor(picture_of(number), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(root / "center" / f"{stamp}.jpg"), image)
        rows.append((stamp, 0.3 * math.sin(number / 3), "1"))
    with (root / "angles.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("frame_id", "steering_angle", "public"), *rows])
    return root


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("replay") / "drive-a")


@pytest.fixture(scope="session")
def shards(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("replay-shards") / "shards"
    prepare(PrepConfig(reader="udacity-csv", source=recording, geometry=GEOMETRY, split="test"), root)
    return root


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Writes and loads untrained models whose answers differ from frame to frame."""

    def make(*, attention: str = "sign", data: dict | None = None) -> Checkpoint:
        torch.manual_seed(3)
        config = SteeringConfig(hidden_size=8, attention=attention)
        model = SteeringModel(config)
        model.target_scale.fill_(5e-3)
        vehicle = asdict(VEHICLES["lincoln-mkz"])
        content = {
            "kind": "steering",
            "model": asdict(config),
            "input": {"geometry": asdict(GEOMETRY), "vehicle": vehicle, "frame_rate_hz": 20},
            "data": data or {},
        }
        path = tmp_path_factory.mktemp("replay-checkpoint") / "model"
        checkpoints.save(path, model, content, {})
        return checkpoints.load(path)

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint()
