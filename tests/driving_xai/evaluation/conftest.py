"""A short route in shards, and steering models small enough to score it in a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep.geometry import Geometry
from data_prep.schema import VEHICLES
from data_prep.shards.hdf5 import COLUMNS, SequenceWriter
from data_prep.shards.manifest import Manifest, ShardEntry
from data_prep.shards.parquet import SEQUENCE_INDEX, write_index
from data_prep.signals import inverse_turning_radius
from driving_xai import checkpoint
from driving_xai.checkpoint import Checkpoint
from driving_xai.models.steering import SteeringConfig, SteeringModel

HEIGHT, WIDTH = 32, 48
VEHICLE = VEHICLES["lincoln-mkz"]
GEOMETRY = asdict(Geometry(height=HEIGHT, width=WIDTH))

# Drive, segment, split and number of frames, each in a shard of its own.
STRETCHES = (
    ("a", 0, "train", 10),
    ("a", 1, "test", 7),
    ("a", 2, "test", 12),
    ("b", 0, "test", 1),
    ("b", 1, "val", 5),
)


@pytest.fixture(scope="session")
def write_route(tmp_path_factory) -> Callable[..., Path]:
    """Writes shards of STRETCHES; frames show a bright bar, which causes the angle, on noise."""

    def write(
        *,
        causes: bool = True,
        labelled: bool = True,
        stretches: Sequence[tuple[str, int, str, int]] = STRETCHES,
    ) -> Path:
        root = tmp_path_factory.mktemp("shards")
        generator = np.random.default_rng(0)
        tables, entries = [], []
        for number, (drive, segment, split, count) in enumerate(stretches):
            name = f"shard-{number}.h5"
            frames, bars = _frames(generator, count)
            columns = _columns(generator, count, labelled, start=1000 * number)
            with SequenceWriter(
                root / name, most_rows=count, height=HEIGHT, width=WIDTH, causes=causes
            ) as writer:
                writer.append(frames, bars if causes else None)
                writer.finish({key: columns[key] for key in COLUMNS}, {})
            place = {"shard": name, "drive": drive, "camera": "front", "segment": segment, "split": split}
            rows = {"row": np.arange(count), "frame": np.arange(count) + 100 * segment, "block": number}
            tables.append(pd.DataFrame({**place, **rows, **columns}))
            entries.append(ShardEntry.of(root, name, rows=count, drive=drive, dropped={}))
        index = pd.concat(tables, ignore_index=True)
        write_index(root / "index.parquet", index, SEQUENCE_INDEX)
        _manifest(root, entries, len(index)).save(root)
        return root

    return write


def _frames(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    frames = generator.integers(0, 120, size=(count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    bars = np.zeros((count, HEIGHT, WIDTH), dtype=bool)
    for t in range(count):
        bars[t, 20:28, 4 + 3 * t : 8 + 3 * t] = True
    frames[bars] = 250
    return frames, bars


def _columns(generator: np.random.Generator, count: int, labelled: bool, start: int) -> dict[str, np.ndarray]:
    angle = generator.normal(scale=0.3, size=count) if labelled else np.full(count, np.nan)
    speed = np.where(np.arange(count) % 2, 12.0, np.nan)
    return {
        "time_ns": (np.arange(count) + start) * 50_000_000,
        "steering_wheel_rad": angle + 0.1,
        "steering_wheel_rad_smoothed": angle,
        "speed_mps": speed,
        "speed_mps_smoothed": speed,
        "inverse_turning_radius": inverse_turning_radius(angle, speed, VEHICLE),
    }


def _manifest(root: Path, entries: list[ShardEntry], rows: int) -> Manifest:
    return Manifest(
        kind="sequences",
        config={},
        vehicle=asdict(VEHICLE),
        geometry=GEOMETRY,
        drives=[],
        shards=entries,
        index=[ShardEntry.of(root, "index.parquet", rows=rows, drive="", dropped={})],
        signals={},
        quality={},
        provenance={},
    )


@pytest.fixture(scope="session")
def shards(write_route) -> Path:
    return write_route()


@pytest.fixture(scope="session")
def steering(tmp_path_factory, shards) -> Callable[..., Checkpoint]:
    """A checkpoint with random weights that says it was trained on the route."""

    def save_and_load(
        *,
        attention: str = "soft",
        shards_sha256: str | None = None,
        edit: Callable[[SteeringModel], None] = lambda model: None,
    ) -> Checkpoint:
        torch.manual_seed(0)
        how = SteeringConfig(hidden_size=8, attention=attention, temperature=0.2, height=HEIGHT, width=WIDTH)
        model = SteeringModel(how)
        model.target_scale.fill_(0.01)
        with torch.no_grad():
            edit(model)
        config = {
            "kind": "steering",
            "model": asdict(how),
            "input": {"geometry": GEOMETRY, "vehicle": asdict(VEHICLE)},
            "data": {"shards_sha256": shards_sha256 or Manifest.load(shards).sha256, "held_out": {}},
        }
        path = tmp_path_factory.mktemp("checkpoint")
        checkpoint.save(path, model, config, {})
        return checkpoint.load(path)

    return save_and_load
