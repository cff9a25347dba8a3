"""Reading grows in proportion to the data: the cells that are gone through are counted, not timed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep.schema import VEHICLES
from data_prep.shards.parquet import IMAGES_PER_GROUP, LabelledImage
from driving_xai.data import drives, images
from driving_xai.data.splits import HoldOut
from driving_xai.experiments import image_sets
from tests.growth import MOST_EXPONENT, Counted, exponent

SIZES = (8, 32, 128)
"""Shards, drives or blocks."""
PER_SHARD = 2 * IMAGES_PER_GROUP


def image_index(shards: int) -> pd.DataFrame:
    count = shards * PER_SHARD
    return pd.DataFrame(
        {
            "shard": np.repeat([f"shards/s{n}" for n in range(shards)], PER_SHARD).astype(object),
            "row": np.tile(np.arange(PER_SHARD, dtype=np.int32), shards),
            "key": [f"{n}.png" for n in range(count)],
            "split": "train",
            "group": "g",
            "a": np.int8(1),
        }
    )


@pytest.fixture
def fabricated(monkeypatch: pytest.MonkeyPatch):
    """Image shards that exist as an index only."""

    def read_images(path: Path, rows: range) -> list[LabelledImage]:
        return [LabelledImage(b"", f"{path.name}/{row}", (1,), "train", "g") for row in rows]

    def opened(shards: int) -> images.LabelledImages:
        monkeypatch.setattr(images, "open_index", lambda root, manifest: image_index(shards))
        manifest = SimpleNamespace(kind="images", signals={"labels": ["a"]})
        found = images.LabelledImages(Path("none"), manifest=manifest)
        found._shards, found._row = found._shards.view(Counted), found._row.view(Counted)
        return found

    monkeypatch.setattr(images, "read_images", read_images)
    return opened


def test_an_epoch_over_many_image_shards(fabricated) -> None:
    counts = []
    for shards in SIZES:
        Counted.seen = 0
        found = fabricated(shards)
        rows = found.shuffled(np.arange(len(found)), torch.Generator().manual_seed(0))
        assert sorted(rows) == list(range(len(found)))
        for row in rows[::16].tolist():
            stored = found._stored(row)
            assert stored.key == f"s{row // PER_SHARD}/{row % PER_SHARD}"
        counts.append(Counted.seen)
    assert exponent(SIZES, counts) <= MOST_EXPONENT


def test_the_last_row_group_of_a_shard_is_as_long_as_the_index_says(fabricated) -> None:
    found = fabricated(2)
    found._stored(PER_SHARD - 1)
    ((shard, group), stored), *_ = found._groups.items()
    assert (shard, group, len(stored)) == ("shards/s0", 1, IMAGES_PER_GROUP)


def test_whole_shards_of_many_drives_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        drives, "read_frames", lambda path, start, stop: np.zeros((stop - start, 1, 1, 3), np.uint8)
    )
    counts = []
    for shards in SIZES:
        index = pd.DataFrame(
            {
                "shard": np.repeat([f"s{n}" for n in range(shards)], 20).astype(object),
                "row": np.tile(np.arange(20), shards),
                "inverse_turning_radius": 0.0,
                "speed_mps_smoothed": 10.0,
            }
        )
        route = drives.Route(Path("none"), index, VEHICLES["lincoln-mkz"], keep_bytes=2**20)
        route._shards = route._shards.view(Counted)
        Counted.seen = 0
        for start in range(0, len(index), 10):
            assert len(route.frames(np.arange(start, start + 10))) == 10
        assert len(route._kept) == shards
        counts.append(Counted.seen)
    assert exponent(SIZES, counts) <= MOST_EXPONENT


class CountedTable(dict):
    """An index whose columns count what is compared."""

    def __getitem__(self, name: str) -> SimpleNamespace:
        values = super().__getitem__(name)
        return SimpleNamespace(to_numpy=lambda dtype=None: values)

    def __len__(self) -> int:
        return len(super().__getitem__("drive"))


def test_holding_out_one_of_many_blocks() -> None:
    counts = []
    for blocks in SIZES:
        block = np.repeat(np.arange(blocks), 20)
        index = CountedTable(
            block=block.view(Counted),
            drive=np.array([f"d{n}" for n in block], dtype=object),
            time_ns=np.tile(np.arange(20) * 10**8, blocks),
        )
        Counted.seen = 0
        splits = HoldOut(block=1, gap_s=0.1).splits(index)
        counts.append(Counted.seen)
        assert (splits == "test").sum() == 20
        assert (splits == "val").sum() == 2 * (blocks - 1)
    assert exponent(SIZES, counts) <= MOST_EXPONENT


def test_one_reading_of_images_from_many_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: list[list[int]] = []

    def read_images(path: Path, rows: list[int]) -> list[LabelledImage]:
        read.append([int(path.name[1:]) * PER_SHARD + row for row in rows])
        return [LabelledImage(b"", str(row), (1,), "train", "g") for row in rows]

    index = image_index(3).assign(split=np.tile(["train", "test"], 3 * PER_SHARD // 2))
    manifest = SimpleNamespace(kind="images", signals={"labels": ["a"]}, drives=[{"name": "n"}], sha256="")
    monkeypatch.setattr(image_sets.Manifest, "load", lambda root: manifest)
    monkeypatch.setattr(image_sets, "open_index", lambda root, manifest: index)
    monkeypatch.setattr(image_sets, "read_images", read_images)
    monkeypatch.setattr(
        image_sets, "decode_image", lambda data, name: np.full((2, 2, 3), int(name), np.uint8)
    )
    wanted = np.array([300, 1, 200, 0, 299])
    found = image_sets.from_shards(tmp_path, size_px=2).read(wanted)
    assert found[:, 0, 0, 0].tolist() == (wanted % PER_SHARD).tolist()
    assert read == [[1, 0], [200], [300, 299]]
