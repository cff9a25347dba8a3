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
    count_rows,
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


def lying(path: Path, change) -> Path:
    """A shard of 45 frames, changed through the HDF5 library itself."""
    write(path, 45)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def stretched(file: h5py.File) -> None:
    del file["frames"]
    file.create_dataset("frames", shape=(10**12, 6, 8, 3), chunks=(20, 6, 8, 3), dtype=np.uint8)


def packed(file: h5py.File) -> None:
    del file["frames"]
    file.create_dataset("frames", data=np.zeros((45, 6, 8, 3), np.uint8), compression="gzip")


def of_huge_chunks(file: h5py.File) -> None:
    del file["frames"]
    shape = (45, 6, 8, 3)
    file.create_dataset(
        "frames", shape=shape, maxshape=(None, *shape[1:]), chunks=(10**7, 6, 8, 3), dtype="u1"
    )


def linked_elsewhere(file: h5py.File) -> None:
    del file["frames"]
    file["frames"] = h5py.ExternalLink("other.h5", "frames")


def stored_elsewhere(file: h5py.File) -> None:
    del file["frames"]
    file.create_dataset(
        "frames", shape=(45, 6, 8, 3), dtype="u1", external=[("secret", 0, h5py.h5f.UNLIMITED)]
    )


def composed_of_others(file: h5py.File) -> None:
    del file["frames"]
    layout = h5py.VirtualLayout(shape=(45, 6, 8, 3), dtype="u1")
    layout[:] = h5py.VirtualSource("other.h5", "frames", shape=(45, 6, 8, 3))
    file.create_virtual_dataset("frames", layout)


def a_group(file: h5py.File) -> None:
    del file["frames"]
    for number in range(45):
        file.create_group(f"frames/{number}")


def of_floats(file: h5py.File) -> None:
    del file["frames"]
    file["frames"] = np.zeros((45, 6, 8, 3))


def grey(file: h5py.File) -> None:
    del file["frames"]
    file["frames"] = np.zeros((45, 6, 8, 1), np.uint8)


def flat(file: h5py.File) -> None:
    del file["frames"]
    file["frames"] = np.zeros(45, np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (stretched, "frames claims more than the file's"),
        (of_huge_chunks, "frames claims more than the file's"),
        (packed, "frames is packed by a filter"),
        (linked_elsewhere, "frames is no dataset of this file"),
        (stored_elsewhere, "frames is no dataset of this file"),
        (composed_of_others, "frames is no dataset of this file"),
        (a_group, "frames is no dataset of this file"),
        (of_floats, "frames is float64 in 4 dimensions"),
        (grey, "frames have 1 channels, expected 3"),
        (flat, "frames is uint8 in 1 dimensions"),
    ],
)
def test_a_shard_that_lies_is_refused_before_its_values_are_read(change, message, tmp_path):
    # What another file holds must not come out.
    write(tmp_path / "other.h5", 45)
    (tmp_path / "secret").write_bytes(bytes(45 * 6 * 8 * 3))
    path = lying(tmp_path / "shard.h5", change)
    for read in (lambda: read_frames(path, 0, 20), lambda: count_rows(path)):
        with pytest.raises(DataError, match=message) as error:
            read()
        assert "\n" not in str(error.value)


def test_columns_of_another_length_or_type_are_refused(tmp_path):
    def shorter(file: h5py.File) -> None:
        del file["speed_mps"]
        file["speed_mps"] = np.zeros(44)

    def text(file: h5py.File) -> None:
        del file["speed_mps"]
        file["speed_mps"] = np.full(45, b"fast")

    with pytest.raises(DataError, match=r"columns of '?\[44, 45\]'? rows, expected one length"):
        read_columns(lying(tmp_path / "shorter.h5", shorter))
    with pytest.raises(DataError, match=r"speed_mps is \|S4 in 1 dimensions"):
        read_columns(lying(tmp_path / "text.h5", text))


def test_rows_are_counted(tmp_path):
    write(tmp_path / "shard.h5", 25, most_rows=60)
    assert count_rows(tmp_path / "shard.h5") == 25
