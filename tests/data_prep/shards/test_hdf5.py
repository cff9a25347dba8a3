"""Sequence shards: what is written is read, the same content is the same bytes, damage is told."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.shards.hdf5 import (
    COLUMNS,
    FRAMES_PER_CHUNK,
    SequenceWriter,
    read_attributes,
    read_causes,
    read_columns,
    read_frames,
)


def write(
    path: Path, rows: int, *, most_rows: int | None = None, causes: bool = True
) -> dict[str, np.ndarray]:
    """A shard of random content; returns what was written."""
    rng = np.random.default_rng(rows)
    frames = rng.integers(0, 256, (rows, 6, 8, 3), dtype=np.uint8)
    masks = rng.random((rows, 6, 8)) < 0.5
    columns = {
        name: np.arange(rows, dtype=kind) / (1 if kind is np.int64 else 7) for name, kind in COLUMNS.items()
    }
    columns["speed_mps"] = np.full(rows, np.nan)
    with SequenceWriter(path, most_rows=most_rows or rows, height=6, width=8, causes=causes) as writer:
        for start in range(0, rows, FRAMES_PER_CHUNK):
            part = slice(start, start + FRAMES_PER_CHUNK)
            writer.append(frames[part], masks[part] if causes else None)
        writer.finish(columns, {"drive": "a drive", "smoothing": 0.2, "speed_known": False})
    return {"frames": frames, "masks": masks, **columns}


@pytest.mark.parametrize("rows", [1, 19, 20, 21, 60])
def test_every_range_is_read_as_written(rows, tmp_path):
    path = tmp_path / "shard.h5"
    written = write(path, rows)
    for start, stop in [(0, rows), (rows - 1, rows), (rows // 2, rows // 2), (rows // 3, rows)]:
        assert np.array_equal(read_frames(path, start, stop), written["frames"][start:stop])
        assert np.array_equal(read_causes(path, start, stop), written["masks"][start:stop])
    columns = read_columns(path)
    for name in COLUMNS:
        np.testing.assert_array_equal(columns[name], written[name])
    assert read_attributes(path) == {
        "drive": "a drive",
        "schema": "driving-xai-shards/1",
        "smoothing": 0.2,
        "speed_known": False,
    }


def test_the_same_content_is_the_same_bytes(tmp_path):
    write(tmp_path / "one.h5", 45)
    write(tmp_path / "two.h5", 45)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_frames_lie_raw_in_chunks_of_a_window(tmp_path):
    write(tmp_path / "shard.h5", 45)
    with h5py.File(tmp_path / "shard.h5") as file:
        assert file["frames"].chunks == (20, 6, 8, 3)
        assert file["frames"].compression is None
        assert file["frames"].dtype == np.uint8


def test_rows_that_were_not_written_are_cut_off(tmp_path):
    written = write(tmp_path / "shard.h5", 25, most_rows=60)
    assert np.array_equal(read_frames(tmp_path / "shard.h5", 0, 25), written["frames"])
    with pytest.raises(DataError, match="rows 20 to 26 asked for, it has 0 to 25"):
        read_frames(tmp_path / "shard.h5", 20, 26)
    with pytest.raises(DataError, match="rows -1 to 3"):
        read_frames(tmp_path / "shard.h5", -1, 3)


def test_a_shard_without_causes_says_so(tmp_path):
    write(tmp_path / "shard.h5", 3, causes=False)
    with pytest.raises(DataError, match="only synthetic drives know the causes"):
        read_causes(tmp_path / "shard.h5", 0, 1)


def test_a_missing_or_damaged_shard_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match=r"no such shard; run `driving-xai verify`"):
        read_frames(tmp_path / "gone.h5", 0, 1)
    write(tmp_path / "shard.h5", 45)
    data = (tmp_path / "shard.h5").read_bytes()
    for length in (0, 7, 600, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.h5").write_bytes(data[:length])
        with pytest.raises(DataError, match="damaged shard") as error:
            read_frames(tmp_path / "cut.h5", 0, 45)
        assert "\n" not in str(error.value)
